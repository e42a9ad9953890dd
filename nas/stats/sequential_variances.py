"""Comparisons of a table's rows by hierarchical variances that stay valid although one looks after every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from nas.stats.hierarchical import RowVariances, row_variances
from nas.stats.sequential import FUTILE, check_looks, conditional_power, too_many
from space.array import Array

ALPHAS = np.geomspace(1e-8, 0.999, 32)
"""The alphas whose normal levels are computed; those between them are interpolated."""

NODES = 64
"""The points of the integration from look to look."""


@dataclass(frozen=True)
class SequentialVariances:
    """Comparisons of a table's rows by hierarchical variances, of which one may look at each after every seed.

    At a look, a row's p-value of `nas.stats.hierarchical`, from the values of all rows up to that seed, is compared with the level
    that spending alpha in proportion to the squared share of the pairs (Kim & DeMets 1987, ρ = 2) gives a test of normal means with
    known variance. That is an approximation, since the variances are estimated; `benchmarks/README.md` has the measured errors.
    """

    values: Array
    """The metric (rows, seeds), NaN where a training is missing; the seeds in the order in which they were added."""
    baseline: int
    looks: tuple[int, ...]
    """The numbers of pairs at which a comparison is looked at."""
    tables: dict[int, RowVariances] = field(default_factory=dict)
    """The table's variances by the number of its first seeds, as they are asked for; share them where only seeds are added."""

    def compare(self, row: int, reference: int, level: float = 0.95) -> tuple[float, float, float]:
        """Compare two rows over the seeds that both have, as `RowVariances.compare` does for a single look.

        A number of pairs is looked at when both rows first have it, so later values of others change no earlier look.

        Returns:
            The repeated interval and the sequential p-value: the smallest alpha at which a look so far is significant. Where that
            is an earlier look than the last, the interval is what it has in common with that look's, which is as valid, so that a
            claim does not stand beside an interval that holds 0. Three NaN before the first look.

        Raises:
            ToolkitError: There are more pairs than the last look has, or the level is outside (0, 1).
        """
        seen = self._seen(row, reference)
        if not seen:
            return math.nan, math.nan, math.nan
        alphas = [float(smallest_alpha(self.looks, index, table.pairs(row, reference).p_value()[0])) for index, table in seen]
        best = alphas.index(min(alphas))
        low, high = self._interval(row, reference, level, *seen[-1])
        earlier_low, earlier_high = self._interval(row, reference, level, *seen[best])
        both = max(low, earlier_low), min(high, earlier_high)
        return *(both if both[0] <= both[1] else (low, high)), alphas[best]

    def prospects(self, row: int, reference: int, alpha: float) -> float:
        """The `conditional_power` of a comparison at the last look by its latest one; 1 before the first."""
        seen = self._seen(row, reference)
        if not seen:
            return 1.0
        index, table = seen[-1]
        p_value, level = table.pairs(row, reference).p_value()[0], float(normal_levels(self.looks, alpha)[-1])
        return float(conditional_power(p_value, self.looks[index] / self.looks[-1], level))

    def _seen(self, row: int, reference: int) -> list[tuple[int, RowVariances]]:
        """The looks so far: the index of each, and the table then."""
        pairs = np.cumsum(~np.isnan(self.values[row] - self.values[reference]))
        if len(pairs) and pairs[-1] > self.looks[-1]:
            raise too_many(int(pairs[-1]), self.looks)
        return [
            (index, self._table(int(np.searchsorted(pairs, look)) + 1))
            for index, look in enumerate(self.looks)
            if len(pairs) and look <= pairs[-1]
        ]

    def _table(self, seeds: int) -> RowVariances:
        if seeds not in self.tables:
            self.tables[seeds] = row_variances(self.values[:, :seeds], self.baseline)
        return self.tables[seeds]

    def _interval(self, row: int, reference: int, level: float, index: int, table: RowVariances) -> tuple[float, float]:
        return table.compare(row, reference, 1 - float(normal_levels(self.looks, 1 - level)[index]))[:2]


