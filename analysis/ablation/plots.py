"""Figures of an ablation's tables. For each, an `_info` function computes what is shown and a `plot_` function draws it.

The tables are those of `comparison` and `attribution` in this package. They carry the metric's name in `attrs["metric"]`. A
table that lost it, such as one read from a file, needs the argument `metric`; without it the axis names no direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import floor, isfinite, log10, nan
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.ablation.attribution import SHAPLEY
from analysis.columns import require_table
from analysis.figures import new_axes, with_minus
from nas.stats.verdicts import BASELINE, BETTER, NO_EVIDENCE, ONE_SEED, WORSE
from nas.study.metrics import lower_is_better
from space.array import Array
from space.errors import ToolkitError

_ALPHA = 0.05
_LABEL_WIDTH = 40
"""Characters per line of a row's label."""

_AXIS_WIDTH = 80
"""Characters per line of the axis label."""

_LEGEND_WIDTH = 80
"""Characters per line of the legend, shared by its verdicts."""

_STYLES = {BETTER: ("#0072b2", "o", True), WORSE: ("#d55e00", "X", True), NO_EVIDENCE: ("0.45", "s", False)}
"""Colour, marker and whether it is filled, per verdict; the three also differ in grey."""

_OTHER = ("0.3", "D", False)
"""The style of rows without a test, such as those of a single seed."""


@dataclass(frozen=True)
class ForestRow:
    """One row of a figure; its numbers are in the unit of the metric."""

    label: str
    value: float
    """The position of the mark."""
    low: float
    """The lower end of the interval; NaN where there is none."""
    high: float
    verdict: str
    """Sets the style of the mark; empty for a row without a verdict."""
    note: str
    """The numbers as text, written at the right."""


@dataclass(frozen=True)
class ForestInfo:
    """The rows of a figure from top to bottom, and the label of its horizontal axis."""

    rows: tuple[ForestRow, ...]
    axis: str


def compare_info(table: pd.DataFrame, metric: str | None = None) -> ForestInfo:
    """The forest plot of a table of `compare`: each variant's difference to the baseline, in the table's order.

    The baseline has no row: it is the zero line. Raises ToolkitError when columns or the baseline's row are missing.
    """
    require_table(table, ("variant", "difference", "ci_low", "ci_high", "pairs", "verdict"), "compare")
    is_baseline = table["verdict"] == BASELINE
    if is_baseline.sum() != 1:
        raise ToolkitError(f"the table has {is_baseline.sum()} rows with the verdict {BASELINE}; give what compare returned")
    shown = table[~is_baseline]
    rows = _rows(shown["variant"], shown[["difference", "ci_low", "ci_high"]], shown["verdict"], shown["pairs"])
    baseline = table.loc[is_baseline, "variant"].iloc[0]
    metric, direction = _metric(table, metric)
    return ForestInfo(rows, f"{metric} minus that of {baseline}, paired by seed{direction}")


def effects_info(table: pd.DataFrame, metric: str | None = None) -> ForestInfo:
    """The forest plot of a table of `factorial_effects`, with the verdicts of `compare`: p_t_holm below 0.05 is evidence.

    Raises ToolkitError when columns are missing.
    """
    require_table(table, ("effect", "value", "ci_low", "ci_high", "p_t_holm", "seeds"), "factorial_effects")
    metric, direction = _metric(table, metric)
    verdicts = []
    for value, p_t_holm, seeds in zip(table["value"], table["p_t_holm"], table["seeds"], strict=True):
        if seeds < 2:
            verdicts.append(ONE_SEED)
        elif p_t_holm >= _ALPHA:
            verdicts.append(NO_EVIDENCE)
        elif not direction:
            verdicts.append("evidence")
        else:
            verdicts.append(BETTER if (value < 0) == lower_is_better(metric) else WORSE)
    rows = _rows(table["effect"], table[["value", "ci_low", "ci_high"]], verdicts, table["seeds"])
    return ForestInfo(rows, f"effect on {metric}, paired by seed{direction}")


def shapley_info(table: pd.DataFrame, metric: str | None = None) -> ForestInfo:
    """The bars of a table of `shapley`: largest first, or in the ladder's order where the values are of that order only.

    The verdict of a row is its `kind`; a row has its share of the total where there is one, with its interval. Raises ToolkitError
    when columns are missing.
    """
    require_table(table, ("component", "share", "share_low", "share_high", "value", "ci_low", "ci_high", "kind"), "shapley")
    if (table["kind"] == SHAPLEY).all():
        table = table.loc[table["value"].abs().sort_values(ascending=False, kind="stable").index]
    metric, direction = _metric(table, metric)
    shares = [
        with_minus(f"   {share:.0%} [{low:.0%}, {high:.0%}]") if isfinite(share) else ""
        for share, low, high in zip(table["share"], table["share_low"], table["share_high"], strict=True)
    ]
    rows = _rows(table["component"], table[["value", "ci_low", "ci_high"]], table["kind"])
    rows = tuple(replace(row, note=row.note + share) for row, share in zip(rows, shares, strict=True))
    total = with_minus(f"{table['value'].sum():+.3g}")
    note = f"; {with_minus(table.attrs['note'])}" if table.attrs.get("note") else ""
    return ForestInfo(rows, f"change of {metric}; all together {total}{direction}{note}")


