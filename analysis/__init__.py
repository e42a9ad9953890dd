"""Run directories in; frames, tables and figures out. Needs neither torch nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.ablation.attribution import factorial_effects, shapley
    from analysis.ablation.comparison import compare, gain_at_equal_cost, ladder
    from analysis.ablation.frames import AblationFrames, ablation_frames, load_ablation
    from analysis.ablation.plots import plot_compare, plot_effects, plot_ladder, plot_shapley
    from analysis.ablation.tables import AblationTable, ablation_tables
    from analysis.ablation.text import render_tables
    from analysis.papers.plots import plot_fid_by_steps, plot_gflops_fid
    from analysis.papers.tables import (
        correlation,
        fid_by_steps,
        fid_by_steps_fit,
        gflops_fid,
        paper_differences,
        paper_table,
    )
    from analysis.runs.frames import RunFrames, load_run
    from analysis.runs.plots import curves_info, front_info, plot_curves, plot_front
    from analysis.runs.tables import ranking_table, render
    from analysis.scaling.crossings import probability_better, scaling_crossover
    from analysis.scaling.fit import ScalingFit, scaling_fit
    from analysis.scaling.plots import plot_scaling_fit
    from analysis.search.fidelity import rank_fidelity
    from analysis.search.importance import param_importances
    from analysis.search.plots import plot_param_importances, plot_rank_fidelity

__all__ = [
    "AblationFrames",
    "AblationTable",
    "RunFrames",
    "ScalingFit",
    "ablation_frames",
    "ablation_tables",
    "compare",
    "correlation",
    "curves_info",
    "factorial_effects",
    "fid_by_steps",
    "fid_by_steps_fit",
    "front_info",
    "gain_at_equal_cost",
    "gflops_fid",
    "ladder",
    "load_ablation",
    "load_run",
    "paper_differences",
    "paper_table",
    "param_importances",
    "plot_compare",
    "plot_curves",
    "plot_effects",
    "plot_fid_by_steps",
    "plot_front",
    "plot_gflops_fid",
    "plot_ladder",
    "plot_param_importances",
    "plot_rank_fidelity",
    "plot_scaling_fit",
    "plot_shapley",
    "probability_better",
    "rank_fidelity",
    "ranking_table",
    "render",
    "render_tables",
    "scaling_crossover",
    "scaling_fit",
    "shapley",
]

_NAMES = {
    "analysis.ablation.frames": ("AblationFrames", "ablation_frames", "load_ablation"),
    "analysis.ablation.tables": ("AblationTable", "ablation_tables"),
    "analysis.ablation.text": ("render_tables",),
    "analysis.ablation.attribution": ("factorial_effects", "shapley"),
    "analysis.ablation.comparison": ("compare", "gain_at_equal_cost", "ladder"),
    "analysis.ablation.plots": ("plot_compare", "plot_effects", "plot_ladder", "plot_shapley"),
    "analysis.scaling.crossings": ("probability_better", "scaling_crossover"),
    "analysis.search.fidelity": ("rank_fidelity",),
    "analysis.search.plots": ("plot_param_importances", "plot_rank_fidelity"),
    "analysis.search.importance": ("param_importances",),
    "analysis.papers.tables": (
        "correlation",
        "fid_by_steps",
        "fid_by_steps_fit",
        "gflops_fid",
        "paper_differences",
        "paper_table",
    ),
    "analysis.papers.plots": ("plot_fid_by_steps", "plot_gflops_fid"),
    "analysis.runs.plots": ("curves_info", "front_info", "plot_curves", "plot_front"),
    "analysis.runs.frames": ("RunFrames", "load_run"),
    "analysis.scaling.fit": ("ScalingFit", "scaling_fit"),
    "analysis.scaling.plots": ("plot_scaling_fit",),
    "analysis.runs.tables": ("ranking_table", "render"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