def normal_levels(looks: tuple[int, ...], alpha: float) -> Array:
    """The nominal two-sided levels (looks,) of tests of a normal mean with known variance; any is met with probability alpha."""
    check_looks(looks, alpha)
    return np.exp([np.interp(math.log(alpha), np.log(ALPHAS), row) for row in np.log(_normal_levels(looks))])


def smallest_alpha(looks: tuple[int, ...], index: int, p_value: Array | float) -> Array:
    """The smallest alpha at which p-values at the look of this index are significant by `normal_levels`."""
    levels, p = _normal_levels(looks)[index], np.maximum(p_value, 1e-300)
    within = np.exp(np.interp(np.log(p), np.log(levels), np.log(ALPHAS), right=0.0))
    # Where alpha is small, a look's level is the alpha that it spends.
    return np.where(p < levels[0], p * (ALPHAS[0] / levels[0]), within)


def expected_seeds(rows: int, pairs: Sequence[tuple[int, int]], alphas: Sequence[float], looks: tuple[int, ...]) -> Array:
    """The mean numbers of seeds (rows,) where no row differs: 2,000 simulated tables of normal values with known variance.

    A comparison ends where it is claimed at its alpha or its `conditional_power` is below `FUTILE`, and a row with the last of its
    comparisons.

    Args:
        rows: The number of rows.
        pairs: The compared rows.
        alphas: The level of each comparison.
        looks: The numbers of seeds at which they are looked at.

    >>> expected_seeds(3, [(1, 0), (2, 0)], [0.025, 0.025], (3, 4, 5, 6, 7, 8)).round(1).tolist()
    [4.3, 3.8, 3.8]
    """
    sums = np.random.default_rng(0).standard_normal((2000, rows, looks[-1])).cumsum(axis=2)
    levels = np.array([normal_levels(looks, alpha) for alpha in alphas])
    going = np.ones((len(sums), len(pairs)), dtype=bool)
    seeds = np.full((len(sums), rows), looks[0], dtype=np.float64)
    for index, look in enumerate(looks[:-1]):
        for place, (row, reference) in enumerate(pairs):
            p = 2 * ndtr(-np.abs(sums[:, row, look - 1] - sums[:, reference, look - 1]) / math.sqrt(2 * look))
            hope = conditional_power(p, look / looks[-1], float(levels[place, -1]))
            going[:, place] &= (p >= levels[place, index]) & (hope >= FUTILE)
            for member in (row, reference):
                seeds[:, member] = np.where(going[:, place], looks[index + 1], seeds[:, member])
    return np.asarray(seeds.mean(axis=0))


@lru_cache(maxsize=16)
def _normal_levels(looks: tuple[int, ...]) -> Array:
    """The levels (looks, alphas of `ALPHAS`), by recursive integration (Armitage et al. 1969, J. R. Statist. Soc. A 132)."""
    check_looks(looks)
    shares = np.array(looks) / looks[-1]
    spent = np.diff(shares**2, prepend=0)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    levels = np.empty((len(looks), len(ALPHAS)))
    # The density of the Brownian motion at points (alphas, nodes) within the bounds of the looks so far; it begins at 0.
    points, mass, before = np.zeros((len(ALPHAS), 1)), np.ones((len(ALPHAS), 1)), 0.0
    for index, share in enumerate(shares):
        step = math.sqrt(share - before)
        low, high = np.zeros(len(ALPHAS)), np.full(len(ALPHAS), 40.0)
        for _ in range(60):
            bound = (low + high) / 2
            beyond = (mass * (ndtr((points - bound[:, None]) / step) + ndtr((-points - bound[:, None]) / step))).sum(1)
            exceeded = beyond > ALPHAS * spent[index]
            low, high = np.where(exceeded, bound, low), np.where(exceeded, high, bound)
        levels[index] = 2 * ndtr(-high / math.sqrt(share))
        at = high[:, None] * nodes
        density = np.exp(-np.square((at[:, :, None] - points[:, None]) / step) / 2) / (step * math.sqrt(2 * math.pi))
        points, mass, before = at, high[:, None] * weights * (density @ mass[:, :, None])[..., 0], share
    return levels
