"""Screening of the differences between a winner and the baseline by the search's own trials, where they are too many to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.runs.run import Run
from space.paths import PER_STAGE_PATHS, plain_value
from space.spec import ModelSpec
from space.stage import at_stage

LEAST = 2
"""The fewest trials on each side of a comparison."""


@dataclass(frozen=True)
class Screened:
    """How trials with the winner's value of a path compare with those that have the baseline's, whatever else they have."""

    path: str
    difference: float
    """Of the mean losses at the first rung, the winner's value minus the baseline's; NaN where too few trials have them."""
    low: float
    high: float
    """Its 95 % interval (Welch's t)."""
    trials: tuple[int, int]
    """The numbers of trials with the baseline's value, and with the winner's."""

    @property
    def weight(self) -> float:
        """Its distance from 0 in half-widths of the interval; infinite where it is not known, so that it is not left out."""
        half = (self.high - self.low) / 2
        return abs(self.difference) / half if math.isfinite(half) and half > 0 else math.inf

    def __str__(self) -> str:
        if not math.isfinite(self.difference):
            return f"{self.path} (too few trials to say)"
        return f"{self.path} ({self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] in the search's trials)"


def marginals(run: Run, differences: Mapping[str, tuple[Any, Any]]) -> list[Screened]:
    """The marginal effect of every difference in a search's trials, the one that matters most first.

    Trials are compared at the first rung, which all have reached but those that failed. The search chose them, and they differ in
    more than the path, so this orders differences, and claims nothing of them.

    Args:
        run: The search.
        differences: By path: the baseline's value and the winner's.
    """
    from scipy.stats import ttest_ind

    found = []
    for path, values in differences.items():
        before, after = (
            [t.reports[0].val_loss for t in run.trials.values() if t.reports and _at(t.spec, path) == plain_value(path, value)]
            for value in values
        )
        trials = len(before), len(after)
        if min(trials) < LEAST:
            found.append(Screened(path, math.nan, math.nan, math.nan, trials))
            continue
        test = ttest_ind(after, before, equal_var=False)
        low, high = test.confidence_interval(0.95)
        found.append(Screened(path, sum(after) / len(after) - sum(before) / len(before), float(low), float(high), trials))
    return sorted(found, key=lambda marginal: -marginal.weight)


def _at(spec: ModelSpec, path: str) -> Any:
    """The value at a path of `space.diff`; None for a stage that the spec has not."""
    inner, _, stage = path.rpartition(".")
    if inner not in PER_STAGE_PATHS:
        return plain_value(path, spec.value_at(path))
    names = [one.name for one in spec.stages]
    return at_stage(spec.value_at(inner), names.index(stage)) if stage in names else None