def ladder_info(table: pd.DataFrame, metric: str | None = None) -> ForestInfo:
    """The steps of a table of `ladder`: from the first rung's mean, each step is the mean of its paired differences.

    With all seeds present, a rung is drawn at its own mean. With a seed missing it is not, as a mean over fewer seeds could
    move against the step. A rung without a pair with the one before is drawn at its paired difference to the first, or
    failing that at its mean. The interval and the note of a rung are those of its step.

    Raises ToolkitError when columns are missing.
    """
    require_table(table, ("variant", "mean", "difference", "step", "step_low", "step_high", "step_pairs", "step_verdict"), "ladder")
    rows: list[ForestRow] = []
    verdicts = table["step_verdict"].replace(BASELINE, "")
    steps = _rows(table["variant"], table[["step", "step_low", "step_high"]], verdicts, table["step_pairs"])
    for row, mean, difference in zip(steps, table["mean"], table["difference"], strict=True):
        candidates = (rows[-1].value + row.value, rows[0].value + difference, mean) if rows else (mean,)
        value = next((float(candidate) for candidate in candidates if isfinite(candidate)), nan)
        moved = value - row.value
        rows.append(replace(row, value=value, low=row.low + moved, high=row.high + moved, note=row.note if rows else ""))
    metric, direction = _metric(table, metric)
    return ForestInfo(tuple(rows), f"{metric} along the paired steps, with their intervals{direction}")


