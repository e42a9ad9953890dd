"""The law of scaling curves, E + A·C^(−α), and its least-squares fit to a few budgets and to many resamples of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from space.array import Array

ALPHAS = (0.01, 3.0)
"""Bounds of the exponent: below, a curve is a logarithm over any affordable budgets; above, it is a step."""

_GRID, _ZOOMS, _ZOOM_POINTS = 40, 6, 9
"""Each zoom is 4 times as fine as the grid before it, so the relative error of α is about 1e-5."""


@dataclass(frozen=True, eq=False)
class Law:
    """Curves E + sign·A·(C / unit)^(−α), one per entry of `E`, `A` and `alpha`; `unit` is the geometric mean of the budgets.

    `sign` is 1 where lower is better and -1 where higher is better, so A is never negative.
    """

    E: Array
    A: Array
    alpha: Array
    unit: float
    sign: int

    def at(self, compute: ArrayLike) -> Array:
        """The metric at one or several computes, shape (curves, computes)."""
        log_x = np.log(np.atleast_1d(np.asarray(compute, dtype=float)) / self.unit)
        return np.asarray(self.E[:, None] + self.sign * self.A[:, None] * np.exp(-self.alpha[:, None] * log_x))

    def tangent(self, compute: Array) -> Array:
        """The derivatives of the first curve by E, A and alpha, shape (computes, 3)."""
        log_x = np.log(compute / self.unit)
        power = self.sign * np.exp(-self.alpha[0] * log_x)
        return np.stack([np.ones_like(log_x), power, -self.A[0] * power * log_x], axis=1)

    @property
    def parameters(self) -> dict[str, Array]:
        """E, A and alpha of the law in C, without `unit`."""
        return {"E": self.E, "A": self.A * self.unit**self.alpha, "alpha": self.alpha}


def fit_law(means: Array, compute: Array, weights: Array, sign: int, limit: float) -> Law:
    """The least-squares law through each row of `means`, with A ≥ 0 and E no better than `limit`.

    For a given α the best (E, A) has a closed form (variable projection, Golub & Pereyra 1973), so a search over α on a grid,
    refined six times, needs no starting values and cannot diverge.

    Args:
        means: Shape (curves, budgets).
        compute: The budgets.
        weights: The factors of the residuals, one per budget.
        sign: 1 where lower is better, -1 where higher is better.
        limit: The best value that the metric can have; ±inf where there is none.
    """
    unit = float(np.exp(np.mean(np.log(compute))))
    bounded = math.isfinite(limit)
    # As falling curves whose floor is at least 0, (budgets, curves, alphas): sums over the first axis are the fastest.
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
    """For each curve and α the best E and A, and their weighted squared misfit: shape (curves, alphas) each."""
    powers = np.exp(-alphas * log_x)
    mean_power, mean = (powers * share).sum(0), (falling * share).sum(0)
    centred = powers - mean_power
    weighted = share * centred
    scale = np.maximum((weighted * (falling - mean)).sum(0) / (weighted * centred).sum(0), 0.0)
    floor = mean - scale * mean_power
    if bounded and (floor < 0).any():
        # The best A where E is at its bound.
        weighted = share * powers
        at_bound = np.maximum((weighted * falling).sum(0) / (weighted * powers).sum(0), 0.0)
        scale, floor = np.where(floor < 0, at_bound, scale), np.maximum(floor, 0.0)
    misfit = (share * (falling - floor - scale * powers) ** 2).sum(0)
    return floor, scale, misfit


@dataclass(frozen=True, eq=False)
class Budgets:
    """One family's values, shape (seeds, budgets) with NaN where missing, and their statistics per budget."""

    compute: Array
    values: Array
    mean: Array
    count: Array
    relative: bool
    """Whether residuals are relative to the means."""
    sign: int
    limit: float

    @property
    def weights(self) -> Array:
        """The factors of the residuals: 1 / mean for relative residuals, else 1."""
        return 1 / self.mean if self.relative else np.ones(len(self.mean))

    @property
    def deviations(self) -> Array:
        """Each seed's value minus the mean; 0 where it is missing."""
        return np.asarray(np.nan_to_num(self.values - self.mean))

    def law(self, means: Array) -> Law:
        """The laws through rows of means, whose columns are the first budgets."""
        used = means.shape[1]
        return fit_law(means, self.compute[:used], self.weights[:used], self.sign, self.limit)


