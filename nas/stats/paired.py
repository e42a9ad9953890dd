"""Differences between two variants paired by seed: intervals, p-values, and the effects that a number of seeds can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri, nctdtr, ndtr, ndtri, stdtr, stdtrit

from space.array import Array
from space.errors import ToolkitError

EXACT = 20
"""Up to this many pairs all sign flips are counted, at most 2^20."""

RESAMPLES = 100_000
"""The number of random sign flips beyond `EXACT` pairs."""

ROUNDING = 1e-9
"""A spread or a sum that is smaller than this share of its terms is rounding."""

RESOLUTION = 1e-12
"""Differences below this share of the values that they are taken of are rounding: some thousand steps of a float64."""

LARGEST = 1e100
"""Squares of larger values overflow when they are added up."""


def checked_differences(differences: Sequence[float] | Array, least: int) -> Array:
    """Paired differences (n,) as float64; raises ToolkitError when there are fewer than `least`, or one is not finite.

    >>> checked_differences([1, 2], least=2).tolist()
    [1.0, 2.0]
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < least:
        raise ToolkitError(f"{values.size} paired differences are too few, this takes a list of at least {least}; train more seeds")
    if not np.isfinite(values).all():
        raise ToolkitError("a paired difference is not a finite number; leave out seeds that either variant has not finished")
    return values


def paired_differences(values: Sequence[float] | Array, reference: Sequence[float] | Array) -> Array:
    """The differences values - reference (n,) of finite values paired by seed, without the rounding of the values.

    A difference within `RESOLUTION` of its values is 0, and differences that are equal within it are made equal, so that rounding,
    which often has one sign, is no evidence.

    Raises:
        ToolkitError: A value is not finite, or beyond ±`LARGEST`.

    >>> losses = np.array([0.081, 0.083, 0.079])
    >>> paired_differences((losses + 0.1) - 0.1, losses).tolist()
    [0.0, 0.0, 0.0]
    """
    first, second = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    sizes = np.maximum(np.abs(first), np.abs(second))
    if not (sizes <= LARGEST).all():
        raise ToolkitError(
            f"a value is beyond ±{LARGEST:g}, which differences cannot be computed with; leave that value empty (NaN), as of a "
            "training that failed"
        )
    differences = first - second
    differences[np.abs(differences) <= RESOLUTION * sizes] = 0.0
    if len(differences) and np.ptp(differences) <= RESOLUTION * sizes.max():
        return np.full(len(differences), differences.mean())
    return differences


