"""Comparisons of a table's rows with hierarchical variances: what a few seeds say of spread is pooled over the rows.

A paired t test learns a difference's spread from its own few seeds, which is most of its uncertainty. Rows of one table are trained
alike, so their spreads are alike, and a hierarchical model learns how much (Gelman et al. 2013, Bayesian Data Analysis, chapter 5).
Row v scores with seed s

    y_vs = μ_v + u_s + e_vs,   u_s ~ N(0, σ_u²),   e_vs ~ N(0, σ_v²).

A variant's σ_v² is scaled inverse χ²(ν, s²), that of the baseline, which enters most comparisons, is scaled inverse χ²(1, s²): it
is hardly drawn to the others. p(s²) ∝ 1/s², ν is one of `DEGREES` with weight 1/ν, and σ_u is half Cauchy with the rows' pooled
standard deviation as its scale (Gelman 2006, Bayesian Analysis 1). The μ_v are flat: only variances are shrunk, never differences.
Given the variances, the mean of n paired differences is normal around the true one with variance (σ_v² + σ_0²)/n, so p-values and
intervals are averages of normal tails over Gibbs draws of the variances.

Its error rates are measured, also where the model is wrong: `benchmarks/README.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import chdtri, gammaln, ndtr, ndtri, stdtr, stdtrit

from space.array import Array
from space.errors import ToolkitError

DEGREES = np.array([1.0, 2, 3, 4, 6, 8, 16, 32])
"""The values of ν, the degrees of freedom by which the variants' variances are drawn to each other."""

CHAINS, BURN_IN, KEPT = 128, 25, 100
"""For one table: parallel chains, the first sweeps of each, which are dropped, and the sweeps that are kept."""

ROUNDING = 1e-12
"""Differences that are smaller than this share of the values count as the values' rounding."""

WILD, RARE = 1.5, 0.05
"""Differences are wild, and the paired t test has a say in them, where their own variance is over `WILD` times the posterior's
median, and so large that a share below `RARE` of differences with the spread that is usual in the table would show it."""


@dataclass(frozen=True)
class RowVariances:
    """The variances of a table's rows, as draws from their posterior, and the comparisons that follow from them."""

    values: Array
    """Tables (tables, rows, seeds) in units of 2^`exponent`; NaN where a training is missing."""
    draws: Array
    """Variances (tables, draws, rows) in the square of that unit."""
    baseline: int
    exponent: int = 0

    def pairs(self, row: int, reference: int) -> Pairs:
        """The comparison of two rows over the seeds that both have, in every table."""
        differences = self.values[:, row] - self.values[:, reference]
        there = ~np.isnan(differences)
        count, differences = there.sum(1), np.where(there, differences, 0.0)
        mean = differences.sum(1) / np.maximum(count, 1)
        residuals = np.where(there, differences - mean[:, None], 0.0)
        spread = np.sqrt(np.square(residuals).sum(1) / np.maximum(count - 1, 1))
        rounding = ROUNDING * np.abs(np.where(there[:, None], self.values[:, [row, reference]], 0.0)).max((1, 2), initial=0.0)
        return Pairs(
            mean=mean,
            spread=np.where(spread > rounding, spread, 0.0),
            count=count,
            variance=self.draws[..., row] + self.draws[..., reference],
            usual=self._usual[:, row] + self._usual[:, reference],
            negligible=np.abs(differences).max(1, initial=0.0) <= rounding,
        )

    @cached_property
    def _usual(self) -> Array:
        """The variance that is expected of each row (tables, rows): the median row's, and the baseline's own."""
        medians = np.median(self.draws, axis=1)
        usual = np.broadcast_to(np.median(medians, axis=1, keepdims=True), medians.shape).copy()
        usual[:, self.baseline] = medians[:, self.baseline]
        return usual

    def compare(self, row: int, reference: int, level: float = 0.95) -> tuple[float, float, float]:
        """Compare two rows of the first table over the seeds that both have.

        Interval and p-value agree: one at 95 % excludes 0 exactly where p is below 0.05. They are the posterior's. Where the
        differences spread far more than the posterior says and than is usual in the table (`WILD`), or not at all, they are the
        more cautious of the posterior's and the paired t test's. Differences that are rounding of the values have p = 1.

        Args:
            row: The index of the row.
            reference: The index of the row that it is compared with.
            level: The level of the interval, between 0 and 1.

        Returns:
            The interval's ends and the two-sided p-value of the mean paired difference, row - reference, in the values' unit.
            With fewer than two common seeds there is no test, and all three are NaN.

        Raises:
            ToolkitError: The level is outside (0, 1).
        """
        if not 0 < level < 1:
            raise ToolkitError(f"level {level} is not between 0 and 1; take 0.95")
        pairs = self.pairs(row, reference)
        if pairs.count[0] < 2:
            return math.nan, math.nan, math.nan
        mean, half, p = float(pairs.mean[0]), float(pairs.half_width(level)[0]), float(pairs.p_value()[0])
        low, high = (min(mean, 0.0), max(mean, 0.0)) if pairs.negligible[0] else (mean - half, mean + half)
        return math.ldexp(low, self.exponent), math.ldexp(high, self.exponent), p


