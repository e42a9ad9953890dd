"""Figures of a run. For each, an `_info` function computes what is shown and a `plot_` function draws it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from analysis.figures import new_axes
from analysis.runs.data import RunData, require_loaded
from nas.stats.pareto import fronts
from nas.study.budget import EQUAL

_TRAINED = {
    "compute": ("train_tflops", "training TFLOPs (multiply-accumulates / 1e12)", 1e12),
    "steps": ("step", "training steps", 1.0),
    "images": ("images", "training images seen", 1.0),
}
"""By the unit of the budget: the column of reports, the label of an axis, and the units of the budget in one of the axis."""

_STATE_COLOURS = {"COMPLETE": "C0", "PRUNED": "0.65", "RUNNING": "C2", "FAILED": "C3"}


@dataclass(frozen=True)
class FrontInfo:
    """The points of the figure of the front."""

    points: pd.DataFrame
    """The complete trials in order of GFLOPs, in the columns of `RunData.trials` and `on_front`."""
    left_out: int
    """The number of trials without a final value."""


def front_info(data: RunData) -> FrontInfo:
    """The complete trials, and which of them are on the front of val_loss and GFLOPs: those that no other trial dominates."""
    require_loaded(data)
    complete = data.trials[data.trials["state"] == "COMPLETE"]
    if complete.empty:
        empty = pd.DataFrame({name: pd.Series(dtype=float) for name in ("trial", "gflops", "val_loss")})
        return FrontInfo(empty.assign(on_front=pd.Series(dtype=bool)), len(data.trials))
    points = complete.sort_values(["gflops", "val_loss"]).reset_index(drop=True)
    on_front = points.index.isin(fronts(points[["val_loss", "gflops"]].to_numpy(dtype=float))[0])
    return FrontInfo(points.assign(on_front=on_front), len(data.trials) - len(points))


def plot_front(data: RunData, ax: Axes | None = None) -> Axes:
    """Draw validation loss against inference GFLOPs for the complete trials, with steps along their front.

    Args:
        data: The result of `analysis.load`.
        ax: The axes to draw on; those of a new figure by default.
    """
    info = front_info(data)
    ax = ax or new_axes()
    points = info.points
    sns.scatterplot(points[~points["on_front"]], x="gflops", y="val_loss", color="0.6", s=40, label="complete", ax=ax)
    front = points[points["on_front"]]
    ax.step(front["gflops"], front["val_loss"], where="post", color="C0", linewidth=1.2)
    sns.scatterplot(front, x="gflops", y="val_loss", color="C0", s=60, label="front", ax=ax, zorder=3)
    for _, point in front.iterrows():
        ax.annotate(
            str(point["trial"]), (point["gflops"], point["val_loss"]), xytext=(5, 5), textcoords="offset points", fontsize=9
        )
    budget = data.study.budget
    trained = f"{budget.full / 1e12:.3g} training TFLOPs" if budget.unit == "compute" else f"{budget.full:,} {budget.unit}"
    ax.set(xlabel="GFLOPs (multiply-accumulates / 1e9, folded, batch 1)", ylabel=f"validation loss after {trained}")
    ax.set_title(f"{data.name}: {len(points)} complete trials at {EQUAL[budget.unit]}, {info.left_out} without a final value")
    return ax


def curves_info(data: RunData) -> pd.DataFrame:
    """One row per report in the order of drawing: trial, state, phase, step, images, train_tflops, val_loss."""
    require_loaded(data)
    columns = ["trial", "state", "phase", "step", "images", "train_tflops", "val_loss"]
    if data.reports.empty:
        return pd.DataFrame(columns=columns)
    return data.reports[columns].sort_values(["trial", "train_tflops"]).reset_index(drop=True)


def plot_curves(data: RunData, ax: Axes | None = None) -> Axes:
    """Draw validation loss against training so far: a line per trial, coloured by its state, and dotted lines at rungs.

    The training is in the unit of the study's budget: TFLOPs, steps or images seen.

    Args:
        data: The result of `analysis.load`.
        ax: The axes to draw on; those of a new figure by default.
    """
    info, budget = curves_info(data), data.study.budget
    column, label, scale = _TRAINED[budget.unit]
    ax = ax or new_axes()
    colours = {state: colour for state, colour in _STATE_COLOURS.items() if state in set(info["state"])}
    sns.lineplot(
        info,
        x=column,
        y="val_loss",
        hue="state",
        units="trial",
        estimator=None,
        palette=colours or None,
        marker="o",
        markersize=4,
        ax=ax,
    )
    for mark in budget.milestones:
        ax.axvline(mark / scale, color="0.8", linestyle=":", zorder=0)
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="validation loss")
    ax.set_title(f"{data.name}: {info['trial'].nunique()} trials, rungs dotted")
    return ax
