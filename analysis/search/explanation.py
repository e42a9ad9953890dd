"""The explanation of a winner as a table and a figure: what each of its differences from the baseline does at equal GFLOPs."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.ablation.plots import plot_compare
from nas.runs.explanations import Contrast, Explanation
from nas.stats.verdicts import BASELINE
from nas.study.metrics import METRICS
from space.errors import RunError


def explanation_table(found: Explanation) -> pd.DataFrame:
    """What each difference does, as text.

    Args:
        found: The result of `nas.runs.explanations.read_explanation`.

    Returns:
        One row per difference, and one for all together: the path; `baseline` and `winner`, its values there; the effect on the
        metric of taking it back from the winner, with its 95 % interval and verdict; and of adding it alone to the baseline.
    """
    digits = METRICS[found.metric].digits

    def cells(name: str, contrast: Contrast | None) -> dict[str, str]:
        if contrast is None:
            return {name: "", f"{name}: verdict": ""}
        interval = f"{contrast.difference:+.{digits}f} [{contrast.low:+.{digits}f}, {contrast.high:+.{digits}f}]"
        return {name: interval, f"{name}: verdict": contrast.verdict}

    rows = [
        {"difference": effect.path, "baseline": str(effect.before), "winner": str(effect.after)}
        | cells("taken back", effect.taken_back)
        | cells("added alone", effect.added)
        for effect in found.effects
    ]
    together = {"difference": "all together", "baseline": "", "winner": ""} | cells("taken back", None)
    return pd.DataFrame([*rows, together | cells("added alone", found.joint)])


def plot_explanation(found: Explanation, ax: Axes | None = None) -> Axes:
    """Draw how much worse the winner gets without each of its differences from the baseline.

    Args:
        found: The result of `nas.runs.explanations.read_explanation`.
        ax: The axes to draw on; new ones by default.

    Raises:
        RunError: No difference was taken back yet.
    """
    measured = [(f"without {effect.path}", effect.taken_back) for effect in found.effects if effect.taken_back is not None]
    if not measured:
        raise RunError(f"no difference of {found.explained.name} was taken back yet, so there is nothing to draw")
    rows = [
        {
            "variant": name,
            "difference": contrast.difference,
            "ci_low": contrast.low,
            "ci_high": contrast.high,
            "pairs": contrast.pairs,
            "verdict": contrast.verdict,
        }
        for name, contrast in measured
    ]
    winner = {"variant": found.explained.name, "difference": 0.0, "ci_low": 0.0, "ci_high": 0.0, "pairs": 0, "verdict": BASELINE}
    return plot_compare(pd.DataFrame([winner, *rows]), metric=found.metric, ax=ax)
