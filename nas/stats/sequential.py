"""Sequential tests of paired differences: intervals and p-values that stay valid although one looks after every pair.

With normal differences, the joint distribution of the t statistics at the looks has no unknown parameters (Jennison & Turnbull
1991, Exact calculations for sequential t, χ² and F tests, Biometrika 78), so their bounds can be simulated once. The
probability of exceeding a bound for the first time at a look is the share that an error-spending function gives that look (Lan
& DeMets 1983, Discrete sequential boundaries for clinical trials, Biometrika 70): alpha in proportion to the pairs so far, the
power family of Kim & DeMets (1987, Biometrika 74) with ρ = 1. The means with these bounds around them are repeated confidence
intervals (Jennison & Turnbull 1989, J. R. Statist. Soc. B 51; 2000, Group Sequential Methods, chapter 9): with probability
1 - alpha, all intervals of a variant contain the true difference, so one may stop at any look for any reason.

Pairs are in the order of their seeds. A pair that failed is left out: the next look has the bounds of its own number of pairs,
and the alpha of a skipped number is lost, which is conservative. The failure of a pair must not depend on its difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from nas.stats.paired import checked_differences, mean_and_spread, nominal_p
from space.array import Array
from space.errors import ToolkitError

LEAST = 3
"""Pairs at the first look: two pairs have one degree of freedom, and bounds of dozens of standard errors."""

FUTILE = 0.1
"""The conditional power at the last look below which a comparison gets no more pairs."""

PATHS = 200_000
"""Simulated sequences of normal differences, the same every time; their alpha is accurate to about 0.0002 at 0.05."""

GRID = 0.05 * 20 ** (np.arange(-12, 12) / 11)
"""The alphas whose bounds are simulated, from 0.0019 to 1 with 0.05 among them; nominal levels are interpolated between them."""


def looks(minimum: int, maximum: int) -> tuple[int, ...]:
    """The numbers of pairs at which one looks: each from the minimum to the maximum.

    Raises:
        ToolkitError: The minimum is below `LEAST`, or the maximum below the minimum.

    >>> looks(3, 6)
    (3, 4, 5, 6)
    """
    if not LEAST <= minimum <= maximum:
        raise ToolkitError(
            f"looks from {minimum} to {maximum} pairs are none; take a minimum of at least {LEAST} and a maximum not below it"
        )
    return tuple(range(minimum, maximum + 1))


@lru_cache(maxsize=1024)
def bounds(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """For each look, the |t| above which the difference is significant; without an effect, any is exceeded with probability alpha.

    The first call with new looks simulates: half a second for 10 looks, 3 s for 48. For alphas below `GRID` the bounds are
    Bonferroni's, which are wider.

    Raises:
        ToolkitError: The looks do not rise from `LEAST` or more, or alpha is outside (0, 1).

    >>> [round(bound, 1) for bound in bounds((3, 4, 5, 6), 0.05)]
    [6.2, 5.0, 4.0, 3.5]
    """
    check_looks(looks, alpha)
    if alpha < GRID[0]:
        levels = alpha * _increments(looks)
    else:
        levels = np.exp([np.interp(math.log(alpha), np.log(GRID), row) for row in np.log(_levels(looks))])
    return tuple(float(bound) for bound in -stdtrit(np.array(looks) - 1, levels / 2))


def repeated_interval(differences: Sequence[float] | Array, looks: tuple[int, ...], alpha: float = 0.05) -> tuple[float, float]:
    """The interval of the mean difference at the look with as many pairs as there are differences, in the unit of the metric.

    With probability 1 - alpha, the intervals of all looks contain the true mean difference. When all differences are equal, the
    interval has no width.

    Raises:
        ToolkitError: No look has this number of pairs, or a difference is not finite.

    >>> low, high = repeated_interval([-0.012, -0.009, -0.015, -0.011], looks(3, 12))
    >>> print(f"{low:.4f} {high:.4f}")
    -0.0201 -0.0034
    """
    values = checked_differences(differences, 1)
    if len(values) not in looks:
        raise ToolkitError(
            f"{len(values)} pairs are not one of the planned looks ({_named(looks)}); wait for the next look, or plan more"
        )
    mean, spread = mean_and_spread(values)
    half = bounds(looks, alpha)[looks.index(len(values))] * spread / math.sqrt(len(values))
    return mean - half, mean + half


def sequential_p(differences: Sequence[float] | Array, looks: tuple[int, ...]) -> float:
    """The two-sided p-value at the last look so far, in the order of the pairs; it is valid whenever one stops.

    It is the smallest alpha whose bounds are exceeded at some look so far (repeated p-values, Jennison & Turnbull 2000, chapter 9),
    so it never rises as pairs are added. Before the first look it is 1. A look at which all differences are equal is ignored, since
    its t statistic carries no information.

    Raises:
        ToolkitError: There are more differences than the last look has, or one is not finite.

    >>> round(sequential_p([-0.012, -0.009, -0.015, -0.011], looks(3, 12)), 3)
    0.021
    """
    check_looks(looks)
    increments, union, simulated = _increments(looks), 1.0, 1.0
    for index, mean, spread in _so_far(differences, looks):
        if spread == 0:
            continue
        # Kept above 0, which has no logarithm.
        level = max(nominal_p(mean, spread, looks[index]), 1e-300)
        union = min(union, level / increments[index])
        simulated = min(simulated, math.exp(np.interp(math.log(level), np.log(_levels(looks)[index]), np.log(GRID))))
    # Below the grid `bounds` uses Bonferroni's bounds, and this is their inverse.
    return float(union if union < GRID[0] else simulated)


def settled(differences: Sequence[float] | Array, looks: tuple[int, ...], alpha: float, margin: float | None = None) -> bool:
    """Whether no more pairs are needed: the repeated interval of a look so far excludes 0, or lies within ±margin.

    A settled difference stays settled when pairs are added; without a margin it is settled when `sequential_p` is below alpha.
    Differences that are all zero are settled at the first look, since both variants are then one architecture. Differences that are
    equal but not zero are not settled: their interval has no width, which carries no information. Before the first look nothing
    is settled.

    Args:
        differences: Paired differences, in the order of their seeds.
        looks: The planned numbers of pairs.
        alpha: The level; for a claim that survives Holm's correction over m comparisons, give alpha / m.
        margin: The difference that does not matter, in the unit of the metric, or None.

    Raises:
        ToolkitError: There are more differences than the last look has, one is not finite, the margin is not positive, or alpha is
            outside (0, 1).

    >>> settled([-0.012, -0.009, -0.015], looks(3, 12), 0.05), settled([-0.012, -0.009, -0.015, -0.011], looks(3, 12), 0.05)
    (False, True)
    """
    check_looks(looks, alpha)
    if margin is not None and not margin > 0:
        raise ToolkitError(
            f"a margin of {margin} is not positive; give the difference that does not matter, in the unit of the metric"
        )
    for index, mean, spread in _so_far(differences, looks):
        half = bounds(looks, alpha)[index] * spread / math.sqrt(looks[index])
        if (spread == 0 and mean == 0) or (spread > 0 and abs(mean) > half):
            return True
        if margin is not None and abs(mean) + half < margin and (spread > 0 or mean == 0):
            return True
    return False


def conditional_power(p_value: Array | float, share: float, level: float) -> Array:
    """The chance that a test is significant at the last look if its trend so far goes on.

    The statistic is taken as a Brownian motion whose drift is the estimate so far (Lan & Wittes 1988, The B-value, Biometrics 44).
    Ending a comparison where this is small makes no claim more likely: such futility is non-binding (Jennison & Turnbull 2000,
    Group Sequential Methods, chapter 10).

    Args:
        p_value: Two-sided p-values so far, each of one look alone.
        share: The pairs so far as a share of those at the last look.
        level: The nominal level of the last look.

    >>> print(f"{conditional_power(0.05, 0.5, 0.05):.2f} {conditional_power(0.5, 0.5, 0.05):.2f}")
    0.87 0.08
    """
    statistic, bound = -ndtri(np.maximum(p_value, 1e-300) / 2), -float(ndtri(level / 2))
    if share >= 1:
        return np.where(statistic >= bound, 1.0, 0.0)
    return np.asarray(ndtr((statistic / math.sqrt(share) - bound) / math.sqrt(1 - share)))


def prospects(differences: Sequence[float] | Array, looks: tuple[int, ...], alpha: float) -> float:
    """The `conditional_power` of `settled` at the last look, by the latest look; 1 before the first, or without any spread.

    Raises:
        ToolkitError: There are more differences than the last look has, or one is not finite.

    >>> round(prospects([-0.012, 0.009, -0.005], looks(3, 12), 0.05), 2)
    0.03
    """
    check_looks(looks, alpha)
    latest = list(_so_far(differences, looks))[-1:]
    if not latest or latest[0][2] == 0:
        return 1.0
    index, mean, spread = latest[0]
    level = float(2 * stdtr(looks[-1] - 1, -bounds(looks, alpha)[-1]))
    return float(conditional_power(nominal_p(mean, spread, looks[index]), looks[index] / looks[-1], level))


def _so_far(differences: Sequence[float] | Array, looks: tuple[int, ...]) -> Iterator[tuple[int, float, float]]:
    """For each look that the differences have reached: its index, and the mean and spread of the differences then."""
    values = checked_differences(differences, 0)
    if len(values) > looks[-1]:
        raise too_many(len(values), looks)
    for index, pairs in enumerate(looks):
        if pairs <= len(values):
            yield index, *mean_and_spread(values[:pairs])


@lru_cache(maxsize=16)
def _levels(looks: tuple[int, ...]) -> Array:
    """The nominal two-sided levels (looks, alphas of `GRID`), rising with alpha."""
    random = np.random.default_rng(0)
    sums, squares = np.zeros(PATHS), np.zeros(PATHS)
    inside = np.ones((len(GRID), PATHS), dtype=bool)
    levels = np.empty((len(looks), len(GRID)))
    pairs, floor = 0, np.outer(_increments(looks), GRID)
    for index, look in enumerate(looks):
        while pairs < look:
            drawn = random.standard_normal(PATHS)
            sums += drawn
            squares += drawn * drawn
            pairs += 1
        variance = (squares - sums * sums / look) / (look - 1)
        absolute_t = (np.abs(sums) / np.sqrt(look * variance)).astype(np.float32)
        for column, alpha in enumerate(GRID):
            within = absolute_t[inside[column]]
            # The number of further paths that exceed a bound for the first time at this look.
            exceeding = round(float(alpha) * look / looks[-1] * PATHS) - (PATHS - len(within))
            if exceeding < 1:
                levels[index, column] = 0
                continue
            bound = np.partition(within, len(within) - exceeding)[len(within) - exceeding]
            inside[column] &= absolute_t < bound
            # Counted, although it equals 2·stdtr(look - 1, -bound): the two counts' errors correlate, which halves the error.
            levels[index, column] = (absolute_t >= bound).mean()
    # A look's level is at least its share of alpha, and rises with alpha; simulated levels may violate this by chance.
    return np.maximum.accumulate(np.maximum(levels, floor), axis=1)


def _increments(looks: tuple[int, ...]) -> Array:
    """The share of alpha that each look may spend."""
    return np.diff(looks, prepend=0) / looks[-1]


def check_looks(looks: tuple[int, ...], alpha: float = 0.05) -> None:
    """Raise ToolkitError for looks that do not rise from `LEAST` or more, or an alpha outside (0, 1)."""
    if not looks or looks[0] < LEAST or any(later <= earlier for earlier, later in pairwise(looks)):
        raise ToolkitError(
            f"looks at {_named(looks)} pairs do not rise from {LEAST} or more; make them with looks(minimum, maximum)"
        )
    if not 0 < alpha < 1:
        raise ToolkitError(f"alpha {alpha} is not between 0 and 1; take 0.05")


def too_many(pairs: int, looks: tuple[int, ...]) -> ToolkitError:
    """The error of more pairs than looks were planned for."""
    return ToolkitError(f"{pairs} pairs are more than the last planned look has ({_named(looks)}); plan more looks")


def _named(looks: tuple[int, ...]) -> str:
    return ", ".join(map(str, looks)) or "no"
