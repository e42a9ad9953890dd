"""The names of the diffusion samplers, and which of them fit which prediction; `nas.diffusion.samplers` has their functions."""

from __future__ import annotations

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm++", "euler", "heun"]

SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "epsilon": ("ddpm", "ddim", "dpm++"),
    "v": ("ddpm", "ddim", "dpm++"),
    "flow": ("euler", "heun"),
}
"""By prediction: the samplers that fit it."""

DEFAULT_SAMPLERS: dict[str, Sampler] = {"epsilon": "ddim", "v": "ddim", "flow": "heun"}
