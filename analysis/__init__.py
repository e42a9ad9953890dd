"""Run directories in; frames, tables and figures out. Needs neither torch nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.ablation import AblationFrames, ablation_frames, load_ablation
    from analysis.ablation_tables import AblationTable, ablation_tables
    from analysis.ablation_text import render_tables
    from analysis.attribution import factorial_effects, shapley
    from analysis.comparison import compare, gain_left, ladder
    from analysis.comparison_plots import plot_compare, plot_effects, plot_ladder, plot_shapley
    from analysis.crossings import crossing, probability_better
    from analysis.domain_importance import importance
    from analysis.fidelity import rank_fidelity
    from analysis.fidelity_plots import plot_importance, plot_rank_fidelity
    from analysis.papers import correlation, fid_by_steps, fid_by_steps_fit, gflops_fid, paper_differences, paper_table
    from analysis.papers_plots import plot_fid_by_steps, plot_gflops_fid
    from analysis.plots import curves_info, front_info, plot_curves, plot_front
    from analysis.runs import RunFrames, load_run
    from analysis.scaling import ScalingFit, scaling_fit
    from analysis.scaling_plots import plot_scaling_fit
    from analysis.tables import ranking_table, render

__all__ = [
    "AblationFrames",
    "AblationTable",
    "RunFrames",
    "ScalingFit",
    "ablation_frames",
    "ablation_tables",
    "compare",
    "correlation",
    "crossing",
    "curves_info",
    "factorial_effects",
    "fid_by_steps",
    "fid_by_steps_fit",
    "front_info",
    "gain_left",
    "gflops_fid",
    "importance",
    "ladder",
    "load_ablation",
    "load_run",
    "paper_differences",
    "paper_table",
    "plot_compare",
    "plot_curves",
    "plot_effects",
    "plot_fid_by_steps",
    "plot_front",
    "plot_gflops_fid",
    "plot_importance",
    "plot_ladder",
    "plot_rank_fidelity",
    "plot_scaling_fit",
    "plot_shapley",
    "probability_better",
    "rank_fidelity",
    "ranking_table",
    "render",
    "render_tables",
    "scaling_fit",
    "shapley",
]

_NAMES = {
    "analysis.ablation": ("AblationFrames", "ablation_frames", "load_ablation"),
    "analysis.ablation_tables": ("AblationTable", "ablation_tables"),
    "analysis.ablation_text": ("render_tables",),
    "analysis.attribution": ("factorial_effects", "shapley"),
    "analysis.comparison": ("compare", "gain_left", "ladder"),
    "analysis.comparison_plots": ("plot_compare", "plot_effects", "plot_ladder", "plot_shapley"),
    "analysis.crossings": ("crossing", "probability_better"),
    "analysis.fidelity": ("rank_fidelity",),
    "analysis.fidelity_plots": ("plot_importance", "plot_rank_fidelity"),
    "analysis.domain_importance": ("importance",),
    "analysis.papers": ("correlation", "fid_by_steps", "fid_by_steps_fit", "gflops_fid", "paper_differences", "paper_table"),
    "analysis.papers_plots": ("plot_fid_by_steps", "plot_gflops_fid"),
    "analysis.plots": ("curves_info", "front_info", "plot_curves", "plot_front"),
    "analysis.runs": ("RunFrames", "load_run"),
    "analysis.scaling": ("ScalingFit", "scaling_fit"),
    "analysis.scaling_plots": ("plot_scaling_fit",),
    "analysis.tables": ("ranking_table", "render"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