@dataclass(frozen=True, eq=False)
class SeedDraws:
    """Random draws that all families share, so that they stay paired: a normal weight per seed, and a level for Student's t."""

    weights: Array
    level: Array

    @classmethod
    def of(cls, seeds: int, resamples: int, rng: np.random.Generator) -> SeedDraws:
        """New draws; `weights` has shape (resamples, seeds)."""
        return cls(rng.standard_normal((resamples, seeds)), _levels(resamples, rng))


@dataclass(frozen=True, eq=False)
class Noise:
    """The random draws of a family's resamples, shape (resamples, budgets), and one `level` per resample."""

    of_seeds: Array
    """The deviations of the budgets' means due to the seeds, in the metric's unit."""
    interaction: float
    """The variance of a mean due to noise that is not common to a seed's whole curve, in units of the weighted residuals."""
    normal: Array
    """Standard normal draws for the misfit, whose size is known once a law is fitted."""
    level: Array

    @classmethod
    def of(cls, budgets: Budgets, shared: SeedDraws, rng: np.random.Generator) -> Noise:
        """New draws for a family; `shared.weights` has a column per row of its values."""
        count, several = budgets.count, budgets.count > 1
        normal = rng.standard_normal((2, len(shared.level), len(count)))
        level = _levels(len(shared.level), rng)
        if not several.any():
            return cls(np.zeros_like(normal[0]), 0.0, normal[0], level)
        relative = budgets.deviations * budgets.weights
        # A budget with one seed, among others with several, gets their pooled spread.
        pooled = math.sqrt(np.sum(relative**2) / np.sum(count[several] - 1))
        by_seeds = shared.weights @ budgets.deviations / np.sqrt(count * np.maximum(count - 1, 1))
        of_seeds = np.where(several, by_seeds, pooled / budgets.weights * normal[1])
        factor = _student(shared.level, int(np.median(count[several])) - 1)
        return cls(of_seeds * factor, _interaction(budgets, relative), normal[0], level)


def resampled_laws(budgets: Budgets, noise: Noise, used: int) -> tuple[Law, Law, Array]:
    """The law through the first `used` budgets, the laws through resamples, and the deviations of all budgets' means in these."""
    mean = budgets.mean[None, :used]
    law = budgets.law(mean)
    missed = np.sum(((mean - law.at(budgets.compute[:used])) * budgets.weights[:used]) ** 2) / (used - 3)
    # The part of the misfit due to the seeds is in `of_seeds` already.
    sd = math.sqrt(max(missed - noise.interaction, 0.0))
    deviations = noise.of_seeds + sd / budgets.weights * noise.normal * _student(noise.level, used - 3)
    return law, budgets.law(mean + deviations[:, :used]), deviations


def _levels(resamples: int, rng: np.random.Generator) -> Array:
    # Above 0, where Student's t is infinite.
    return rng.uniform(1e-6, 1, size=resamples)


def _student(level: Array, freedom: int) -> Array:
    """The factors that turn normal draws into Student's t, as a column; equal levels and degrees of freedom give equal factors."""
    return np.asarray(np.sqrt(freedom / chi2.ppf(level, freedom)))[:, None]


def _interaction(budgets: Budgets, relative: Array) -> float:
    """The variance of a budget's mean that is left after removing each seed's mean deviation (two-way layout)."""
    present = ~np.isnan(budgets.values) & (budgets.count > 1)
    common = (relative * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    freedom = present.sum() - present.any(axis=0).sum() - present.any(axis=1).sum() + 1
    if freedom < 1:
        return 0.0
    variance = np.sum((present * (relative - common[:, None])) ** 2) / freedom
    return float(variance * np.mean(1 / budgets.count))
