"""Figures of rank fidelity and of parameter importances."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from analysis.columns import require_table
from analysis.figures import new_axes
from space.errors import ToolkitError

_COMPUTE = "training TFLOPs (multiply-accumulates / 1e12)"


def plot_rank_fidelity(table: pd.DataFrame, ax: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """Draw the table of `analysis.rank_fidelity`: τ on the first axes and the regret on the second, both against training compute.

    Points are τ within seeds over the complete architectures with their intervals. The band is the bounds of τ over all of the
    rung's architectures, for any values of the censored ones; below it is the number of complete architectures per rung. Squares
    are τ across seeds, and the dotted line is the noise ceiling; without replicates the legend says that luck counts as fidelity.
    A rung has no regret where none of its best has a final value. Without compute in the table, the horizontal axis is the rung.

    Args:
        table: The result of `analysis.rank_fidelity`.
        ax: A pair of axes to draw on; those of a new figure by default.

    Returns:
        The pair of axes.

    Raises:
        ToolkitError: Columns are missing.

    >>> from analysis.search.fidelity import rank_fidelity
    >>> frame = pd.DataFrame({"trial": [0, 1, 2, 0, 1, 2], "rung": [1, 1, 1, 2, 2, 2], "val_loss": [3, 2, 1, 2, 3, 1]})
    >>> tau, regret = plot_rank_fidelity(rank_fidelity(frame))
    >>> tau.get_ylabel()
    "Kendall's τ against the last rung"
    """
    needed = ["rung", "train_tflops", "complete", "architectures", "tau_within", "tau_least", "tau_across", "top_regret"]
    require_table(table, needed, "rank_fidelity")
    tau, regret = ax if ax is not None else _pair()
    at = table["train_tflops"] if table["train_tflops"].notna().all() else table["rung"]
    if (table["complete"] < table["architectures"]).any():
        tau.fill_between(at, table["tau_least"], table["tau_most"], color="0.88", label="bounds over all", zorder=0)
    few = "" if table["within_low"].notna().any() else ", too few for intervals"
    ceiling = table["tau_across"].iloc[-1]
    luck = "" if np.isfinite(ceiling) else "\n(no replicates: a training's luck counts as fidelity)"
    _with_interval(tau, at, table, "tau_within", "C0", f"within seeds, complete ones{few}{luck}")
    if np.isfinite(ceiling):
        _with_interval(tau, at, table, "tau_across", "C1", "across seeds", marker="s")
        tau.axhline(ceiling, color="C1", linewidth=1, linestyle=":", zorder=1, label="noise ceiling: two full trainings")
    for compute, row in zip(at, table.itertuples(), strict=True):
        counts = f"{row.complete} of {row.architectures}"
        tau.annotate(counts, (compute, 0.02), xycoords=tau.get_xaxis_transform(), fontsize=8, ha="center")
    tau.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    lowest = np.nanmin([0.0, *table["tau_least"], *table["within_low"], *table["across_low"], *table["tau_across"]])
    tau.set(ylim=(max(-1.0, lowest) - 0.25, 1.08), ylabel="Kendall's τ against the last rung", title="order of the architectures")
    tau.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, frameon=False)
    metric, top = table.attrs.get("metric", "metric"), table.attrs.get("top", "k")
    _with_interval(regret, at, table, "top_regret", "C3", "")
    regret.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    regret.set(ylabel=f"regret ({metric} at the last rung)", title=f"the cost of keeping only a rung's best {top}")
    for axes in (tau, regret):
        _compute_axis(axes, at, table)
    return tau, regret


def plot_param_importances(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the table of `analysis.param_importances`: a point per parameter and rung with its interval, early rungs pale.

    The parameter with the greatest importance at any rung is at the top. A tick is the importance by chance, corrected for all
    parameters and rungs of the table; a point that is not above its tick is hollow. Rungs without importances are left out.
    Training settings, which are tuned beside the architectures, are marked as nuisance.

    Args:
        table: The result of `analysis.param_importances`.
        ax: The axes to draw on; those of a new figure by default.

    Raises:
        ToolkitError: Columns are missing, or no rung has importances.

    >>> table = pd.DataFrame({"rung": [1, 1], "train_tflops": [0.5, 0.5], "parameter": ["channels", "heads"],
    ...                       "importance": [0.9, 0.1], "low": [0.7, 0.0], "high": [0.95, 0.3], "chance": [0.3, 0.3],
    ...                       "trials": [24, 24], "censored": [0, 0]})
    >>> [label.get_text() for label in plot_param_importances(table).get_yticklabels()]
    ['channels', 'heads']
    """
    require_table(
        table,
        ["rung", "train_tflops", "parameter", "importance", "low", "high", "chance", "trials", "censored"],
        "param_importances",
    )
    drawn = table[table["importance"].notna()]
    if drawn.empty:
        raise ToolkitError("the table has no importances to draw; every rung has too few trials, or values that are all equal")
    rungs = sorted(drawn["rung"].unique())
    names = drawn.groupby("parameter")["importance"].max().sort_values(ascending=False, kind="stable").index.tolist()
    ax = ax or new_axes(10, 1.4 + 0.2 * len(names) * max(2, len(rungs)))
    colours = sns.color_palette("flare", len(rungs)) if len(rungs) > 1 else ["C0"]
    for index, (rung, colour) in enumerate(zip(rungs, colours, strict=True)):
        of_rung = drawn[drawn["rung"] == rung].set_index("parameter").reindex(names)
        height = np.arange(len(names)) + 0.7 * ((index + 0.5) / len(rungs) - 0.5)
        above = of_rung["importance"] > of_rung["chance"]
        ax.hlines(height, of_rung["low"], of_rung["high"], color=colour, linewidth=1.6)
        ax.scatter(
            of_rung["importance"],
            height,
            s=34,
            color=[colour if filled else "white" for filled in above],
            edgecolor=colour,
            zorder=3,
        )
        ax.scatter(of_rung["chance"], height, marker="|", s=70, color="0.25", zorder=2)
        ax.scatter([], [], s=34, color=colour, label=_rung_label(of_rung.dropna().iloc[0]))
    ax.scatter([], [], marker="|", s=70, color="0.25", label=f"chance: any in 5 % of tables{_shuffles(table)}")
    for line in np.arange(len(names) - 1) + 0.5:
        ax.axhline(line, color="0.9", linewidth=0.8, zorder=0)
    tuned = set(drawn.loc[drawn["nuisance"], "parameter"]) if "nuisance" in drawn else set()
    ax.set_yticks(range(len(names)), [f"{name} (nuisance)" if name in tuned else name for name in names])
    ax.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="share of all importances (hollow: not above chance)")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    best = table.attrs.get("best")
    ax.set_title("importance for being among the best" + (f" {best:.0%} of a rung" if best else " of a rung"))
    return ax


