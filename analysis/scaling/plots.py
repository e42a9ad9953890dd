"""The figure of a scaling fit: `scaling_info` computes what is shown and `plot_scaling_fit` draws it."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from analysis.figures import new_axes
from analysis.scaling.crossings import BEYOND, Crossover, scaling_crossover
from analysis.scaling.fit import Family, ScalingFit

_LABELS = {
    "train_tflops": "training TFLOPs (multiply-accumulates / 1e12)",
    "train_gflops": "training GFLOPs a sample (multiply-accumulates / 1e9)",
    "gflops": "GFLOPs (multiply-accumulates / 1e9)",
    "val_loss": "validation loss",
    "fid": "FID",
}
_FOLDS = 3
"""The metric's axis is logarithmic where its values span more than this factor."""


@dataclass(frozen=True)
class ScalingInfo:
    """The content of the figure of a scaling fit."""

    points: pd.DataFrame
    """The budgets: family, compute, mean, sd, seeds."""
    lines: pd.DataFrame
    """The curves: family, compute, value, low, high (95 % of the resamples), beyond (whether the compute exceeds the budgets)."""
    predictions: pd.DataFrame
    """The held-out budgets: family, compute, value, low, high."""
    labels: dict[str, str]
    """The legend's text per family."""
    crossings: tuple[Crossover, ...]
    """The pairs of fitted curves that cross."""


def scaling_info(fit: ScalingFit) -> ScalingInfo:
    """The content of the figure: points of all families, and curves up to four times the largest budget where the fit has one.

    >>> from analysis.scaling.fit import scaling_fit
    >>> rows = [("DiT", s, c, 0.3 + c**-0.5 + 0.001 * ((3 * s + c) % 5)) for s in range(6) for c in (1, 2, 4, 8, 16, 32)]
    >>> info = scaling_info(scaling_fit(pd.DataFrame(rows, columns=["family", "seed", "train_tflops", "val_loss"])))
    >>> info.labels["DiT"]
    'DiT: α = 0.50 [0.49, 0.51], E = 0.301 [0.296, 0.307], lack of fit p = 0.97'
    """
    fitted = [family for family in fit.families if not family.problem]
    lines = [_line(family) for family in fitted]
    crossovers = [scaling_crossover(fit, one.name, other.name) for one, other in combinations(fitted, 2)]
    rows = fit.table.dropna(subset="predicted")
    return ScalingInfo(
        points=pd.concat([family.points.assign(family=family.name) for family in fit.families], ignore_index=True),
        lines=pd.concat(lines, ignore_index=True) if lines else pd.DataFrame(columns=["family", *_LINE]),
        predictions=rows[["family", "held_out", "predicted", "predicted_low", "predicted_high"]].set_axis(
            ["family", "compute", "value", "low", "high"], axis=1
        ),
        labels={family.name: _label(fit, family) for family in fit.families},
        crossings=tuple(crossover for crossover in crossovers if math.isfinite(crossover.compute)),
    )


