"""The names of the diffusion samplers and the predictions that each fits; `nas.diffusion.samplers` implements them."""

from __future__ import annotations

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm++", "euler", "heun"]

SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "epsilon": ("ddpm", "ddim", "dpm++"),
    "v": ("ddpm", "ddim", "dpm++"),
    "flow": ("euler", "heun"),
}
"""The samplers that fit each prediction."""

DEFAULT_SAMPLERS: dict[str, Sampler] = {"epsilon": "ddim", "v": "ddim", "flow": "heun"}