def row_variances(values: Array, baseline: int) -> RowVariances:
    """Draw the variances of a table's rows from their posterior; the draws are the same every time.

    All values count, also those of seeds that other rows lack. Rows with fewer than two values say nothing of variances. A row that
    equals an earlier one but for a constant, as where two rows share their trainings, counts once. The order of rows and seeds does
    not matter, nor does the unit.

    Args:
        values: The metric (rows, seeds), NaN where a training is missing.
        baseline: The index of the row whose variance has a prior of its own.

    Raises:
        ToolkitError: The values are not a table of numbers, one of them is infinite, or there is no such row.

    >>> table = np.array([[0.84, 0.79, 0.81, 0.86], [0.81, 0.78, 0.77, 0.83], [0.85, 0.78, 0.82, 0.84]])
    >>> low, high, p = row_variances(table, baseline=0).compare(1, 0)
    >>> print(f"{low:.3f} {high:.3f} {p:.3f}")
    -0.051 -0.004 0.034
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not 0 <= baseline < len(table):
        raise ToolkitError(
            f"values of shape {table.shape} with baseline {baseline} are no table; give (rows, seeds) and one row's index"
        )
    if np.isinf(table).any():
        raise ToolkitError("a value of the table is infinite; leave out trainings that have diverged, as NaN")
    # The unit is a power of two, so that scaling is exact.
    exponent = int(np.frexp(np.nanmax(np.abs(table), initial=0.0, where=~np.isnan(table)))[1])
    table = np.ldexp(table, -exponent)[None]
    # A place in the table has its random numbers, so places follow from the values.
    centred = _centred(table)[0]
    rows, seeds = np.argsort(np.square(centred).sum(1), kind="stable"), np.argsort(centred.sum(0), kind="stable")
    draws = np.empty((1, CHAINS * KEPT, len(rows)))
    draws[..., rows] = posterior_variances(table[:, rows][..., seeds], int(np.argsort(rows)[baseline]))
    return RowVariances(table, draws, baseline, exponent)


@dataclass(frozen=True)
class Pairs:
    """One comparison in every table, whose parts are (tables,) unless said otherwise."""

    mean: Array
    """The mean paired difference."""
    spread: Array
    """The differences' own standard deviation (n - 1); 0 where that is rounding of the values."""
    count: Array
    """The numbers of pairs."""
    variance: Array
    """Draws of the variance of a difference (tables, draws)."""
    usual: Array
    """The variance of such a difference that is usual in its table."""
    negligible: Array
    """Whether all differences are rounding of the values."""

    def p_value(self, shift: Array | float = 0.0) -> Array:
        """Two-sided p-values (tables,) that the true difference is `shift`."""
        distance = np.abs(self.mean - shift)
        p = 2 * ndtr(-distance[:, None] * np.sqrt(self.count[:, None] / self.variance)).mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = 2 * stdtr(np.maximum(self.count - 1, 1), -distance * np.sqrt(self.count) / self.spread)
        # Without spread t is infinite and says nothing, but all differences having one sign does: the sign-flip test.
        own = np.where(self.spread == 0, 2.0 ** (1 - self.count), own)
        p = np.where(self._wild, np.maximum(p, own), p)
        return np.where(self.negligible & (np.asarray(shift) == 0), 1.0, p)

    def half_width(self, level: float) -> Array:
        """Half of the widths of the intervals (tables,)."""
        # This import takes half a second, which those who need no interval do not wait for.
        from scipy.optimize import brentq

        halves = []
        for scale in np.sqrt(self.variance / self.count[:, None]):
            # The averaged tail reaches its level between the points where the narrowest and the widest do.
            low, high = (-float(ndtri((1 - level) / 2)) * end for end in (scale.min(), scale.max()))
            missing = lambda times: 2 * float(ndtr(-low * times / scale).mean()) - (1 - level)  # noqa: B023, E731
            halves.append(low * brentq(missing, 1 - 1e-9, high / low + 1e-9))
        own = stdtrit(np.maximum(self.count - 1, 1), (1 + level) / 2) * self.spread / np.sqrt(self.count)
        own = np.where(self.spread == 0, np.where(2.0 ** (1 - self.count) < 1 - level, 0.0, np.abs(self.mean)), own)
        return np.where(self._wild, np.maximum(halves, own), halves)

    @cached_property
    def _wild(self) -> Array:
        freedom = np.maximum(self.count - 1, 1)
        usual, own = self.usual * chdtri(freedom, RARE) / freedom, np.square(self.spread)
        return np.asarray((own > usual) & (own > WILD * np.median(self.variance, axis=1)) | (self.spread == 0))


