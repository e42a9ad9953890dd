"""Figures of a run. For each, an `_info` function computes what is shown and a `plot_` function draws it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis.figures import new_axes
from analysis.runs.data import RunData, require_loaded
from nas.stats.pareto import fronts
from nas.study.budget import EQUAL

_LABELS = {
    "val_loss": "validation loss",
    "fid": "FID",
    "fid_infinity": "FID∞",
    "kid": "KID",
    "gflops": "GFLOPs (multiply-accumulates / 1e9, folded, batch 1)",
    "train_gflops": "training GFLOPs (multiply-accumulates / 1e9, one sample)",
    "params_m": "million parameters (folded)",
    "step_seconds": "seconds a training step",
}


def _label(metric: str) -> str:
    return _LABELS.get(metric, metric)


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
    """The complete trials in order of the second axis, in the columns of `RunData.trials` and `on_front`."""
    left_out: int
    """The number of trials without a final value."""
    axes: tuple[str, ...] = ("val_loss", "gflops")
    """The two or three columns that the front is of: the objectives, scores first; by default the metric and GFLOPs."""


def front_info(data: RunData) -> FrontInfo:
    """The complete trials, and which of them are on the front of the objectives: those that no other trial dominates.

    With one objective, and in an ablation, the front is of the metric and GFLOPs.
    """
    require_loaded(data)
    of = data.run.front_axes
    axes = tuple(axis.metric for axis in of)
    complete = data.trials[data.trials["state"] == "COMPLETE"].dropna(subset=list(axes))
    if complete.empty:
        empty = pd.DataFrame({name: pd.Series(dtype=float) for name in dict.fromkeys(("trial", *axes))})
        return FrontInfo(empty.assign(on_front=pd.Series(dtype=bool)), len(data.trials), axes)
    points = complete.sort_values([axes[1], axes[0]]).reset_index(drop=True)
    signs = [1.0 if axis.falls else -1.0 for axis in of]
    on_front = points.index.isin(fronts(points[list(axes)].to_numpy(dtype=float) * signs)[0])
    return FrontInfo(points.assign(on_front=on_front), len(data.trials) - len(points), axes)


def plot_front(data: RunData, ax: Axes | None = None) -> Axes:
    """Draw the first objective against the second for the complete trials, with steps along their front.

    With one objective, and in an ablation, they are the metric and inference GFLOPs. A third objective is the colour.

    Args:
        data: The result of `analysis.load`.
        ax: The axes to draw on; those of a new figure by default.
    """
    info = front_info(data)
    ax = ax or new_axes()
    points, (y, x, *third) = info.points, info.axes
    front, others = points[points["on_front"]], points[~points["on_front"]]
    if third and len(points):
        norm = Normalize(points[third[0]].min(), points[third[0]].max())
        ax.scatter(others[x], others[y], c=others[third[0]], s=40, alpha=0.5, label="complete", norm=norm)
        drawn = ax.scatter(front[x], front[y], c=front[third[0]], s=70, edgecolor="black", label="front", zorder=3, norm=norm)
        ax.figure.colorbar(drawn, ax=ax, label=_label(third[0]))
        ax.legend()
    else:
        sns.scatterplot(others, x=x, y=y, color="0.6", s=40, label="complete", ax=ax)
        falls = data.run.front_axes[1].falls
        ax.step(front[x], front[y], where="post" if falls else "pre", color="C0", linewidth=1.2)
        sns.scatterplot(front, x=x, y=y, color="C0", s=60, label="front", ax=ax, zorder=3)
    for _, point in front.iterrows():
        ax.annotate(str(point["trial"]), (point[x], point[y]), xytext=(5, 5), textcoords="offset points", fontsize=9)
    budget = data.study.budget
    trained = f"{budget.full / 1e12:.3g} training TFLOPs" if budget.unit == "compute" else f"{budget.full:,} {budget.unit}"
    ax.set(xlabel=_label(x), ylabel=f"{_label(y)} after {trained}")
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