def mean_and_spread(differences: Sequence[float] | Array) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of at least two paired differences; a spread of mere rounding counts as 0.

    Raises ToolkitError for fewer than two differences, or one that is not finite.

    >>> mean_and_spread([-1.0, -2.0, -3.0])
    (-2.0, 1.0)
    """
    values = checked_differences(differences, 2)
    if np.abs(values).max() > LARGEST:
        raise ToolkitError(f"a paired difference is beyond ±{LARGEST:g}, whose square overflows; leave out that seed")
    mean = float(values.mean())
    # Equal to np.std(values, ddof=1), at a third of its overhead.
    spread = math.sqrt(float(np.square(values - mean).sum()) / (len(values) - 1))
    return mean, spread if spread > ROUNDING * abs(mean) else 0.0


def paired_interval(differences: Sequence[float] | Array, level: float = 0.95) -> tuple[float, float]:
    """The paired t interval of the mean difference, in the unit of the metric (Student 1908).

    Its coverage is exact for normal differences, from two pairs on. Bootstrap intervals of so few pairs cover too little: in 2,000
    repetitions with 6 pairs each, 95 % intervals contained the true mean in

    =========================  ====  =============  =====
    differences                t     percentile     BCa
    =========================  ====  =============  =====
    normal                     94.9  84.7           84.8
    exponential (skewness 2)   89.4  81.6           82.9
    lognormal (skewness 6)     81.7  74.9           76.3
    =========================  ====  =============  =====

    per cent (bootstrap: scipy.stats.bootstrap, 1,999 resamples), which is why the t interval is used. Skewness lowers its coverage
    too, but less. With 3, 4, 5, 6 and 12 pairs it covers: normal 95.0, 95.1, 94.4, 94.9, 95.2; exponential 88.2, 88.5, 88.4, 89.4,
    90.9; lognormal 83.3, 81.7, 82.1, 81.7, 83.4 (Monte-Carlo error 0.5 to 0.9). So fewer than 6 pairs cost width, not coverage: the
    factor before sd/√n is 4.30 at 3 pairs, 2.57 at 6, 2.20 at 12. The exact sign-flip test, which does not assume normality, cannot
    give less than 0.05 with fewer than 6 pairs.

    Args:
        differences: At least two paired differences. When all are equal, the interval has no width, since they show no spread.
        level: The coverage, between 0 and 1.

    Raises:
        ToolkitError: There are fewer than two differences, one is not finite, or the level is outside (0, 1).

    >>> low, high = paired_interval([-0.012, -0.009, -0.015, -0.011, -0.008, -0.013])
    >>> print(f"{low:.4f} {high:.4f}")
    -0.0140 -0.0086
    """
    mean, spread = mean_and_spread(differences)
    alpha = 1 - _fraction(level, "level")
    half = float(stdtrit(len(differences) - 1, 1 - alpha / 2)) * spread / math.sqrt(len(differences))
    return mean - half, mean + half


def paired_t_p(differences: Sequence[float] | Array) -> float:
    """The two-sided p-value of the paired t test of no difference, which assumes normal differences (Student 1908).

    When all differences are equal but not zero, the t statistic is infinite and carries no information, so the p-value is that of
    `sign_flip_p`. When all are zero it is 1.

    Raises:
        ToolkitError: There are fewer than two differences, or one is not finite.

    >>> round(paired_t_p([-0.012, -0.009, -0.015, -0.011, -0.008, -0.013]), 5)
    0.00012
    """
    mean, spread = mean_and_spread(differences)
    if spread == 0:
        return sign_flip_p(differences)
    return nominal_p(mean, spread, len(differences))


def nominal_p(mean: float, spread: float, pairs: int) -> float:
    """The two-sided p-value of t = mean·√n / spread with n - 1 degrees of freedom, for a single look; spread is not zero.

    >>> round(nominal_p(-2.0, 1.0, 3), 4)
    0.0742
    """
    return float(2 * stdtr(pairs - 1, -abs(mean) * math.sqrt(pairs) / spread))


def sign_flip_p(differences: Sequence[float] | Array) -> float:
    """The exact two-sided p-value of the sign-flip test: the share of the 2^n sign patterns with a mean at least as far from 0.

    It assumes only that without an effect a difference is as likely as its opposite (Fisher 1935, The Design of Experiments,
    section 21). It is at least 2/2^n: 0.25 with 3 pairs, 0.0625 with 5, 0.031 with 6. Beyond `EXACT` pairs it is estimated from
    `RESAMPLES` random flips, the same every time, with the given pattern counted among them.

    Raises:
        ToolkitError: There are no differences, or one is not finite.

    >>> sign_flip_p([-0.012, -0.009, -0.015, -0.011, -0.008, -0.013])
    0.03125
    """
    # Sorted, so that the order of the seeds does not change the rounding.
    values = np.sort(checked_differences(differences, 1))
    far = abs(float(values.sum())) - ROUNDING * float(np.abs(values).sum())
    if len(values) > EXACT:
        flips = np.random.default_rng(0).integers(0, 2, size=(RESAMPLES, len(values)), dtype=np.int8) * 2 - 1
        return (1 + int((np.abs(flips @ values) >= far).sum())) / (1 + RESAMPLES)
    # The first sign is fixed: the other half of the patterns has the same means with opposite signs.
    sums = values[:1]
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= far).sum()) / len(sums)


def holm(p_values: Sequence[float] | Array) -> Array:
    """p-values (m,) adjusted for m comparisons by Holm's step-down method (Holm 1979), in the given order.

    Claiming a difference where the adjusted value is at most α keeps the probability of any false claim at α, however the tests
    depend on each other. An empty list gives an empty array.

    Raises:
        ToolkitError: A value is not in [0, 1].

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ToolkitError(
            "the p-values to adjust are not a list of numbers from 0 to 1; leave out comparisons that were not tested"
        )
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted


