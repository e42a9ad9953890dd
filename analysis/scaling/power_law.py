"""The law of scaling curves, E + A·C^(−α): its least-squares fit to a few budgets, and to many resamples of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from space.array import Array

ALPHAS = (0.01, 3.0)
"""Bounds of the exponent: below, a curve is a logarithm within any budgets one can pay; above, it is a step."""

_GRID, _ZOOMS, _ZOOM_POINTS = 40, 6, 9
"""A zoom is 4 times as fine as the grid before it, so α is found to about 1e-5 of its value."""


@dataclass(frozen=True, eq=False)
class Law:
    """Curves E + sign·A·(C / unit)^(−α), one for each entry of `E`, `A` and `alpha`; `unit` is the budgets' geometric mean.

    `sign` is 1 where lower is better and -1 where higher is, so A is never negative.
    """

    E: Array
    A: Array
    alpha: Array
    unit: float
    sign: int

    def at(self, compute: ArrayLike) -> Array:
        """The metric at one or more computes, shape (curves, computes)."""
        log_x = np.log(np.atleast_1d(np.asarray(compute, dtype=float)) / self.unit)
        return np.asarray(self.E[:, None] + self.sign * self.A[:, None] * np.exp(-self.alpha[:, None] * log_x))

    @property
    def parameters(self) -> dict[str, Array]:
        """E, A and alpha for C in its own unit."""
        return {"E": self.E, "A": self.A * self.unit**self.alpha, "alpha": self.alpha}


def fit_law(means: Array, compute: Array, weights: Array, sign: int, limit: float) -> Law:
    """The law of least squares through each row of `means`, shape (curves, budgets), with A ≥ 0 and E no better than `limit`.

    `weights` multiply the residuals of the budgets; `limit` is ±inf where a metric has none. For a given α the best (E, A) is
    closed form (variable projection, Golub & Pereyra 1973), so a search over α on a grid, refined six times, takes no
    starting values and cannot diverge.
    """
    unit = float(np.exp(np.mean(np.log(compute))))
    bounded = math.isfinite(limit)
    # As a falling curve whose floor may not lie below 0. Budgets come first, (budgets, curves, alphas): sums are fast so.
    falling = (sign * (means - limit) if bounded else sign * means).T[:, :, None]
    log_x, share = (column[:, None, None] for column in (np.log(compute / unit), weights**2 / np.sum(weights**2)))
    alphas = np.geomspace(*ALPHAS, _GRID)[None]
    rows = np.arange(len(means))
    for zoom in range(_ZOOMS + 1):
        floor, scale, misfit = _profile(alphas, falling, log_x, share, bounded)
        best = misfit.argmin(axis=1)
        alphas = np.broadcast_to(alphas, misfit.shape)
        if zoom < _ZOOMS:
            low, high = alphas[rows, np.maximum(best - 1, 0)], alphas[rows, np.minimum(best + 1, alphas.shape[1] - 1)]
            alphas = low[:, None] * (high / low)[:, None] ** np.linspace(0, 1, _ZOOM_POINTS)
    E = sign * floor[rows, best] + (limit if bounded else 0.0)
    return Law(E, scale[rows, best], alphas[rows, best], unit, sign)


def _profile(alphas: Array, falling: Array, log_x: Array, share: Array, bounded: bool) -> tuple[Array, Array, Array]:
    """For each curve and α the best E and A, and what they miss: shape (curves, alphas) each."""
    powers = np.exp(-alphas * log_x)
    mean_power, mean = (powers * share).sum(0), (falling * share).sum(0)
    centred = powers - mean_power
    weighted = share * centred
    scale = np.maximum((weighted * (falling - mean)).sum(0) / (weighted * centred).sum(0), 0.0)
    floor = mean - scale * mean_power
    if bounded and (floor < 0).any():
        # Of two unknowns one at its bound: the other's best alone.
        weighted = share * powers
        alone = np.maximum((weighted * falling).sum(0) / (weighted * powers).sum(0), 0.0)
        scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0.0)
    misfit = (share * (falling - floor - scale * powers) ** 2).sum(0)
    return floor, scale, misfit


@dataclass(frozen=True, eq=False)
class Budgets:
    """One family's values, shape (seeds, budgets) with NaN for what is missing, and what follows for each budget."""

    compute: Array
    values: Array
    mean: Array
    count: Array
    weights: Array
    """What residuals are multiplied by: 1 / mean for relative ones."""
    sign: int
    limit: float

    @property
    def off(self) -> Array:
        """What each seed's value differs by from the mean, 0 for a missing one."""
        return np.asarray(np.nan_to_num(self.values - self.mean))

    def law(self, means: Array) -> Law:
        """The laws through rows of means of the first budgets, as many as there are columns."""
        used = means.shape[1]
        return fit_law(means, self.compute[:used], self.weights[:used], self.sign, self.limit)


