"""Rank statistics: how far one order of architectures agrees with another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from space.array import Array

LEAST = 8
"""Fewer curves than these say nothing about a ranking."""

RESAMPLES = 1000
"""Of the architectures with replacement, for the intervals."""


@dataclass(frozen=True)
class Agreement:
    """How a rung's order of the recorded architectures agrees with the last rung's: Kendall's τ-b of their val_losses.

    `low` and `high` are the interval over resampled architectures, by default the 2.5 % and 97.5 % quantiles. All are None where
    losses are all equal.
    """

    tau: float | None
    low: float | None
    high: float | None


def resampled(count: int) -> Array:
    """The rows of so many architectures, drawn `RESAMPLES` times with replacement; the same every time."""
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def agreement(losses: Array, last: Array, drawn: Array, level: float = 0.95) -> Agreement:
    """How the order of some architectures' losses agrees with that of their last ones; every row of `drawn` is one resampling."""
    taus = [float(kendalltau(losses[rows], last[rows], method="asymptotic").statistic) for rows in [np.arange(len(last)), *drawn]]
    if math.isnan(taus[0]):
        return Agreement(None, None, None)
    low, high = np.nanpercentile(taus[1:], [50 - 50 * level, 50 + 50 * level]).tolist()
    return Agreement(taus[0], low, high)