def attainable_p(pairs: int, comparisons: int) -> float:
    """The least p-value of the exact sign-flip test with Holm's correction: 2/2^pairs times the comparisons.

    Raises:
        ToolkitError: There are no pairs or no comparisons.

    >>> attainable_p(6, 6)
    0.1875
    """
    if pairs < 1:
        raise ToolkitError(f"{pairs} paired seeds test nothing; plan one seed at least")
    return min(1.0, _comparisons(comparisons) * 2.0 ** (1 - pairs))


def pairs_needed(comparisons: int, alpha: float = 0.05) -> int:
    """The least number of paired seeds with which the exact sign-flip test with Holm's correction can reach alpha.

    Raises:
        ToolkitError: There are no comparisons, or alpha is outside (0, 1).

    >>> pairs_needed(1), pairs_needed(6)
    (6, 8)
    """
    _fraction(alpha, "alpha")
    pairs = 1
    while attainable_p(pairs, comparisons) > alpha:
        pairs += 1
    return pairs


def minimum_detectable_effect(sd: float, pairs: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true mean difference that the two-sided paired t test detects with probability `power`, in the unit of `sd`.

    It follows from the noncentral t distribution (Cohen 1988, chapter 2).

    Args:
        sd: The standard deviation of the paired differences (not of a variant's values), from earlier runs.
        pairs: The number of pairs, at least 2.
        alpha: The level of the test; for m comparisons pass alpha / m, the level of the first step of Holm's method.
        power: The probability of detection, between alpha and 1.

    Raises:
        ToolkitError: An argument is out of its range.

    >>> print(f"{minimum_detectable_effect(1.0, 6):.2f} {minimum_detectable_effect(1.0, 12):.2f}")
    1.43 0.89
    """
    _fraction(alpha, "alpha")
    if pairs < 2:
        raise ToolkitError(f"{pairs} paired seeds show no difference by a t test; plan two at least")
    if not (math.isfinite(sd) and sd >= 0):
        raise ToolkitError(f"a standard deviation of {sd} is not a finite number from 0 on; take that of the paired differences")
    if not alpha < power < 1:
        raise ToolkitError(f"a power of {power} does not lie between alpha ({alpha}) and 1; take 0.8")
    # This import takes half a second, which the other functions need not wait for.
    from scipy.optimize import brentq

    degrees = pairs - 1
    bound = float(stdtrit(degrees, 1 - alpha / 2))

    def missing_power(shift: float) -> float:
        same_side = 1 - float(nctdtr(degrees, shift, bound))
        # The probability of a significant difference of the wrong sign; SciPy gives NaN when it is close to 0.
        opposite_side = float(nctdtr(degrees, shift, -bound))
        return same_side + (0.0 if math.isnan(opposite_side) else opposite_side) - power

    highest = bound + 1
    while missing_power(highest) < 0:
        highest *= 2
    return float(brentq(missing_power, 0, highest)) * sd / math.sqrt(pairs)


def exaggeration(effect: float, error: float, freedom: float, alpha: float = 0.05) -> float:
    """The factor by which claimed estimates of a true effect are too large on average, as only large ones are claimed.

    This is the type M error of Gelman & Carlin (2014, Beyond power calculations, Perspectives on Psychological Science 9(6)): the
    mean |estimate| of those that a two-sided t test claims at alpha, divided by |effect|. The estimate is normal, and its standard
    error is itself estimated with `freedom` degrees of freedom.

    Args:
        effect: The true effect, not zero, in any unit.
        error: The standard error of its estimate, in the same unit; for n pairs the sd of the differences / √n.
        freedom: Degrees of freedom of the standard error, n - 1 for n pairs; infinite where it is known.
        alpha: The level of the test; for m comparisons pass alpha / m, the level of the first step of Holm's method.

    Raises:
        ToolkitError: An argument is out of its range.

    >>> print(f"{exaggeration(1.0, 0.5, 5):.2f} {exaggeration(2.0, 0.5, 5):.2f}")
    1.41 1.04
    """
    _fraction(alpha, "alpha")
    if not (math.isfinite(effect) and effect and math.isfinite(error) and error > 0 and freedom > 0):
        raise ToolkitError(
            f"an effect of {effect} with a standard error of {error} is never too large by a factor; take finite ones, not zero"
        )
    shift = abs(effect) / error
    # The quantiles of the estimated error over the true one: a midpoint rule over its distribution.
    spreads = np.sqrt(chdtri(freedom, 1 - _MIDPOINTS) / freedom) if math.isfinite(freedom) else np.ones(1)
    bound = -float(stdtrit(freedom, alpha / 2)) * spreads if math.isfinite(freedom) else np.array([-float(ndtri(alpha / 2))])
    above, below = bound - shift, bound + shift
    claimed = ndtr(-above) + ndtr(-below)
    density = (np.exp(-above * above / 2) + np.exp(-below * below / 2)) / math.sqrt(2 * math.pi)
    size = shift * (ndtr(-above) - ndtr(-below)) + density
    return float(size.sum() / claimed.sum() / shift)


_MIDPOINTS = (np.arange(200) + 0.5) / 200


def ratio_interval(
    numerators: Sequence[float] | Array, denominators: Sequence[float] | Array, level: float = 0.95
) -> tuple[float, float]:
    """The interval of the ratio of two means of values paired by seed, by Fieller's theorem (Fieller 1954).

    It contains each ratio r for which the mean of numerator - r·denominator does not differ from zero by the paired t test, so its
    coverage is exact for jointly normal values. When the mean of the denominators itself does not differ from zero, the set of
    such ratios may be unbounded, and the interval is (-inf, inf).

    Args:
        numerators: At least two values.
        denominators: The value of the same seed for each numerator.
        level: The coverage, between 0 and 1.

    Raises:
        ToolkitError: There are fewer than two pairs, the numbers of values differ, a value is not finite, or the level is outside
            (0, 1).

    >>> low, high = ratio_interval([1.0, 1.2, 0.9, 1.1], [2.0, 2.1, 1.9, 2.2])
    >>> print(f"{low:.2f} {high:.2f}")
    0.44 0.58
    """
    above, below = checked_differences(numerators, 2), checked_differences(denominators, 2)
    if len(above) != len(below):
        raise ToolkitError(
            f"{len(above)} numerators and {len(below)} denominators are not pairs; leave out the seeds that only one of them has"
        )
    lowest, highest = paired_interval(below, level)
    if lowest <= 0 <= highest:
        return -math.inf, math.inf
    factor = float(stdtrit(len(above) - 1, 1 - (1 - level) / 2)) ** 2 / len(above)
    covariance = np.cov(above, below)
    a = float(below.mean()) ** 2 - factor * float(covariance[1, 1])
    b = float(above.mean()) * float(below.mean()) - factor * float(covariance[0, 1])
    c = float(above.mean()) ** 2 - factor * float(covariance[0, 0])
    # Negative only by rounding, when the ratio is the same in all pairs.
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def _fraction(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ToolkitError(f"{name} {value} is not between 0 and 1; take {0.95 if name == 'level' else 0.05}")
    return value


def _comparisons(comparisons: int) -> int:
    if comparisons < 1:
        raise ToolkitError(
            f"{comparisons} comparisons leave nothing to correct for; give the number of variants beside the baseline"
        )
    return comparisons
