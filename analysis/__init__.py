"""Run directories in; frames, tables and figures out. Needs neither torch nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.plots import curves_info, front_info, plot_curves, plot_front
    from analysis.runs import RunFrames, load_run
    from analysis.tables import ranking_table, render

__all__ = ["RunFrames", "curves_info", "front_info", "load_run", "plot_curves", "plot_front", "ranking_table", "render"]

_HOME = {
    **dict.fromkeys(("RunFrames", "load_run"), "analysis.runs"),
    **dict.fromkeys(("curves_info", "front_info", "plot_curves", "plot_front"), "analysis.plots"),
    **dict.fromkeys(("ranking_table", "render"), "analysis.tables"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
