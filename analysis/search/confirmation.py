"""The confirmation of a search as a table and a figure: what chose each candidate, beside what fresh seeds say of it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.runs.data import RunData, require_loaded
from analysis.runs.tables import architecture_texts
from nas.stats.verdicts import BETTER, WORSE
from nas.study.metrics import METRICS
from space.errors import RunError


def confirmation_table(data: RunData) -> pd.DataFrame:
    """The candidates of a search and the baseline that they were compared with, as text.

    Args:
        data: The result of `analysis.load`, of a search with `confirm` that has ended.

    Returns:
        architecture (the baseline first); GFLOPs; `searched`, the value by which the search chose a candidate, which is too good;
        the metric's mean ± SD over the fresh seeds, and `n`, the number of pairs; the difference from the baseline with its
        simultaneous 95 % interval; `p Holm` over all candidates; the verdict; what separates a candidate from the study's model.

    Raises:
        RunError: Nothing is confirmed yet.
    """
    require_loaded(data)
    run, architectures = data.run, architecture_texts(data)
    if run.confirmed is None:
        raise RunError(f"{data.name} has no confirmation yet; run it to its end, or nas confirm RUN where it has ended")
    result = run.confirmed.result
    digits = METRICS[result.metric].digits

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{digits}f}"

    def with_sd(mean: float | None, sd: float | None) -> str:
        return number(mean) + (f" ± {number(sd)}" if sd is not None else "")

    fresh, difference = f"{result.metric}, fresh seeds", "difference [95 %]"
    rows = [
        {
            "architecture": result.baseline,
            "GFLOPs": f"{result.gflops:.4f}",
            "searched": "",
            fresh: with_sd(result.mean, result.sd),
            "n": "",
            difference: "",
            "p Holm": "",
            "verdict": "baseline",
            str(architectures.name): "",
        }
    ]
    for one in result.candidates:
        has_interval = one.low is not None and one.high is not None
        rows.append(
            {
                "architecture": f"trial {one.trial}",
                "GFLOPs": f"{run.trials[one.trial].cost.gflops:.4f}",
                "searched": number(one.searched),
                fresh: with_sd(one.mean, one.sd),
                "n": str(one.pairs),
                difference: number(one.difference, "+")
                + (f" [{number(one.low, '+')}, {number(one.high, '+')}]" if has_interval else ""),
                "p Holm": "" if one.p is None else "< 0.001" if one.p < 0.001 else f"{one.p:.3f}",
                "verdict": one.verdict,
                str(architectures.name): architectures[one.trial],
            }
        )
    return pd.DataFrame(rows)


def plot_confirmation(data: RunData, ax: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """Draw what a search found on the first axes, and what fresh seeds say of its best on the second.

    On the first, the complete trials by rank at their last rung, the hand-made architecture marked where it was among them, and the
    candidates ringed. On the second, the baseline's mean over the fresh seeds as a line, and each candidate at that mean plus its
    paired difference, with the simultaneous 95 % interval of the difference; filled where it is claimed to be better or worse.

    Args:
        data: The result of `analysis.load`, of a search with `confirm` that has ended.
        ax: A pair of axes to draw on; those of a new figure by default.

    Raises:
        RunError: Nothing is confirmed yet, or the baseline failed at every fresh seed.
    """
    require_loaded(data)
    run = data.run
    mean = run.confirmed.result.mean if run.confirmed else None
    if run.confirmed is None or mean is None:
        raise RunError(f"{data.name} has no confirmation to draw; run it to its end, or nas confirm RUN where it has ended")
    result = run.confirmed.result
    searched, fresh = ax if ax is not None else _pair()
    ranked = run.standings()
    hand_made = run.study.hand_made[1].digest
    for rank, standing in enumerate(ranked, start=1):
        number, own = standing.trial.number, standing.trial.digest == hand_made
        searched.plot(rank, standing.mean, "D" if own else "o", color="#d55e00" if own else "0.6", markersize=7, zorder=2)
        if own:
            searched.annotate(
                run.study.hand_made[0], (rank, standing.mean), xytext=(-8, -3), textcoords="offset points", ha="right"
            )
        if number in run.candidates:
            searched.plot(rank, standing.mean, "o", color="#0072b2", markersize=13, fillstyle="none", zorder=3)
            searched.annotate(str(number), (rank, standing.mean), xytext=(0, 10), textcoords="offset points", ha="center")
    searched.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = "one seed" if ranked[0].seeds == 1 else f"{ranked[0].seeds} seeds"
    searched.set(xlabel=f"rank of {len(ranked)} complete trials", ylabel=f"{result.metric} in the search, {seeds}")
    searched.set_title("the search chooses candidates")
    fresh.axhline(mean, color="#d55e00", linewidth=1.5)
    fresh.annotate(result.baseline, (0.02, mean), xycoords=("axes fraction", "data"), xytext=(0, -12), textcoords="offset points")
    for place, one in enumerate(result.candidates):
        if one.difference is None or one.low is None or one.high is None:
            continue
        ends = [[one.difference - one.low], [one.high - one.difference]]
        claimed = one.verdict in (BETTER, WORSE)
        fresh.errorbar(
            place,
            mean + one.difference,
            yerr=ends,
            fmt="o",
            color="#0072b2",
            capsize=4,
            markerfacecolor=None if claimed else "w",
        )
    fresh.set_xticks(range(len(result.candidates)), [f"trial {one.trial}\n{one.verdict}" for one in result.candidates])
    fresh.set_xlim(-0.6, len(result.candidates) - 0.4)
    pairs = max(one.pairs for one in result.candidates)
    fresh.set(ylabel=f"{result.metric}, {pairs} fresh paired seeds")
    fresh.set_title("fresh seeds decide (difference from the line, 95 %)")
    return searched, fresh


def _pair() -> tuple[Axes, Axes]:
    _, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    return axes[0], axes[1]