def _shuffles(table: pd.DataFrame) -> str:
    return f"\n({table.attrs['shuffles']} shuffles)" if "shuffles" in table.attrs else ""


def _rung_label(row: pd.Series) -> str:
    compute = f", {row['train_tflops']:.3g} TFLOPs" if row["train_tflops"] == row["train_tflops"] else ""
    censored = f", {row['censored']:.0f} censored" if row["censored"] else ""
    return f"rung {row['rung']:.0f}{compute}: {row['trials']:.0f} trials{censored}"


def _with_interval(ax: Axes, at: pd.Series, table: pd.DataFrame, name: str, colour: str, label: str, marker: str = "o") -> None:
    """A line through the estimates, with a bar where there is an interval."""
    short = name.removeprefix("top_").removeprefix("tau_")
    ax.plot(at, table[name], color=colour, marker=marker, markersize=5, linewidth=1.2, label=label or None)
    ax.vlines(at, table[f"{short}_low"], table[f"{short}_high"], color=colour, linewidth=2, alpha=0.5)


def _compute_axis(ax: Axes, at: pd.Series, table: pd.DataFrame) -> None:
    """The rungs along the horizontal axis, at their compute where the table has it."""
    ax.margins(x=0.1)
    if at.name == "rung":
        ax.set(xlabel="rung", xticks=table["rung"].tolist())
        return
    ax.set(xscale="log", xlabel=f"{_COMPUTE}, at rungs")
    ax.xaxis.set_major_locator(FixedLocator(at.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{tflops:.3g}" for tflops in at])


def _pair() -> tuple[Axes, Axes]:
    _, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    return axes[0], axes[1]
