"""The prediction a model is trained for: the noise with a learned variance (both papers), v, or the velocity of a linear flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, assert_never

import torch
from torch import Tensor

from nas.diffusion.gaussian import GaussianDiffusion, at
from nas.study.settings import PredictionSettings

PredictionKind = Literal["epsilon", "v", "flow"]

BINS = 4
"""The number of equal ranges of time over which the validation loss is reported separately."""


class Prediction(Protocol):
    """The noising of data, the model's prediction from the noised data, and the error of that prediction.

    Times t are (N,), images (N, C, H, W).
    """

    @property
    def kind(self) -> PredictionKind:
        """The name that a study uses."""

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Random training times."""

    def grid(self, count: int) -> Tensor:
        """The middles of `count` equal ranges of time, for validation."""

    def bins(self, t: Tensor) -> Tensor:
        """The number of the range that each time is in, (N,) int64 from 0 to `BINS` - 1, in the order of t."""

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, the input of the model."""

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The training loss per sample (N,)."""

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the prediction per sample (N,), unweighted: the validation loss."""


@dataclass(frozen=True)
class Steps:
    """The common part of predictions over the steps of a Gaussian diffusion; t is int64 in [0, steps)."""

    min_snr: float | None = None
    diffusion: GaussianDiffusion = field(default_factory=GaussianDiffusion, repr=False)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the steps."""
        return torch.randint(self.diffusion.steps, (count,), generator=generator)

    def grid(self, count: int) -> Tensor:
        """Whole steps."""
        return ((torch.arange(count) + 0.5) * self.diffusion.steps / count).long()

    def bins(self, t: Tensor) -> Tensor:
        """Bin 0 has the least noise."""
        return t * BINS // self.diffusion.steps

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """√ᾱ_t·x0 + √(1-ᾱ_t)·noise."""
        return self.diffusion.q_sample(x0, t, noise)

    def _truncated_snr(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """min(SNR, γ) and SNR at steps (N,), with SNR = ᾱ/(1-ᾱ)."""
        product = self.diffusion.alphas_cumprod.to(t.device)[t]
        snr = product / (1 - product)
        return snr.clamp(max=self.min_snr), snr


@dataclass(frozen=True)
class Epsilon(Steps):
    """The noise, and with 2C output channels its variance; `min_snr` is γ in the weight min(SNR, γ)/SNR of the noise's error."""

    kind: ClassVar[PredictionKind] = "epsilon"

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error and variational bound."""
        terms = self.diffusion.loss_terms(out, x0, x_t, t, noise)
        if self.min_snr is None:
            return terms.loss
        truncated, snr = self._truncated_snr(t)
        return (truncated / snr).to(terms.mse.dtype) * terms.mse + terms.vb

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The error of the noise."""
        return (out[:, : x0.shape[1]] - noise).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class V(Steps):
    """v = √ᾱ·ε - √(1-ᾱ)·x0; `min_snr` is γ in the weight min(SNR, γ)/(SNR + 1) of its error."""

    kind: ClassVar[PredictionKind] = "v"

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The weighted mean squared error."""
        error = self.error(out, x0, t, noise)
        if self.min_snr is None:
            return error
        truncated, snr = self._truncated_snr(t)
        return (truncated / (snr + 1)).to(error.dtype) * error

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The error of v."""
        product = self.diffusion.alphas_cumprod
        v = at(product.sqrt(), t, x0) * noise - at((1 - product).sqrt(), t, x0) * x0
        return (out - v).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Flow:
    """The velocity x0 - ε along x_t = t·x0 + (1-t)·ε; the model's input t runs from 0 (noise) to 1 (data)."""

    logit_normal: bool = False
    kind: ClassVar[PredictionKind] = "flow"

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1), or the logistic function of standard normal numbers (Esser et al. 2024, section 3.1)."""
        if self.logit_normal:
            return torch.randn(count, generator=generator).sigmoid()
        return torch.rand(count, generator=generator)

    def grid(self, count: int) -> Tensor:
        """Times from noise to data."""
        return (torch.arange(count) + 0.5) / count

    def bins(self, t: Tensor) -> Tensor:
        """Bin 0 has the most noise."""
        return (t * BINS).long()

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """t·x0 + (1-t)·noise."""
        time = t.view(-1, 1, 1, 1).to(x0.dtype)
        return time * x0 + (1 - time) * noise

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error."""
        return self.error(out, x0, t, noise)

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The error of the velocity."""
        return (out - (x0 - noise)).square().mean(dim=(1, 2, 3))


def prediction(settings: PredictionSettings) -> Prediction:
    """The prediction that settings describe."""
    match settings.kind:
        case "epsilon":
            return Epsilon(settings.min_snr)
        case "v":
            return V(settings.min_snr)
        case "flow":
            return Flow(settings.times == "logit-normal")
        case _:
            assert_never(settings.kind)
