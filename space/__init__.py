"""The architectures that can be built, the ways in which they vary, and what they cost.

Names that need torch (`build`, `load`, `save`, `official`) are imported on first use, so `import space` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from space.costs.cost import Cost, cost
from space.costs.matching import Match, match_cost
from space.costs.memory import Memory, memory
from space.costs.table import CostTable
from space.domains.census import Census, census
from space.domains.domain import Domain, Range
from space.domains.space import SearchSpace, cost_table
from space.errors import ToolkitError
from space.paths import replace
from space.presets import PRESETS, preset
from space.spec import AttentionSpec, FeedForwardSpec, ModelSpec

if TYPE_CHECKING:
    from space import official
    from space.model.network import build
    from space.weights import load, save

__all__ = [
    "PRESETS",
    "AttentionSpec",
    "Census",
    "Cost",
    "CostTable",
    "Domain",
    "FeedForwardSpec",
    "Match",
    "Memory",
    "ModelSpec",
    "Range",
    "SearchSpace",
    "ToolkitError",
    "build",
    "census",
    "cost",
    "cost_table",
    "load",
    "match_cost",
    "memory",
    "official",
    "preset",
    "replace",
    "save",
]

_LATER = {"build": "space.model.network", "load": "space.weights", "save": "space.weights"}
"""The module of each name that is imported on first use."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if name == "official":
        return import_module("space.official")
    raise AttributeError(f"module 'space' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
