"""Run directories in; frames, tables and figures out.

`import analysis` is light: a module is imported when one of its names is first used.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The table of public names, for type checkers and for `__getattr__`, which reads this file.
    from analysis.ablation.attribution import factorial_effects as factorial_effects
    from analysis.ablation.attribution import shapley as shapley
    from analysis.ablation.comparison import compare as compare
    from analysis.ablation.comparison import gain_at_equal_cost as gain_at_equal_cost
    from analysis.ablation.comparison import ladder as ladder
    from analysis.ablation.plots import plot_compare as plot_compare
    from analysis.ablation.plots import plot_effects as plot_effects
    from analysis.ablation.plots import plot_ladder as plot_ladder
    from analysis.ablation.plots import plot_shapley as plot_shapley
    from analysis.ablation.tables import AblationTable as AblationTable
    from analysis.ablation.tables import ablation_tables as ablation_tables
    from analysis.ablation.text import render_tables as render_tables
    from analysis.papers.plots import plot_fid_by_steps as plot_fid_by_steps
    from analysis.papers.plots import plot_gflops_fid as plot_gflops_fid
    from analysis.papers.tables import correlation as correlation
    from analysis.papers.tables import fid_by_steps as fid_by_steps
    from analysis.papers.tables import fid_by_steps_fit as fid_by_steps_fit
    from analysis.papers.tables import gflops_fid as gflops_fid
    from analysis.papers.tables import paper_differences as paper_differences
    from analysis.papers.tables import paper_table as paper_table
    from analysis.runs.ablation import AblationFrames as AblationFrames
    from analysis.runs.data import RunData as RunData
    from analysis.runs.data import load as load
    from analysis.runs.plots import curves_info as curves_info
    from analysis.runs.plots import front_info as front_info
    from analysis.runs.plots import plot_curves as plot_curves
    from analysis.runs.plots import plot_front as plot_front
    from analysis.runs.tables import ranking_table as ranking_table
    from analysis.runs.tables import render as render
    from analysis.scaling.crossings import probability_better as probability_better
    from analysis.scaling.crossings import scaling_crossover as scaling_crossover
    from analysis.scaling.fit import ScalingFit as ScalingFit
    from analysis.scaling.fit import scaling_fit as scaling_fit
    from analysis.scaling.plots import plot_scaling_fit as plot_scaling_fit
    from analysis.search.fidelity import rank_fidelity as rank_fidelity
    from analysis.search.importance import param_importances as param_importances
    from analysis.search.plots import plot_param_importances as plot_param_importances
    from analysis.search.plots import plot_rank_fidelity as plot_rank_fidelity

_MODULE_OF = {
    alias.name: node.module
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("analysis.")
    for alias in node.names
}
__all__ = sorted(_MODULE_OF)

if not TYPE_CHECKING:  # so that type checkers report a name that is not in the table

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            return getattr(import_module(_MODULE_OF[name]), name)
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