def posterior_variances(tables: Array, baseline: int, chains: int = CHAINS, kept: int = KEPT) -> Array:
    """Draws (tables, chains·kept, rows) of the rows' variances for many tables (tables, rows, seeds) at once, by Gibbs sampling.

    A step for the rows' variances follows one for their means and the seeds' effects, without the means (van Dyk & Park 2008,
    J. Am. Stat. Assoc. 103); ν is drawn without s².
    """
    random = np.random.default_rng(0)
    present = ~np.isnan(tables)
    y = _centred(tables)
    floor = ROUNDING * np.abs(np.where(present, tables, 0.0)).max(2, initial=0.0)
    same = _first_of_equals(y, present, floor, baseline)
    informative = (present.sum(2) > 1) & (same == np.arange(tables.shape[1]))
    mask = np.where(informative[..., None], present, False).astype(np.float64)
    squares, freedom = np.square(y * mask).sum(2), np.maximum(mask.sum(2) - 1, 0)
    pooled = np.sqrt(squares.sum(1) / np.maximum(freedom.sum(1), 1))
    # The chains begin at the variance of a typical row, which one row that has diverged does not move.
    spreads = np.sqrt(squares / np.maximum(freedom, 1))
    spreads = np.where(spreads > floor, spreads, np.nan)
    spreads[np.isnan(spreads).all(1)] = 1.0
    unit = np.nanmedian(spreads, axis=1)
    y, floor = y / unit[:, None, None], np.square(floor / unit[:, None])
    draws = _gibbs(y, mask, floor, np.square(np.where(pooled > 0, pooled / unit, 1.0)), baseline, chains, kept, random)
    draws *= np.square(unit)[:, None, None]
    return np.take_along_axis(draws, np.broadcast_to(same[:, None], draws.shape), axis=2)


