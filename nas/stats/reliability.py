"""The reliability of a score: its variance between architectures and over seeds, and the seeds that tell two of them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import fdtri, stdtr
from scipy.stats import kendalltau

from nas.stats.paired import ROUNDING, minimum_detectable_effect
from space.array import Array
from space.errors import ToolkitError

MOST_SEEDS = 1000
"""Beyond so many seeds, the number that is needed is taken from the normal approximation."""


@dataclass(frozen=True)
class Reliability:
    """The analysis of variance of a score over architectures and seeds, every architecture trained with the same seeds.

    The model is the two-way random one without replication: score = level + architecture + seed + rest, all independent and normal.
    `between_sd` is the SD of the architectures' part. `seed_sd` is that of the seeds' part, which a seed does to all architectures
    alike, so that it cancels in a paired comparison. `within_sd` is that of the rest, which does not cancel: a paired difference of
    two architectures has an SD of √2 times it. All three are unbiased in their squares, and 0 where the estimate is negative.
    """

    architectures: int
    seeds: int
    between_sd: float
    seed_sd: float
    within_sd: float
    icc: float
    """ICC(C,1), the intraclass correlation of consistency: the share of the architectures in the variance of scores at one seed."""
    low: float
    high: float
    """The interval of `icc`."""


def reliability(values: Array, level: float = 0.95) -> Reliability:
    """The variance components of a score, and the intraclass correlation with its interval.

    With the mean squares MSA of architectures and MSE of the rest, ICC(C,1) = (MSA - MSE) / (MSA + (k - 1)·MSE) for k seeds; it is
    Shrout and Fleiss's ICC(3,1). MSA / MSE is distributed as (1 + k·σ²between/σ²within) times F with a - 1 and (a - 1)(k - 1)
    degrees of freedom, from which the interval follows exactly (Shrout & Fleiss, Intraclass correlations: uses in assessing rater
    reliability, Psychological Bulletin 86, 1979; McGraw & Wong, Forming inferences about some intraclass correlation coefficients,
    Psychological Methods 1, 1996). The estimate and the interval may be negative: then seeds differ more than
    architectures do.

    Args:
        values: The scores (a, k) of a architectures with k seeds.
        level: The coverage of the interval.

    Raises:
        ToolkitError: There are fewer than two architectures or seeds, a score is not finite, or the level is outside (0, 1).

    >>> judged = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    >>> found = reliability(np.array(judged))  # the example of Shrout and Fleiss
    >>> print(f"{found.icc:.2f} {found.low:.2f} {found.high:.2f}")
    0.71 0.34 0.95
    """
    if not 0 < level < 1:
        raise ToolkitError(f"level {level} is not between 0 and 1; take 0.95")
    scores = _checked(values)
    a, k = scores.shape
    msa, mss, mse = _mean_squares(scores)
    if msa == mse == 0:
        icc = low = high = math.nan
    elif mse == 0:
        icc = low = high = 1.0
    else:
        f, freedom = msa / mse, (a - 1, (a - 1) * (k - 1))
        tail = 1 - (1 - level) / 2
        lowest, highest = f / float(fdtri(*freedom, tail)), f * float(fdtri(*reversed(freedom), tail))
        icc, low, high = ((ratio - 1) / (ratio + k - 1) for ratio in (f, lowest, highest))
    return Reliability(
        architectures=a,
        seeds=k,
        between_sd=math.sqrt(max(0.0, (msa - mse) / k)),
        seed_sd=math.sqrt(max(0.0, (mss - mse) / a)),
        within_sd=math.sqrt(mse),
        icc=icc,
        low=low,
        high=high,
    )


def seeds_needed(within_sd: float, difference: float) -> float:
    """The least number of paired seeds with which the paired t test shows a difference with a power of 80 % at the level 5 %.

    Args:
        within_sd: The SD of an architecture's score that pairing leaves, as of `Reliability`.
        difference: The true difference between two architectures, in the same unit.

    Returns:
        A whole number from 2 on; infinite when there is no difference.

    >>> seeds_needed(1.0, 1.0), seeds_needed(2.0, 1.0)
    (18, 65)
    """
    if difference <= 0:
        return math.inf
    if within_sd <= 0:
        return 2
    ratio = math.sqrt(2) * within_sd / difference
    # Quantiles of the normal distribution at 97.5 and 80 per cent; the t test needs about two seeds more than this.
    rough = math.ceil((1.959964 + 0.841621) ** 2 * ratio**2)
    if rough > MOST_SEEDS:
        return rough
    seeds = max(2, rough)
    while minimum_detectable_effect(ratio, seeds) > 1:
        seeds += 1
    while seeds > 2 and minimum_detectable_effect(ratio, seeds - 1) <= 1:
        seeds -= 1
    return seeds


def split_half_tau(values: Array) -> float:
    """Kendall's τ-b between the orders of the architectures by two halves of the seeds, the mean over all splits.

    With an odd number of seeds, one half has a seed more. NaN where every split has a half in which all scores are equal.

    Args:
        values: The scores (a, k) of a architectures with k seeds.

    >>> round(split_half_tau(np.array([[1.0, 1.1, 0.9], [2.0, 1.9, 2.2], [3.0, 3.1, 2.9]])), 2)
    1.0
    """
    scores = _checked(values)
    k = scores.shape[1]
    taus = []
    for half in combinations(range(k), k // 2):
        if 2 * len(half) == k and 0 not in half:
            # The same split as with the halves exchanged.
            continue
        rest = [seed for seed in range(k) if seed not in half]
        taus.append(float(kendalltau(scores[:, list(half)].mean(axis=1), scores[:, rest].mean(axis=1)).statistic))
    found = [tau for tau in taus if not math.isnan(tau)]
    return sum(found) / len(found) if found else math.nan


def agreeing_sd(values: Array, reference: Array) -> float:
    """The part of the SD between architectures that goes along with a reference: their covariance over the reference's SD.

    It is ρ·σ, with the SD σ of the architectures' part of the score and its correlation ρ with the reference. The estimate is
    unbiased but for the SD of the reference, where the reference comes from other seeds than the scores. It may be negative.

    Args:
        values: The scores (a, k) of a architectures with k seeds.
        reference: The reference (a,) of the same architectures.

    Raises:
        ToolkitError: The numbers of architectures differ, or there are too few.
    """
    scores, wanted = _checked(values), np.asarray(reference, dtype=np.float64)
    if wanted.shape != scores.shape[:1]:
        raise ToolkitError(f"{len(scores)} architectures were scored, but the reference has {wanted.size}; give one value for each")
    spread = float(wanted.std(ddof=1))
    return float(np.cov(scores.mean(axis=1), wanted)[0, 1]) / spread if spread > 0 else math.nan


def advantage_p(own: Array, other: Array, reference: Array | None = None, compute: tuple[float, float] = (1.0, 1.0)) -> float:
    """The one-sided p-value of the claim that another score tells the same architectures apart at a lower price than one's own.

    The seeds that tell architectures apart grow with (within / between)². Without a reference the two scores are compared by
    log MSA/MSE, the logarithm of the variance ratio of `reliability`, at equal compute; with one by the logarithm of
    `agreeing_sd`² / MSE for a unit of compute. The standard error of the difference is the jackknife's over architectures, with a
    t distribution of a - 1 degrees of freedom (Miller, Jackknifing variances, Annals of Mathematical Statistics 39, 1968), so that
    it counts that both scores are of the same architectures.

    In simulations of seven equal protocols (architectures' parts correlated by 0, 0.8 or 1; 0 to 3 times as large as the rest; the
    rest normal, or t with 4 degrees of freedom), p ≤ 0.025 / 6 held for any of six in 1.6 to 2.5 % of 4,000 repetitions with 6
    architectures and 3 seeds, in 1.3 to 1.9 % with 4 and 3, and in 1.8 to 2.7 % with 8 and 4 (Monte-Carlo error 0.2 %), where 2.5 %
    are meant. A bootstrap over architectures claimed up to 8.5 %. With a reference that shares 30 or 90 % of its SD with the
    architectures' part, it was at most 1.8 %, for 6 and for 24 others and 4 to 12 architectures (3,000 repetitions).

    Args:
        own: The scores (a, k) of one's own protocol.
        other: The scores (a, k) of another one, of the same architectures in the same order, with as many seeds: MSA / MSE grows
            with their number.
        reference: Values (a,) of the architectures that matter in the end, if they are known.
        compute: What a training costs, of `own` and of `other`; used with a reference.

    Returns:
        The p-value; 1 where a statistic is not finite, or there are fewer than three architectures.

    Raises:
        ToolkitError: The numbers of architectures or of seeds differ.
    """
    one, two = _checked(own), _checked(other)
    a = len(one)
    if one.shape != two.shape:
        raise ToolkitError(
            f"scores of {len(one)} architectures × {one.shape[1]} seeds and of {len(two)} × {two.shape[1]} cannot be compared; "
            "give the same architectures with as many seeds"
        )
    if a < 3:
        return 1.0
    wanted = None if reference is None else np.asarray(reference, dtype=np.float64)

    def gain(kept: Array) -> float:
        part = None if wanted is None else wanted[kept]
        costs = (0.0, 0.0) if wanted is None else (math.log(compute[0]), math.log(compute[1]))
        return (_log_power(two[kept], part) - costs[1]) - (_log_power(one[kept], part) - costs[0])

    everything = np.arange(a)
    whole = gain(everything)
    if not math.isfinite(whole):
        return 1.0
    pseudo = np.array([a * whole - (a - 1) * gain(np.delete(everything, left)) for left in range(a)])
    if not np.isfinite(pseudo).all():
        return 1.0
    error = float(pseudo.std(ddof=1)) / math.sqrt(a)
    if error == 0:
        return 0.0 if pseudo.mean() > 0 else 1.0
    return float(1 - stdtr(a - 1, pseudo.mean() / error))


def _log_power(scores: Array, reference: Array | None) -> float:
    """The logarithm of what `advantage_p` compares; NaN where there is none."""
    msa, _, mse = _mean_squares(scores)
    signal = msa if reference is None else max(0.0, agreeing_sd(scores, reference)) ** 2
    return math.log(signal / mse) if mse > 0 and signal > 0 else math.nan


def _checked(values: Array) -> Array:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 2 or min(scores.shape) < 2:
        raise ToolkitError(f"scores of the shape {scores.shape} have no two variances; give at least two architectures × two seeds")
    if not np.isfinite(scores).all():
        raise ToolkitError("a score is not a finite number; leave out the seeds that an architecture has not finished")
    return scores


def _mean_squares(scores: Array) -> tuple[float, float, float]:
    """The mean squares of architectures, of seeds and of the rest, of a two-way layout (a, k); mere rounding counts as 0."""
    a, k = scores.shape
    level = scores.mean()
    rows, columns = scores.mean(axis=1) - level, scores.mean(axis=0) - level
    rest = scores - level - rows[:, None] - columns[None, :]
    squares = (
        k * np.square(rows).sum() / (a - 1),
        a * np.square(columns).sum() / (k - 1),
        np.square(rest).sum() / ((a - 1) * (k - 1)),
    )
    least = (ROUNDING * float(np.abs(scores).max())) ** 2
    msa, mss, mse = (float(square) if square > least else 0.0 for square in squares)
    return msa, mss, mse
