"""Looking at paired differences after every pair, and stopping when they have answered: intervals that stay valid under peeking.

With normal differences the joint distribution of the t statistics at the looks is free of unknown parameters (Jennison &
Turnbull 1991, Exact calculations for sequential t, χ² and F tests, Biometrika 78), so their bounds can be found by
simulation once for all. The chance to exceed a bound for the first time at a look is what an error-spending function
gives that look (Lan & DeMets 1983, Discrete sequential boundaries for clinical trials, Biometrika 70): alpha in
proportion to the pairs so far, the power family of Kim & DeMets (1987, Biometrika 74) with ρ = 1. Means with these
bounds around them are repeated confidence intervals (Jennison & Turnbull 1989, J. R. Statist. Soc. B 51; 2000, Group
Sequential Methods, chapter 9): all of a variant's intervals hold the true difference together with probability
1 - alpha, so one may stop at any look for any reason.

Pairs come in the order of their seeds. A pair that failed is left out: the next look then has the bounds of its number
of pairs, and a number that was skipped has spent its alpha on nothing, which errs on the safe side. It must not be the
difference itself that made the pair fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy.special import stdtrit

from nas.stats.paired import checked_differences, mean_and_spread, nominal_p
from space.array import Array
from space.errors import ToolkitError

LEAST = 3
"""Pairs at the first look: two pairs have one degree of freedom, and bounds of dozens of standard errors."""

PATHS = 200_000
"""Simulated sequences of normal differences, the same every time; the alpha that they hold is true to about 0.0002 at 0.05."""

GRID = 0.05 * 20 ** (np.arange(-12, 12) / 11)
"""The alphas whose bounds are simulated, from 0.0019 to 1 with 0.05 among them; between them nominal levels are interpolated."""


def looks(minimum: int, maximum: int) -> tuple[int, ...]:
    """The numbers of pairs at which is looked: every one from the minimum to the maximum.

    Raises ToolkitError for a minimum below `LEAST`, or a maximum below the minimum.

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
    """For each look, the |t| above which the difference is told from zero; under no effect any is exceeded with chance alpha.

    The first call with new looks simulates: half a second for 10 looks, 3 s for 48. For alphas below `GRID` the bounds
    are Bonferroni's, which are wider. Raises ToolkitError for looks that do not rise from `LEAST` on, or an alpha outside
    (0, 1).

    >>> [round(bound, 1) for bound in bounds((3, 4, 5, 6), 0.05)]
    [6.2, 5.0, 4.0, 3.5]
    """
    _check(looks, alpha)
    if alpha < GRID[0]:
        levels = alpha * _increments(looks)
    else:
        levels = np.exp([np.interp(math.log(alpha), np.log(GRID), row) for row in np.log(_levels(looks))])
    return tuple(float(bound) for bound in -stdtrit(np.array(looks) - 1, levels / 2))