def _gibbs(
    y: Array, mask: Array, rounding: Array, pooled: Array, baseline: int, chains: int, kept: int, random: np.random.Generator
) -> Array:
    """The chains: `mask` has the values that count, `rounding` (tables, rows) and `pooled` (tables,) are variances."""
    tables, rows, seeds = y.shape
    y, count = (y * mask)[:, None], mask.sum(2)[:, None]
    many, there = np.maximum(count, 1.0), (count > 0).astype(np.float64)
    variants = there.copy()
    variants[..., baseline] = 0.0
    total, rounding, pooled = variants.sum(2, keepdims=True), count * rounding[:, None], pooled[:, None, None]
    # The prior of ν, with all factors that do not depend on the chain.
    half = DEGREES / 2
    shape = total * half + 0.5
    prior = -np.log(DEGREES) + total * (half * np.log(half) - gammaln(half)) + gammaln(shape)
    effects = np.zeros((tables, chains, seeds))
    degrees, scale, effect_precision = (np.ones((tables, chains, 1)) for _ in range(3))
    own = np.full((rows,), False)
    own[baseline] = True
    draws = np.empty((tables, kept, chains, rows))
    for sweep in range(-BURN_IN, kept):
        residuals = y - effects[:, :, None] * mask[:, None]
        means = residuals.sum(3) / many
        squares = np.maximum(np.square(residuals).sum(3) - many * np.square(means), 0.0) + rounding
        prior_degrees = np.where(own, 1.0, degrees)
        precision = random.standard_gamma((prior_degrees + np.maximum(count - 1, 0)) / 2)
        precision /= (prior_degrees * scale + squares) / 2
        if sweep >= 0:
            draws[:, sweep] = 1 / precision
        variants_precision = (precision * variants).sum(2, keepdims=True)
        rates = half * variants_precision + precision[..., baseline, None] / 2
        log_weights = prior + half * (np.log(precision) * variants).sum(2, keepdims=True) - shape * np.log(rates)
        chosen = (log_weights + random.gumbel(size=log_weights.shape)).argmax(2)[..., None]
        degrees = DEGREES[chosen]
        scale = random.standard_gamma(total * degrees / 2 + 0.5) / np.take_along_axis(rates, chosen, axis=2)
        means += random.standard_normal(means.shape) / np.sqrt(precision * many)
        weights = precision * there
        total_precision = effect_precision + weights @ mask
        effects = (weights @ y[:, 0] - (weights * means) @ mask) / total_precision
        effects += random.standard_normal(effects.shape) / np.sqrt(total_precision)
        # The level of the effects is that of the flat means, so it is integrated out.
        effects -= effects.sum(2, keepdims=True) / max(seeds, 1)
        mixing = random.standard_exponential(effect_precision.shape) / (1 / pooled + effect_precision)
        effect_precision = random.standard_gamma(np.full(mixing.shape, seeds / 2))
        effect_precision /= mixing + np.square(effects).sum(2, keepdims=True) / 2
    return draws.reshape(tables, kept * chains, rows)


def _centred(tables: Array) -> Array:
    """Values (tables, rows, seeds) about the means of their rows; 0 where one is missing."""
    present = ~np.isnan(tables)
    values = np.where(present, tables, 0.0)
    means = values.sum(2, keepdims=True) / np.maximum(present.sum(2, keepdims=True), 1)
    return np.where(present, values - means, 0.0)


def _first_of_equals(y: Array, present: Array, rounding: Array, baseline: int) -> Array:
    """For each row (tables, rows) the first that equals it but for a constant and rounding; the baseline comes first of all."""
    rows = y.shape[1]
    same = np.broadcast_to(np.arange(rows), y.shape[:2]).copy()
    for row in range(rows):
        for other in [baseline, *range(row)]:
            equal = (np.abs(y[:, row] - y[:, other]).max(1, initial=0.0) <= rounding[:, row]) & (
                present[:, row] == present[:, other]
            ).all(1)
            same[:, row] = np.where(equal & (same[:, row] == row), same[:, other], same[:, row])
    return same
