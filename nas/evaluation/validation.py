"""A validation loss of small variance: a fixed grid of images, stratified timesteps and antithetic noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.data.feed import Feed
from nas.diffusion.prediction import BINS, Prediction
from nas.rng import stream
from nas.study.settings import ValLossSettings
from space.errors import DataError

_GRID_SEED = 0
"""The grid is the same for all trials of all studies, so its noise cancels in differences."""


@dataclass(frozen=True)
class ValidationLoss:
    """The mean squared error of the model's prediction: overall, and in each of the `BINS` ranges of time from t = 0 up."""

    mean: float
    bins: tuple[float, ...]


class ValidationGrid:
    """The fixed grid: held-out image i at a timestep of stratum i, once with a noise and once with its negative.

    Raises:
        DataError: Fewer images are held out than the grid needs.
    """

    def __init__(self, feed: Feed, settings: ValLossSettings, prediction: Prediction) -> None:
        images, last = settings.images, settings.images + settings.skip
        if last > len(feed):
            after = f" after the {settings.skip} that are skipped" if settings.skip else ""
            raise DataError(
                f"evaluation.val_loss.images is {images}{after}, but only {len(feed)} images are held out; raise data.held_out or "
                "lower it"
            )
        order = torch.randperm(len(feed), generator=stream(_GRID_SEED, "validation images"))[settings.skip : last]
        shape, device = (images, *feed.store.header.shape), feed.device
        x0 = feed.latents(order, noise=torch.randn(shape, generator=stream(_GRID_SEED, "validation posterior")))
        noise = torch.randn(shape, generator=stream(_GRID_SEED, "validation noise")).to(device)
        # The order of the images is random, so the strata of time do not depend on the class.
        t = prediction.grid(images)
        self.x0, self.noise = torch.cat([x0, x0]), torch.cat([noise, -noise])
        self.t, self.y = torch.cat([t, t]).to(device), feed.labels[order.to(device)].repeat(2)
        self.prediction = prediction

    @torch.inference_mode()
    def loss(self, model: nn.Module, batch_size: int) -> ValidationLoss:
        """The loss of a model in eval mode."""
        batch_errors = [self._errors(model, slice(i, i + batch_size)) for i in range(0, len(self.t), batch_size)]
        errors = torch.cat(batch_errors)
        bins = self.prediction.bins(self.t)
        means = [errors[bins == b].mean().item() for b in range(BINS)]
        return ValidationLoss(errors.mean().item(), tuple(means))

    def _errors(self, model: nn.Module, part: slice) -> Tensor:
        x0, t, noise = self.x0[part], self.t[part], self.noise[part]
        out = model(self.prediction.noised(x0, t, noise), t, self.y[part])
        return self.prediction.error(out.float(), x0, t, noise).double()