def plot_scaling_fit(fit: ScalingFit, ax: Axes | None = None) -> Axes:
    """Draw the budgets' means with the standard deviation over seeds, and the fitted curves, dashed beyond the data.

    Bands are 95 % of the resamples. A cross with a bar beside the largest budget is its prediction from the others. A diamond is a
    crossing of two curves, with its interval. Families without a curve are points, and the legend gives the reason.

    >>> from analysis.scaling.fit import scaling_fit
    >>> rows = [("DiT", s, c, 0.3 + c**-0.5 + 0.001 * ((3 * s + c) % 5)) for s in range(6) for c in (1, 2, 4, 8, 16, 32)]
    >>> ax = plot_scaling_fit(scaling_fit(pd.DataFrame(rows, columns=["family", "seed", "train_tflops", "val_loss"])))
    >>> ax.get_xscale()
    'log'
    """
    info = scaling_info(fit)
    ax = ax or new_axes()
    colours = dict(zip(info.labels, sns.color_palette(n_colors=len(info.labels)), strict=True))
    for family, points in info.points.groupby("family"):
        colour = colours[str(family)]
        ax.errorbar(points["compute"], points["mean"], points["sd"].fillna(0), fmt="o", ms=5, color=colour, zorder=3)
        line = info.lines[info.lines["family"] == family]
        if len(line):
            within, beyond = line[~line["beyond"].astype(bool)], line[line["compute"] >= points["compute"].max()]
            ax.plot(within["compute"], within["value"], color=colour)
            ax.plot(beyond["compute"], beyond["value"], color=colour, linestyle="--")
            ax.fill_between(line["compute"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
        ax.plot([], [], color=colour, marker="o", linestyle="-" if len(line) else "", label=info.labels[str(family)])
    _draw_predictions(info, colours, ax)
    _draw_crossings(fit, info, ax)
    _scale(info, ax)
    ax.set(xlabel=_LABELS.get(fit.compute, fit.compute), ylabel=_LABELS.get(fit.metric, fit.metric))
    ax.legend(fontsize=8)
    return ax


_LINE = ["compute", "value", "low", "high", "beyond"]


def _line(family: Family) -> pd.DataFrame:
    law, resampled = family.curves
    start, end = family.points["compute"].min(), family.points["compute"].max()
    # The largest budget belongs to both parts, so that the dashes begin where the line ends.
    compute = np.concatenate([np.geomspace(start, end, 60), np.geomspace(end, BEYOND * end, 40)[1:]])
    low, high = np.percentile(resampled.at(compute), [2.5, 97.5], axis=0)
    columns = dict(zip(_LINE, (compute, law.at(compute)[0], low, high, np.arange(len(compute)) >= 60), strict=True))
    return pd.DataFrame({"family": family.name, **columns})


def _label(fit: ScalingFit, family: Family) -> str:
    if family.problem:
        return textwrap.fill(f"{family.name}: no line, {family.problem}", 60)
    row = fit.table[fit.table["family"] == family.name].iloc[0]
    alpha = f"α = {row['alpha']:.2f} [{row['alpha_low']:.2f}, {row['alpha_high']:.2f}]"
    label = f"{family.name}: {alpha}, E = {row['E']:.3g} [{row['E_low']:.3g}, {row['E_high']:.3g}]"
    if family.doubt:
        return textwrap.fill(f"{label}; {family.doubt}", 60)
    return label if math.isnan(row["lack_of_fit"]) else f"{label}, lack of fit p = {row['lack_of_fit']:.2g}"


def _draw_predictions(info: ScalingInfo, colours: dict[str, tuple[float, float, float]], ax: Axes) -> None:
    # A little to the right of the point and of each other, so that they do not hide it.
    step = (BEYOND * info.points["compute"].max() / info.points["compute"].min()) ** 0.012
    columns = (info.predictions[name].to_numpy() for name in ("family", "compute", "value", "low", "high"))
    for index, (family, compute, value, low, high) in enumerate(zip(*columns, strict=True)):
        error = [[max(value - low, 0)], [max(high - value, 0)]]
        at = compute * step ** (index + 1)
        ax.errorbar([at], [value], error, fmt="x", ms=6, mew=1.6, capsize=3, linewidth=1.2, color=colours[family], zorder=4)
    if len(info.predictions):
        ax.plot([], [], "x", color="0.2", label="largest budget, predicted from the others")


def _draw_crossings(fit: ScalingFit, info: ScalingInfo, ax: Axes) -> None:
    start, end = info.points["compute"].min(), BEYOND * info.points["compute"].max()
    for crossing in info.crossings:
        value = fit.family(crossing.one).curves[0].at(crossing.compute)[0, 0]
        low, high = max(crossing.low, start), min(crossing.high, end)
        ax.plot([low, high], [value, value], color="0.2", linewidth=1.2, zorder=4)
        ax.plot([low], [value], "|" if crossing.low >= start else "<", color="0.2", zorder=4)
        ax.plot([high], [value], "|" if crossing.high <= end else ">", color="0.2", zorder=4)
        ax.plot([crossing.compute], [value], "D", ms=6, color="0.2", zorder=5)
    if info.crossings:
        ax.plot([], [], "D", color="0.2", label="curves cross, arrows where the interval is open")


def _scale(info: ScalingInfo, ax: Axes) -> None:
    """Set axes that show all points and lines; a band that is much wider is cut off."""
    spread = info.points["sd"].fillna(0)
    shown = np.concatenate([info.points["mean"] - spread, info.points["mean"] + spread, info.lines["value"].astype(float)])
    low, high = shown.min(), shown.max()
    ax.set_xscale("log")
    if low > 0 and high > _FOLDS * low:
        ax.set_yscale("log")
        for axis_ticks in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis_ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        ax.set_ylim(low * (low / high) ** 0.08, high * (high / low) ** 0.08)
    else:
        margin = 0.08 * (high - low or abs(high) or 1.0)
        ax.set_ylim(low - margin, high + margin)
