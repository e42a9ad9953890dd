"""Gaussian diffusion with learned variance, as DiT and U-DiT train it (Ho et al. 2020; Nichol & Dhariwal 2021)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BETA_FIRST, BETA_LAST = 1e-4, 2e-2
LEAST_PROBABILITY = 1e-12
EDGE = 0.999
"""Beyond ±EDGE, the outermost bins of the likelihood extend to infinity."""


class LossTerms(NamedTuple):
    """Losses per sample (N,): `loss` = `mse` + `vb`; `vb` is in bits per dimension, and 0 without learned variance."""

    mse: Tensor
    vb: Tensor
    loss: Tensor


class Posterior(NamedTuple):
    """The model's p(x_{i-1} | x_i): mean, log-variance and predicted x0, each (N, C, H, W)."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class GaussianDiffusion:
    """The forward process over `steps` linear betas, or over the kept timesteps of a longer process; tables are float64.

    `timestep_map` (steps,) int64 holds the original timestep of each step, which is the model's input.
    """

    def __init__(self, steps: int = 1000) -> None:
        # The end points of 1000 steps, scaled so that fewer steps add the same noise in all.
        scale = 1000 / steps
        betas = torch.linspace(scale * BETA_FIRST, scale * BETA_LAST, steps, dtype=torch.float64)
        self._set(betas, torch.arange(steps))

    def _set(self, betas: Tensor, timestep_map: Tensor) -> None:
        self.betas, self.timestep_map, self.steps = betas, timestep_map, len(betas)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        self.alphas_cumprod_before = before
        variance = betas * (1 - before) / (1 - self.alphas_cumprod)
        # The posterior variance of the first step is 0, so the second step's logarithm is used there.
        self.posterior_log_variance = torch.log(torch.cat([variance[1:2], variance[1:]]) if self.steps > 1 else betas)
        self.mean_from_x0 = betas * before.sqrt() / (1 - self.alphas_cumprod)
        self.mean_from_x_t = (1 - before) * (1 - betas).sqrt() / (1 - self.alphas_cumprod)

    def respaced(self, steps: int) -> GaussianDiffusion:
        """A process over N of the T timesteps, round(i·(T-1)/(N-1)); raises ValueError when N is out of range."""
        if not 1 <= steps <= self.steps:
            raise ValueError(f"{steps} sampling steps are not between 1 and {self.steps}")
        return self.shortened(torch.tensor([round(i * (self.steps - 1) / max(steps - 1, 1)) for i in range(steps)]))

    def respaced_in_snr(self, steps: int) -> GaussianDiffusion:
        """A process over the timesteps nearest to equal distances in λ = log(α/σ), both ends included (Lu et al. 2022, section 5).

        Near the data, beyond some 40 steps, two distances may have the same nearest timestep, which is then kept once. Raises
        ValueError when `steps` is out of range.
        """
        if not 2 <= steps <= self.steps:
            raise ValueError(f"{steps} sampling steps are not between 2 and {self.steps}")
        snr = 0.5 * torch.log(self.alphas_cumprod / (1 - self.alphas_cumprod))
        wanted = torch.linspace(float(snr[0]), float(snr[-1]), steps, dtype=torch.float64)
        return self.shortened(torch.unique((snr[None] - wanted[:, None]).abs().argmin(dim=1)))

    def shortened(self, kept: Tensor) -> GaussianDiffusion:
        """The process over rising timesteps `kept` (N,) int64 only.

        Its betas follow from the kept ᾱ: β'_i = 1 - ᾱ_i/ᾱ_{i-1}.
        """
        kept_products = self.alphas_cumprod[kept]
        short = GaussianDiffusion.__new__(GaussianDiffusion)
        short._set(1 - kept_products / torch.cat([torch.ones(1, dtype=torch.float64), kept_products[:-1]]), self.timestep_map[kept])
        return short

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·noise for (N, C, H, W) and t (N,) (Ho et al., equation 4)."""
        product = self.alphas_cumprod
        return at(product.sqrt(), t, x0) * x0 + at((1 - product).sqrt(), t, x0) * noise

    def loss_terms(self, model_output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
        """The mean squared error of the noise, and the variational bound, which trains the variance with the mean detached.

        As in Nichol & Dhariwal, section 3.1, without their weight λ.

        Args:
            model_output: (N, C, H, W), or (N, 2C, H, W) with learned variance.
            x0: Data (N, C, H, W).
            x_t: Noised data (N, C, H, W).
            t: Timesteps (N,).
            noise: The noise in x_t, (N, C, H, W).
        """
        noise_hat, _ = _split(model_output, x_t)
        mse = (noise_hat - noise).square().mean(dim=(1, 2, 3))
        if model_output.shape[1] == x_t.shape[1]:
            return LossTerms(mse, torch.zeros_like(mse), mse)
        channels = x_t.shape[1]
        detached = torch.cat([model_output[:, :channels].detach(), model_output[:, channels:]], dim=1)
        vb = self._bound(detached, x0, x_t, t)
        return LossTerms(mse, vb, mse + vb)

    def _bound(self, model_output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """One term of the variational bound, in bits per dimension (N,)."""
        model = self.posterior(model_output, x_t, t)
        mean = at(self.mean_from_x0, t, x0) * x0 + at(self.mean_from_x_t, t, x0) * x_t
        log_variance = at(self.posterior_log_variance, t, x0)
        # KL of two diagonal Gaussians.
        difference = log_variance - model.log_variance
        kl = 0.5 * (-1.0 - difference + difference.exp() + (mean - model.mean).square() * (-model.log_variance).exp())
        likelihood = _discretised_log_likelihood(x0, model.mean, 0.5 * model.log_variance)
        nats = torch.where((t == 0).view(-1, 1, 1, 1), -likelihood, kl)
        return nats.mean(dim=(1, 2, 3)) / math.log(2)

    def posterior(self, model_output: Tensor, x_t: Tensor, i: Tensor, bound: float | None = None) -> Posterior:
        """The model's Gaussian over x_{i-1}.

        The variance output v interpolates between log β̃_i and log β_i by (v+1)/2; without it the log-variance is log β̃_i.

        Args:
            model_output: (N, C, H, W), or (N, 2C, H, W) with learned variance.
            x_t: (N, C, H, W).
            i: Steps (N,) of this process.
            bound: Clips the predicted x0 to ±bound; None does not clip.
        """
        noise_hat, v = _split(model_output, x_t)
        x0 = self._x0(noise_hat, x_t, i, bound)
        mean = at(self.mean_from_x0, i, x_t) * x0 + at(self.mean_from_x_t, i, x_t) * x_t
        low = at(self.posterior_log_variance, i, x_t)
        if v is None:
            return Posterior(mean, low.expand_as(mean), x0)
        share = (v + 1) / 2
        return Posterior(mean, share * at(self.betas.log(), i, x_t) + (1 - share) * low, x0)

    def ddim(self, model_output: Tensor, x_t: Tensor, i: Tensor, bound: float | None = None) -> Tensor:
        """x_{i-1} of one deterministic DDIM step (Song et al. 2021, equation 12 with σ = 0); `bound` clips the predicted x0."""
        noise_hat, _ = _split(model_output, x_t)
        x0 = self._x0(noise_hat, x_t, i, bound)
        if bound is not None:
            # The noise that leads from the clipped x0 to x_t.
            noise_hat = (x_t - at(self.alphas_cumprod.sqrt(), i, x_t) * x0) / at((1 - self.alphas_cumprod).sqrt(), i, x_t)
        before = self.alphas_cumprod_before
        return at(before.sqrt(), i, x_t) * x0 + at((1 - before).sqrt(), i, x_t) * noise_hat

    def _x0(self, noise_hat: Tensor, x_t: Tensor, i: Tensor, bound: float | None) -> Tensor:
        product = self.alphas_cumprod
        x0 = at(product.rsqrt(), i, x_t) * x_t - at((1 / product - 1).sqrt(), i, x_t) * noise_hat
        return x0 if bound is None else x0.clamp(-bound, bound)


def _split(model_output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The predicted noise, and the variance output if there is one."""
    channels = x.shape[1]
    return model_output[:, :channels], model_output[:, channels:] if model_output.shape[1] > channels else None


def at(table: Tensor, i: Tensor, like: Tensor) -> Tensor:
    """Entries i (N,) of a float64 table as (N, 1, 1, 1) in the type and on the device of `like`."""
    return table.to(like.device)[i].to(like.dtype).view(-1, 1, 1, 1)


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit values x in [-1, 1] under a Gaussian integrated over bins of ±1/255 (Ho et al., equation 13)."""
    centred, inverse = x - mean, (-log_scale).exp()
    above, below = _normal_cdf(inverse * (centred + 1 / 255)), _normal_cdf(inverse * (centred - 1 / 255))
    probability = torch.where(x < -EDGE, above, torch.where(x > EDGE, 1 - below, above - below))
    return probability.clamp(min=LEAST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal's distribution function (Page 1977)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
