"""Rank statistics: the agreement between two orders of architectures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from space.array import Array

LEAST = 8
"""Fewer curves do not show anything about a ranking."""

RESAMPLES = 1000
"""Resamples of the architectures, drawn with replacement, for the intervals."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of a rung's order of the recorded architectures with the last rung's: Kendall's τ-b of their val_losses.

    `low` and `high` bound the interval over resampled architectures, by default the 2.5 % and 97.5 % quantiles. All three are None
    when the losses are all equal.
    """

    tau: float | None
    low: float | None
    high: float | None


def resampled(count: int) -> Array:
    """The rows of `count` architectures drawn with replacement, (`RESAMPLES`, count); the same every time."""
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def agreement(losses: Array, last: Array, drawn: Array, level: float = 0.95) -> Agreement:
    """The agreement of the order of losses with the order of last losses.

    Args:
        losses: One loss per architecture, at some rung.
        last: The architectures' losses at the last rung.
        drawn: Resamples, as `resampled` gives them, one per row.
        level: The coverage of the interval.
    """
    taus = [float(kendalltau(losses[rows], last[rows], method="asymptotic").statistic) for rows in [np.arange(len(last)), *drawn]]
    if math.isnan(taus[0]):
        return Agreement(None, None, None)
    low, high = np.nanpercentile(taus[1:], [50 - 50 * level, 50 + 50 * level]).tolist()
    return Agreement(taus[0], low, high)
