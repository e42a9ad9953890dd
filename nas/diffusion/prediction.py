"""What a model is trained to predict: the noise with a learned variance (both papers), v, or the velocity of a linear flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, assert_never

import torch
from torch import Tensor

from nas.diffusion.gaussian import GaussianDiffusion, at
from nas.study.settings import PredictionSettings

PredictionKind = Literal["epsilon", "v", "flow"]

BINS = 4
"""Equal ranges of time in which the validation loss is told apart."""


class Prediction(Protocol):
    """How data are noised, what the model is to predict from it, and how far off it is. Times t are (N,), images (N, C, H, W)."""

    @property
    def kind(self) -> PredictionKind:
        """As in a study."""

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Training times."""

    def grid(self, count: int) -> Tensor:
        """The middles of `count` equal ranges of time, for validation."""

    def bins(self, t: Tensor) -> Tensor:
        """Which of the `BINS` equal ranges times fall into (N,) int64, from the one nearest t = 0 on."""

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, what the model sees."""

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The training loss of every sample (N,)."""

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the prediction alone (N,), unweighted: the validation loss."""


@dataclass(frozen=True)
class Steps:
    """What the objectives over the steps of a Gaussian diffusion share; t is int64 in [0, steps)."""

    min_snr: float | None = None
    diffusion: GaussianDiffusion = field(default_factory=GaussianDiffusion)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform."""
        return torch.randint(self.diffusion.steps, (count,), generator=generator)

    def grid(self, count: int) -> Tensor:
        """Steps."""
        return ((torch.arange(count) + 0.5) * self.diffusion.steps / count).long()

    def bins(self, t: Tensor) -> Tensor:
        """The least noise first."""
        return t * BINS // self.diffusion.steps

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """√ᾱ_t·x0 + √(1-ᾱ_t)·noise."""
        return self.diffusion.q_sample(x0, t, noise)

    def _truncated_snr(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """min(SNR, γ) and SNR of steps (N,), SNR = ᾱ/(1-ᾱ)."""
        product = self.diffusion.alphas_cumprod.to(t.device)[t]
        snr = product / (1 - product)
        return snr.clamp(max=self.min_snr), snr


@dataclass(frozen=True)
class Epsilon(Steps):
    """The noise, and with 2C output channels the variance too; `min_snr` weights the noise's error by min(SNR, γ)/SNR."""

    kind: ClassVar[PredictionKind] = "epsilon"

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """MSE + VB."""
        terms = self.diffusion.loss_terms(out, x0, x_t, t, noise)
        if self.min_snr is None:
            return terms.loss
        truncated, snr = self._truncated_snr(t)
        return (truncated / snr).to(terms.mse.dtype) * terms.mse + terms.vb

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Of the noise."""
        return (out[:, : x0.shape[1]] - noise).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class V(Steps):
    """v = √ᾱ·ε - √(1-ᾱ)·x0; `min_snr` weights its error by min(SNR, γ)/(SNR + 1)."""

    kind: ClassVar[PredictionKind] = "v"

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """MSE."""
        error = self.error(out, x0, t, noise)
        if self.min_snr is None:
            return error
        truncated, snr = self._truncated_snr(t)
        return (truncated / (snr + 1)).to(error.dtype) * error

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Of v."""
        product = self.diffusion.alphas_cumprod
        v = at(product.sqrt(), t, x0) * noise - at((1 - product).sqrt(), t, x0) * x0
        return (out - v).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Flow:
    """The velocity x0 - ε along x_t = t·x0 + (1-t)·ε, with t from 0 (noise) to 1 (data) as the model is given it."""

    logit_normal: bool = False
    kind: ClassVar[PredictionKind] = "flow"

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1), or the logistic function of normal numbers (Esser et al. 2024, section 3.1)."""
        if self.logit_normal:
            return torch.randn(count, generator=generator).sigmoid()
        return torch.rand(count, generator=generator)

    def grid(self, count: int) -> Tensor:
        """From noise to data."""
        return (torch.arange(count) + 0.5) / count

    def bins(self, t: Tensor) -> Tensor:
        """The most noise first."""
        return (t * BINS).long()

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """t·x0 + (1-t)·noise."""
        time = t.view(-1, 1, 1, 1).to(x0.dtype)
        return time * x0 + (1 - time) * noise

    def loss(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """MSE."""
        return self.error(out, x0, t, noise)

    def error(self, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Of the velocity."""
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
