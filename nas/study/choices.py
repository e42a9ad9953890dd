"""The names that keys of a study may have, and what fits what; imports nothing, so that commands can list them at once."""

from __future__ import annotations

from typing import Literal

SearcherKind = Literal["random", "tpe", "nsga2", "gp"]
"""Of `search.sampler.kind`; `nas.search.proposals.SEARCHERS` has their classes."""

Mode = Literal["stop", "promote", "none"]
"""Of `budget.mode`; `nas.search.pruning.RULES` has their rules."""

WAITS: dict[Mode, bool] = {"stop": False, "promote": True, "none": False}
"""Whether architectures wait at a rung until the rule promotes them."""

ExtractorName = Literal["clothes", "inception"]
"""Of `evaluation.fid.extractor`; `nas.evaluation.extractors` makes them."""

FEATURES: dict[ExtractorName, dict[str, int]] = {
    "clothes": {"fid": 64, "sfid": 128},
    "inception": {"fid": 2048, "sfid": 2023},
}
"""The numbers of features between whose distributions each extractor's Fréchet distances are."""

Sampler = Literal["ddpm", "ddim", "dpm++", "euler", "heun"]
"""Diffusion samplers; `nas.diffusion.samplers` has their functions."""

SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "epsilon": ("ddpm", "ddim", "dpm++"),
    "v": ("ddpm", "ddim", "dpm++"),
    "flow": ("euler", "heun"),
}
"""The samplers that fit each prediction."""

DEFAULT_SAMPLERS: dict[str, Sampler] = {"epsilon": "ddim", "v": "ddim", "flow": "heun"}
