"""The confirmation of a search as a table: what chose each candidate, beside what fresh seeds say of it."""

from __future__ import annotations

import pandas as pd

from analysis.runs.data import RunData, require_loaded
from nas.study.metrics import METRICS
from space.errors import RunError


def confirmation_table(data: RunData) -> pd.DataFrame:
    """The candidates of a search and the baseline that they were compared with, as text.

    Args:
        data: The result of `analysis.load`, of a search with `confirm` that has ended.

    Returns:
        architecture (the baseline first); GFLOPs; `searched`, the value by which the search chose a candidate, which is too good;
        the metric's mean ± SD over the fresh seeds, and `n`, the number of pairs; the difference from the baseline with its
        simultaneous 95 % interval; `p Holm` over all candidates; the verdict.

    Raises:
        RunError: Nothing is confirmed yet.
    """
    require_loaded(data)
    run = data.run
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
            }
        )
    return pd.DataFrame(rows)