def repeated_interval(differences: Sequence[float] | Array, looks: tuple[int, ...], alpha: float = 0.05) -> tuple[float, float]:
    """The interval of the mean difference at the look with as many pairs as there are differences, in the unit of the metric.

    Those of all looks hold the true mean difference together with probability 1 - alpha. It has no width where all
    differences are equal. Raises ToolkitError when there is no look with so many pairs, or for a difference that is not finite.

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
    """The two-sided p-value at the last look so far, in the order of the pairs: valid whenever one stops.

    It is the smallest alpha whose bounds any look so far exceeds (repeated p-values, Jennison & Turnbull 2000, chapter
    9), so it only falls as pairs are added, and is 1 before the first look. A look at which all differences are equal
    counts for nothing, for its t statistic says nothing. Raises ToolkitError for more differences than the last look has, or
    one that is not finite.

    >>> round(sequential_p([-0.012, -0.009, -0.015, -0.011], looks(3, 12)), 3)
    0.021
    """
    _check(looks)
    increments, union, simulated = _increments(looks), 1.0, 1.0
    for place, mean, spread in _so_far(differences, looks):
        if spread == 0:
            continue
        # Not 0, whose logarithm is none.
        level = max(nominal_p(mean, spread, looks[place]), 1e-300)
        union = min(union, level / increments[place])
        simulated = min(simulated, math.exp(np.interp(math.log(level), np.log(_levels(looks)[place]), np.log(GRID))))
    # What `bounds` does below the grid, the other way round.
    return float(union if union < GRID[0] else simulated)


def settled(differences: Sequence[float] | Array, looks: tuple[int, ...], alpha: float, margin: float | None = None) -> bool:
    """Whether more pairs are not needed: the repeated interval of a look so far excludes 0, or lies within ±margin, if any.

    What was settled stays so when more pairs come; without a margin it is settled when `sequential_p` is below alpha.
    Differences that are all zero are settled at the first look: the two are the same architecture. Equal ones that are
    not zero are not: their interval has no width, which says nothing. False before the first look. For a claim that
    outlives Holm's correction over m comparisons, give alpha / m; the margin is in the unit of the metric. Raises ToolkitError
    for more differences than the last look has, one that is not finite, a margin that is not positive, or an alpha
    outside (0, 1).

    >>> settled([-0.012, -0.009, -0.015], looks(3, 12), 0.05), settled([-0.012, -0.009, -0.015, -0.011], looks(3, 12), 0.05)
    (False, True)
    """
    _check(looks, alpha)
    if margin is not None and not margin > 0:
        raise ToolkitError(
            f"a margin of {margin} is not positive; give the difference that does not matter, in the unit of the metric"
        )
    for place, mean, spread in _so_far(differences, looks):
        half = bounds(looks, alpha)[place] * spread / math.sqrt(looks[place])
        if (spread == 0 and mean == 0) or (spread > 0 and abs(mean) > half):
            return True
        if margin is not None and abs(mean) + half < margin and (spread > 0 or mean == 0):
            return True
    return False


def _so_far(differences: Sequence[float] | Array, looks: tuple[int, ...]) -> Iterator[tuple[int, float, float]]:
    """For each look that the differences have reached: which one it is, their mean and their spread then."""
    values = checked_differences(differences, 0)
    if len(values) > looks[-1]:
        raise ToolkitError(f"{len(values)} pairs are more than the last planned look has ({_named(looks)}); plan more looks")
    for place, pairs in enumerate(looks):
        if pairs <= len(values):
            yield place, *mean_and_spread(values[:pairs])


@lru_cache(maxsize=16)
def _levels(looks: tuple[int, ...]) -> Array:
    """The nominal two-sided level of every look (looks, alphas of `GRID`), rising with alpha."""
    random = np.random.default_rng(0)
    sums, squares = np.zeros(PATHS), np.zeros(PATHS)
    inside = np.ones((len(GRID), PATHS), dtype=bool)
    levels = np.empty((len(looks), len(GRID)))
    pairs, floor = 0, np.outer(_increments(looks), GRID)
    for place, look in enumerate(looks):
        while pairs < look:
            drawn = random.standard_normal(PATHS)
            sums += drawn
            squares += drawn * drawn
            pairs += 1
        variance = (squares - sums * sums / look) / (look - 1)
        size = (np.abs(sums) / np.sqrt(look * variance)).astype(np.float32)
        for column, alpha in enumerate(GRID):
            within = size[inside[column]]
            # So many more paths are to exceed by now than have.
            more = round(float(alpha) * look / looks[-1] * PATHS) - (PATHS - len(within))
            if more < 1:
                levels[place, column] = 0
                continue
            bound = np.partition(within, len(within) - more)[len(within) - more]
            inside[column] &= size < bound
            # Counted although it is known, 2·stdtr(look - 1, -bound): the two counts err together, which halves the error.
            levels[place, column] = (size >= bound).mean()
    # No look needs a level below its share, and a larger alpha no wider bound; simulated ones can say so by chance.
    return np.maximum.accumulate(np.maximum(levels, floor), axis=1)


def _increments(looks: tuple[int, ...]) -> Array:
    """The share of alpha that each look may spend."""
    return np.diff(looks, prepend=0) / looks[-1]


def _check(looks: tuple[int, ...], alpha: float = 0.05) -> None:
    if not looks or looks[0] < LEAST or any(later <= earlier for earlier, later in pairwise(looks)):
        raise ToolkitError(
            f"looks at {_named(looks)} pairs do not rise from {LEAST} or more; make them with looks(minimum, maximum)"
        )
    if not 0 < alpha < 1:
        raise ToolkitError(f"alpha {alpha} is not between 0 and 1; take 0.05")


def _named(looks: tuple[int, ...]) -> str:
    return ", ".join(map(str, looks)) or "no"
