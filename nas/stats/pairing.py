"""Pairing by seed: the share of the variance that it removes, and what more seeds of the baseline would bring instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nas.stats.reliability import reliability
from space.array import Array


@dataclass(frozen=True)
class SeedCorrelation:
    """The intraclass correlation (ICC) of seeds: the share of a training's seed variance that is common to all rows of a seed.

    A difference of two rows paired by seed lacks that share: its variance is (1 - ICC) times that without pairing.
    """

    icc: float
    """The estimate; negative by chance where nothing is common."""
    low: float
    """The lower end of its 95 % interval."""
    high: float
    rows: int
    seeds: int

    def __str__(self) -> str:
        interval = f"{self.low:.2f} to {self.high:.2f}"
        return f"ICC {self.icc:.2f} ({interval}): pairing by seed removes {100 * max(self.icc, 0):.0f} % of a difference's variance"


def seed_correlation(values: Array) -> SeedCorrelation | None:
    """The ICC of seeds, from two-way effects of rows and seeds: (MS_seeds - MS_error) / (MS_seeds + (k - 1)·MS_error), k rows.

    It is the ICC of `nas.stats.reliability` with seeds and rows exchanged; the interval assumes normal values and equal variances.

    Args:
        values: (rows, seeds), NaN where missing; seeds that any row lacks are left out, and so are copies of a row and rows
            with less than two values.

    Returns:
        None where fewer than two rows have two seeds in common, or where seeds make no difference at all.

    >>> print(seed_correlation(np.array([[0.31, 0.35, 0.33, 0.30], [0.29, 0.32, 0.31, 0.29], [0.30, 0.34, 0.31, 0.29]])))
    ICC 0.92 (0.60 to 0.99): pairing by seed removes 92 % of a difference's variance
    """
    kept = values[np.isfinite(values).sum(axis=1) > 1]
    kept = np.unique(kept[:, np.isfinite(kept).all(axis=0)], axis=0)
    rows, seeds = kept.shape
    if rows < 2 or seeds < 2:
        return None
    found = reliability(kept.T)
    return None if math.isnan(found.icc) else SeedCorrelation(found.icc, found.low, found.high, rows, seeds)


def spared_variance(icc: float, comparisons: int) -> float:
    """The share by which √m times as many seeds for the baseline lower the variance of m differences, at equal cost of training.

    With n seeds a row, (m + 1)·n trainings in all, the baseline gets √m times the seeds of each other row (Dunnett 1955, A multiple
    comparison procedure for comparing several treatments with a control, JASA 50): (m + √m)·n' = (m + 1)·n. The seeds that only the
    baseline has are not paired, so what seeds have in common no longer cancels in them; where it is much, the share is negative.

    >>> round(spared_variance(0.0, 6), 2), round(spared_variance(0.0, 12), 2), spared_variance(0.5, 6) < 0
    (0.15, 0.23, True)
    """
    root = math.sqrt(comparisons)
    # Variances times the trainings of a row, in units of the variance of a training.
    equal = 2 * (1 - icc)
    spread = (comparisons + root) / (comparisons + 1) * ((1 - icc) * (1 + 1 / root) + icc * (1 - 1 / root))
    return 1 - spread / equal if equal > 0 else -math.inf
