"""Samplers, which turn noise into data with a model's predictions; all have one signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.diffusion.gaussian import GaussianDiffusion, at
from nas.diffusion.prediction import Prediction, Steps, V
from nas.study.choices import DEFAULT_SAMPLERS, SAMPLERS, Sampler
from space.choices.table import covering
from space.errors import ToolkitError

Predict = Callable[[Tensor, Tensor], Tensor]
"""The model's output (N, C or 2C, H, W) for x (N, C, H, W) and its times t (N,), guided when guidance is on."""


@dataclass(frozen=True)
class Denoiser:
    """A trained model as samplers use it; `bound` clips the predicted data, for data of known range."""

    prediction: Prediction
    predict: Predict
    noise: Callable[[], Tensor]
    """Draws standard normal noise of x's shape."""
    bound: float | None = None


SamplerFunction = Callable[[Denoiser, Tensor, int], Tensor]
"""Turns x (N, C, H, W), standard normal, into data in a number of steps."""


def ddpm(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    """Ancestral sampling of the respaced process, with the learned variance if there is one (Ho et al. 2020; both papers)."""
    process = _process(denoiser, steps)
    for step in reversed(range(steps)):
        i, out = _evaluated(denoiser, process, x, step)
        posterior = process.posterior(out, x, i, denoiser.bound)
        x = posterior.mean if step == 0 else posterior.mean + (0.5 * posterior.log_variance).exp() * denoiser.noise()
    return x


def ddim(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    """The deterministic process of Song et al. 2021 (η = 0); first order."""
    process = _process(denoiser, steps)
    for step in reversed(range(steps)):
        i, out = _evaluated(denoiser, process, x, step)
        x = process.ddim(out, x, i, denoiser.bound)
    return x


def dpm(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    """DPM-Solver++(2M) at equal distances in λ; second order, one evaluation per step (Lu et al. 2022, algorithm 2).

    With λ = log(α/σ), h = λ' - λ and r = (last h)/h: x' = σ'/σ·x - α'·(e^{-h} - 1)·D, D = (1 + 1/2r)·x0 - 1/2r·(last x0).
    """
    process = _diffusion(denoiser).respaced_in_snr(steps)
    alpha, sigma = process.alphas_cumprod.sqrt(), (1 - process.alphas_cumprod).sqrt()
    last: Tensor | None = None
    last_h = 0.0
    for step in reversed(range(process.steps)):
        i, out = _evaluated(denoiser, process, x, step)
        x0 = process.posterior(out, x, i, denoiser.bound).x0
        if step == 0:
            return x0
        h = math.log(alpha[step - 1] / sigma[step - 1]) - math.log(alpha[step] / sigma[step])
        data = x0 if last is None else (1 + h / (2 * last_h)) * x0 - h / (2 * last_h) * last
        x = float(sigma[step - 1] / sigma[step]) * x - float(alpha[step - 1]) * math.expm1(-h) * data
        last, last_h = x0, h
    return x


def euler(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    """A flow's ordinary differential equation from t = 0 to 1 in equal steps; first order."""
    for step in range(steps):
        x = x + _velocity(denoiser, x, step / steps) / steps
    return x


def heun(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    """A flow's equation with the mean of the velocities at both ends of each step; second order, two evaluations per step."""
    for step in range(steps):
        start = _velocity(denoiser, x, step / steps)
        end = _velocity(denoiser, x + start / steps, (step + 1) / steps)
        x = x + (start + end) / (2 * steps)
    return x


def _velocity(denoiser: Denoiser, x: Tensor, time: float) -> Tensor:
    velocity = denoiser.predict(x, torch.full((len(x),), time, device=x.device))[:, : x.shape[1]]
    if denoiser.bound is None or time == 1:
        return velocity
    return ((x + (1 - time) * velocity).clamp(-denoiser.bound, denoiser.bound) - x) / (1 - time)


def _diffusion(denoiser: Denoiser) -> GaussianDiffusion:
    assert isinstance(denoiser.prediction, Steps), "sampler_named refuses flows"
    return denoiser.prediction.diffusion


def _process(denoiser: Denoiser, steps: int) -> GaussianDiffusion:
    if steps < 2:
        raise ValueError("1 sampling step would end in noise; take at least 2")
    return _diffusion(denoiser).respaced(steps)


def _evaluated(denoiser: Denoiser, process: GaussianDiffusion, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The step as (N,), and the model's output there, converted to a prediction of the noise."""
    i = torch.full((len(x),), step, device=x.device)
    out = denoiser.predict(x, torch.full_like(i, int(process.timestep_map[step])))
    if isinstance(denoiser.prediction, V):
        # ε = √ᾱ·v + √(1-ᾱ)·x_t
        product = process.alphas_cumprod
        out = at(product.sqrt(), i, x) * out[:, : x.shape[1]] + at((1 - product).sqrt(), i, x) * x
    return i, out


SAMPLER_FUNCTIONS: Mapping[str, SamplerFunction] = covering(
    Sampler, {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm, "euler": euler, "heun": heun}
)
"""By the name of the sampler."""


def sampler_named(name: str | None, prediction: Prediction) -> tuple[str, SamplerFunction]:
    """The name and the function of a sampler.

    Args:
        name: The sampler's name, or None for the default of the prediction: ddim, or heun for a flow.
        prediction: The prediction that the model was trained for.

    Raises:
        ToolkitError: The prediction cannot be sampled with a sampler of that name.
    """
    name = name or DEFAULT_SAMPLERS[prediction.kind]
    if name not in SAMPLERS[prediction.kind]:
        fitting = ", ".join(SAMPLERS[prediction.kind])
        raise ToolkitError(f"sampler {name} does not fit the model, whose prediction takes {fitting}")
    return name, SAMPLER_FUNCTIONS[name]
