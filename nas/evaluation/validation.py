"""Validation loss with little variance: a fixed grid of images, stratified timesteps and antithetic noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.data.sources import Split
from nas.diffusion import GaussianDiffusion
from nas.streams import stream
from space.errors import DataError

BINS = 4
"""Equal ranges of timesteps in which the loss is told apart."""

_GRID_SEED = 0
"""The grid is the same for every trial of every study, so its noise cancels in differences."""


@dataclass(frozen=True)
class ValidationLoss:
    """Mean squared error of the predicted noise: overall, and in each of the `BINS` ranges of timesteps, from 0 up."""

    mean: float
    bins: tuple[float, ...]


class ValidationGrid:
    """The fixed grid: held-out image i stands at a timestep of stratum i, once with a noise and once with its negative.

    Raises DataError when fewer images are held out.
    """

    def __init__(self, split: Split, images: int, diffusion: GaussianDiffusion, device: torch.device) -> None:
        if images > len(split):
            raise DataError(f"evaluation.val_loss.images is {images}, but only {len(split)} images are held out; lower it")
        order = torch.randperm(len(split), generator=stream(_GRID_SEED, "validation images"))[:images]
        x0 = torch.from_numpy(split.latents)[order]
        noise = torch.randn(x0.shape, generator=stream(_GRID_SEED, "validation noise"))
        # The middles of equal strata; the images' random order makes them independent of the class.
        t = ((torch.arange(images) + 0.5) * diffusion.steps / images).long()
        self.x0, self.noise = torch.cat([x0, x0]).to(device), torch.cat([noise, -noise]).to(device)
        self.t, self.y = torch.cat([t, t]).to(device), torch.from_numpy(split.labels)[order].repeat(2).to(device)
        self.diffusion = diffusion

    @torch.inference_mode()
    def loss(self, model: nn.Module, batch_size: int) -> ValidationLoss:
        """The loss of a model in eval mode."""
        pieces = [self._errors(model, slice(i, i + batch_size)) for i in range(0, len(self.t), batch_size)]
        errors = torch.cat(pieces)
        bins = self.t * BINS // self.diffusion.steps
        means = [errors[bins == b].mean().item() for b in range(BINS)]
        return ValidationLoss(errors.mean().item(), tuple(means))

    def _errors(self, model: nn.Module, part: slice) -> Tensor:
        x0, t, noise = self.x0[part], self.t[part], self.noise[part]
        out = model(self.diffusion.q_sample(x0, t, noise), t, self.y[part])
        noise_hat: Tensor = out[:, : x0.shape[1]].float()
        return (noise_hat - noise).square().mean(dim=(1, 2, 3)).double()