def plot_compare(table: pd.DataFrame, ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw the forest plot of a table of `compare`: differences to the baseline with their intervals, and a line at zero.

    Units and errors are those of `compare_info`.

    >>> table = pd.DataFrame({"variant": ["plain", "conv"], "difference": [0.0, -0.02], "ci_low": [float("nan"), -0.03],
    ...                       "ci_high": [float("nan"), -0.01], "pairs": [6, 6], "verdict": ["baseline", "better"]})
    >>> print(plot_compare(table, metric="val_loss").get_xlabel())
    val_loss minus that of plain, paired by seed (← lower is better)
    """
    return _forest(compare_info(table, metric), ax)


def plot_effects(table: pd.DataFrame, ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw a table of `factorial_effects`: main effects and interactions with their intervals, and a line at zero.

    Units and errors are those of `effects_info`.

    >>> table = pd.DataFrame({"effect": ["a", "b", "a × b"], "value": [-0.03, -0.01, 0.0], "ci_low": [-0.04, -0.03, -0.02],
    ...                       "ci_high": [-0.02, 0.01, 0.02], "p_t_holm": [0.02, 0.6, 0.9], "seeds": 8})
    >>> print(plot_effects(table, metric="val_loss").get_xlabel())
    effect on val_loss, paired by seed (← lower is better)
    """
    return _forest(effects_info(table, metric), ax)


def plot_shapley(table: pd.DataFrame, ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw a table of `shapley`: a bar per component with its interval and, where the total is not zero, its share of the total.

    Units and errors are those of `shapley_info`.

    >>> table = pd.DataFrame({"component": ["a", "b"], "share": [0.25, 0.75], "share_low": [0.0, 0.4], "share_high": [0.6, 1.0],
    ...                       "value": [-0.01, -0.03], "ci_low": [-0.02, -0.04], "ci_high": [0.0, -0.02], "kind": "shapley"})
    >>> print(plot_shapley(table, metric="val_loss").get_xlabel())
    change of val_loss; all together −0.04 (← lower is better)
    """
    info = shapley_info(table, metric)
    ax = ax or _axes(info)
    is_shapley = all(row.verdict == SHAPLEY for row in info.rows)
    for height, row in enumerate(info.rows):
        ax.barh(height, row.value, height=0.6, color="#56b4e9" if is_shapley else "0.75", edgecolor="0.2", linewidth=0.8)
        _interval(ax, height, row, "0.1")
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.set_title(
        "Shapley values, averaged over all orders" if is_shapley else "Change by each component in this order, from top to bottom"
    )
    return _finish(ax, info)


def plot_ladder(table: pd.DataFrame, ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw a table of `ladder` as steps from rung to rung, each with its interval about the value it leads to.

    Units and errors are those of `ladder_info`.

    >>> nan = float("nan")
    >>> table = pd.DataFrame({"variant": ["plain", "+ conv"], "mean": [0.30, 0.28], "difference": [nan, -0.02],
    ...                       "step": [nan, -0.02], "step_low": [nan, -0.03], "step_high": [nan, -0.01],
    ...                       "step_pairs": [0, 6], "step_verdict": ["baseline", "better"]})
    >>> [tick.get_text() for tick in plot_ladder(table, metric="val_loss").get_yticklabels()]
    ['plain', '+ conv']
    """
    info = ladder_info(table, metric)
    ax = ax or _axes(info)
    for height, (before, row) in enumerate(pairwise(info.rows), start=1):
        # The dotted line does not reach down to a rung without a mark.
        ax.plot(
            [before.value] * 2,
            [height - 1, height if isfinite(row.value) else nan],
            color="0.6",
            linewidth=0.8,
            linestyle=":",
            zorder=1,
        )
        colour, _, _ = _STYLES.get(row.verdict, _OTHER)
        ax.plot([before.value, row.value], [height] * 2, color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt", zorder=1)
    _marks(ax, info)
    return _finish(ax, info)


def _forest(info: ForestInfo, ax: Axes | None) -> Axes:
    ax = ax or _axes(info)
    ax.axvline(0, color="0.2", linewidth=0.8, zorder=1)
    _marks(ax, info)
    return _finish(ax, info)


def _marks(ax: Axes, info: ForestInfo) -> None:
    """A mark with its interval per row, and a legend of the verdicts above the axes."""
    for height, row in enumerate(info.rows):
        _interval(ax, height, row, _STYLES.get(row.verdict, _OTHER)[0])
        ax.plot(row.value, height, **_mark(row.verdict), zorder=3)
    verdicts = {row.verdict for row in info.rows} - {""}
    order = [verdict for verdict in _STYLES if verdict in verdicts] + sorted(verdicts - _STYLES.keys())
    handles = [
        Line2D([], [], linestyle="", **_mark(verdict), label=fill(verdict, _LEGEND_WIDTH // len(order))) for verdict in order
    ]
    if handles:
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False, handletextpad=0.2)


def _mark(verdict: str) -> dict[str, Any]:
    colour, marker, filled = _STYLES.get(verdict, _OTHER)
    return {"color": colour, "marker": marker, "markersize": 7, "markerfacecolor": colour if filled else "white"}


def _interval(ax: Axes, height: float, row: ForestRow, colour: str) -> None:
    if isfinite(row.low) and isfinite(row.high):
        ends = [[row.value - row.low], [row.high - row.value]]
        ax.errorbar(row.value, height, xerr=ends, color=colour, linewidth=1.6, capsize=3, zorder=2)


def _finish(ax: Axes, info: ForestInfo) -> Axes:
    """Rows from top to bottom, labels at the left and notes at the right."""
    heights = range(len(info.rows))
    ax.set_yticks(heights, [fill(row.label, _LABEL_WIDTH) for row in info.rows], fontsize=9)
    ax.set_ylim(len(heights) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    # Wide labels such as −0.0025 run into each other where there are more.
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "left", "right"]].set_visible(False)
    right = ax.secondary_yaxis("right")
    right.set_yticks(heights, [row.note for row in info.rows], fontsize=9)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    ax.set_xlabel(fill(info.axis, _AXIS_WIDTH))
    return ax


def _rows(
    labels: Iterable[object], numbers: pd.DataFrame, verdicts: Iterable[object], pairs: Iterable[object] = ()
) -> tuple[ForestRow, ...]:
    """The rows for columns of value, low and high; the number of pairs is noted only where rows differ in it."""
    cells = numbers.to_numpy(dtype=float)
    counts = list(pairs)
    notes = _notes(cells)
    if len(set(counts) - {0}) > 1:
        notes = [f"{note}  ({count} pairs)" if count else note for note, count in zip(notes, counts, strict=True)]
    return tuple(
        ForestRow(str(label), float(value), float(low), float(high), str(verdict), note)
        for label, (value, low, high), verdict, note in zip(labels, cells, verdicts, notes, strict=True)
    )


def _notes(cells: Array) -> list[str]:
    """Value and interval as text, with the decimals that give the largest value three digits."""
    largest = max((abs(value) for value in cells[:, 0] if isfinite(value)), default=0.0)
    decimals = min(max(2 - floor(log10(largest)), 0), 12) if largest else 2
    notes = []
    for value, low, high in cells:
        interval = f" [{low:+.{decimals}f}, {high:+.{decimals}f}]" if isfinite(low) and isfinite(high) else ""
        notes.append(with_minus(f"{value:+.{decimals}f}{interval}") if isfinite(value) else "no pair")
    return notes


def _metric(table: pd.DataFrame, metric: str | None) -> tuple[str, str]:
    """The metric's name, and a text that says which direction is better; the text is empty where that is not known."""
    name = metric or table.attrs.get("metric")
    if not name:
        return "metric", ""
    try:
        return name, " (← lower is better)" if lower_is_better(name) else " (higher is better →)"
    except ToolkitError:
        return name, ""


def _axes(info: ForestInfo) -> Axes:
    lines = sum(max(1, -(-len(row.label) // _LABEL_WIDTH)) for row in info.rows)
    return new_axes(9, 1.5 + 0.16 * len(info.rows) + 0.18 * lines)
