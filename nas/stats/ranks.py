"""Rank statistics: the agreement between two orders of architectures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    if np.isnan(losses).any() or np.isnan(last).any():
        return Agreement(None, None, None)
    counts = np.stack([np.bincount(rows, minlength=len(last)) for rows in [np.arange(len(last)), *drawn]])
    first, *taus = tau_b(losses, last, counts).tolist()
    if math.isnan(first):
        return Agreement(None, None, None)
    low, high = np.nanpercentile(taus, [50 - 50 * level, 50 + 50 * level]).tolist()
    return Agreement(first, low, high)


def pair_signs(values: Array) -> Array:
    """For every pair, 1 where the row's value is above the column's, -1 where it is below, 0 where they are equal."""
    return (values[:, None] > values).astype(np.float64) - (values[:, None] < values)


def tau_b(one: Array, other: Array, counts: Array) -> Array:
    """Kendall's τ-b of two orders in samples with repetition, (samples,); NaN for a sample in which either is all tied.

    The pairs of all samples are counted in one product of matrices: a thousand calls of `scipy.stats.kendalltau` give the same
    numbers, but take a hundred times as long for 40 architectures.

    Args:
        one: Finite values, (N,).
        other: The same, of the other order.
        counts: How often each of the N is in each sample, (samples, N).
    """
    taken = counts.astype(np.float64)
    # Sums of whole numbers: exact, in any order. Agreeing pairs minus disagreeing ones.
    difference = np.einsum("sn,sn->s", taken @ (pair_signs(one) * pair_signs(other)), taken) / 2
    untied = [_pairs(taken.sum(axis=1)) - _tied(values, taken) for values in (one, other)]
    with np.errstate(invalid="ignore"):
        return np.clip(difference / np.sqrt(untied[0]) / np.sqrt(untied[1]), -1.0, 1.0)


def _tied(values: Array, taken: Array) -> Array:
    """The number of tied pairs in each sample; a value that is drawn twice is tied with itself."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    return _pairs(np.add.reduceat(taken[:, order], starts, axis=1)).sum(axis=1)


def _pairs(number: Array) -> Array:
    return number * (number - 1) / 2