@dataclass(frozen=True, eq=False)
class SeedDraws:
    """What all families share in the resamples, which keeps their pairing: a normal weight a seed, and a level for Student's t."""

    weights: Array
    level: Array

    @classmethod
    def of(cls, seeds: int, resamples: int, rng: np.random.Generator) -> SeedDraws:
        """New ones, `weights` of shape (resamples, seeds)."""
        return cls(rng.standard_normal((resamples, seeds)), _levels(resamples, rng))


@dataclass(frozen=True, eq=False)
class Noise:
    """What a family's resamples draw, shape (resamples, budgets) but for `level`, which has one a resample."""

    of_seeds: Array
    """Deviations of the budgets' means that the seeds explain, in the metric's unit."""
    interaction: float
    """The variance of a mean by what is not common to a seed's whole curve, in units of the weighted residuals."""
    normal: Array
    """For the misfit, whose size is known once a law is fitted."""
    level: Array

    @classmethod
    def of(cls, budgets: Budgets, shared: SeedDraws, rng: np.random.Generator) -> Noise:
        """Draws for a family; `shared.weights` has a column for each row of its values."""
        count, several = budgets.count, budgets.count > 1
        normal = rng.standard_normal((2, len(shared.level), len(count)))
        level = _levels(len(shared.level), rng)
        if not several.any():
            return cls(np.zeros_like(normal[0]), 0.0, normal[0], level)
        relative = budgets.off * budgets.weights
        # A budget of one seed, among others of several, is given their spread.
        pooled = math.sqrt(np.sum(relative**2) / np.sum(count[several] - 1))
        by_seeds = shared.weights @ budgets.off / np.sqrt(count * np.maximum(count - 1, 1))
        of_seeds = np.where(several, by_seeds, pooled / budgets.weights * normal[1])
        factor = _student(shared.level, int(np.median(count[several])) - 1)
        return cls(of_seeds * factor, _interaction(budgets, relative), normal[0], level)


def resampled_laws(budgets: Budgets, noise: Noise, used: int) -> tuple[Law, Law, Array]:
    """The law through the first `used` budgets, those through resamples, and by how much all budgets' means deviate in these."""
    mean = budgets.mean[None, :used]
    law = budgets.law(mean)
    missed = np.sum(((mean - law.at(budgets.compute[:used])) * budgets.weights[:used]) ** 2) / (used - 3)
    # The part of the misfit that the seeds explain is drawn with them already.
    sd = math.sqrt(max(missed - noise.interaction, 0.0))
    deviations = noise.of_seeds + sd / budgets.weights * noise.normal * _student(noise.level, used - 3)
    return law, budgets.law(mean + deviations[:, :used]), deviations


def _levels(resamples: int, rng: np.random.Generator) -> Array:
    # Not down to 0, where Student's t is infinite.
    return rng.uniform(1e-6, 1, size=resamples)


def _student(level: Array, freedom: int) -> Array:
    """What turns normal draws into Student's t, a column; the same levels give the same factors for equal degrees of freedom."""
    return np.asarray(np.sqrt(freedom / chi2.ppf(level, freedom)))[:, None]


def _interaction(budgets: Budgets, relative: Array) -> float:
    """The variance of a budget's mean that is left when each seed's mean deviation is taken out (two-way layout)."""
    present = ~np.isnan(budgets.values) & (budgets.count > 1)
    common = (relative * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    freedom = present.sum() - present.any(axis=0).sum() - present.any(axis=1).sum() + 1
    if freedom < 1:
        return 0.0
    variance = np.sum((present * (relative - common[:, None])) ** 2) / freedom
    return float(variance * np.mean(1 / budgets.count))
