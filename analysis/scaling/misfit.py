"""The misfit of a law: its test against the noise of the seeds, and its draws as a smooth process over log compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import f as f_distribution
from scipy.stats import t as student_t

from analysis.scaling.power_law import Budgets, Law, Noise, resampled_laws
from space.array import Array

LEVEL = 0.05
"""A law is rejected where its lack of fit has a p-value up to this."""

_LENGTH = 2.0
"""The length of the process, in doublings of compute: misfits this far apart have a correlation of 0.5."""

_FREQUENCIES = student_t.ppf(0.5 + (np.arange(32) + 0.5) / 64, 3) / _LENGTH
"""Quantiles of the spectral density of a Matérn 3/2 process, Student's t with 3 degrees (Rasmussen & Williams 2006, eq. 4.15)."""

_SCALES = 12
_SHARES = (0.0, 0.3, 0.6, 0.85, 0.97)
"""The grid over the misfit's standard deviation and over the share of its variance that is common to the families."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a fitted law leaves of the budgets' means, in units of the weighted residuals."""

    budgets: Budgets
    law: Law
    left: Array
    """The weighted residuals, one per budget."""
    contrasts: Array
    """Orthonormal contrasts that no small change of the law's free parameters moves, shape (budgets, degrees of freedom)."""
    inverse: Array
    """The changes of E, A and alpha that least squares makes of changes of the weighted means, shape (3, budgets)."""
    noise: float
    """The variance that the seeds give to the value of a contrast; 0 where no budget has two seeds."""
    p: float
    """The p-value of the lack of fit; NaN where no budget has two seeds, or the seeds do not differ."""

    @classmethod
    def of(cls, budgets: Budgets, law: Law) -> Residuals:
        """The residuals of a fit, and the F test of its lack of fit against the pure error between seeds.

        Each seed's curve gives one value of each contrast, so what a seed does to all rungs of its trials drops out. Under the law
        the contrasts' means are 0; their mean square over that between seeds has an F distribution. The seeds' contrasts may be
        correlated, as the rungs of a trial are, so the degrees of freedom have Huynh & Feldt's (1976) factor.
        """
        tangent = law.tangent(budgets.compute) * budgets.weights[:, None]
        free = 3 - int(law.E[0] == budgets.limit)
        if free < 3:
            tangent[:, 0] = 0
        contrasts = np.linalg.svd(tangent)[0][:, free:]
        left = (budgets.mean - law.at(budgets.compute)[0]) * budgets.weights
        count, several = budgets.count, budgets.count > 1
        noise, p = 0.0, math.nan
        if several.any():
            relative = budgets.deviations * budgets.weights
            pooled = np.sum(relative**2) / np.sum(count[several] - 1)
            of_means = relative / np.sqrt(count * np.maximum(count - 1, 1))
            covariance = contrasts.T @ (of_means.T @ of_means + np.diag(np.where(several, 0, pooled))) @ contrasts
            noise = float(np.trace(covariance)) / contrasts.shape[1]
            if noise > 1e-20 * float(np.mean((budgets.mean * budgets.weights) ** 2)):
                p = _lack_of_fit(contrasts.T @ left, covariance, int(np.median(count[several])))
        return cls(budgets, law, left, contrasts, np.linalg.pinv(tangent), noise, p)

    def bent(self, laws: Law, process: Array, waves: Array, origin: float) -> BentLaw:
        """Laws with a process, whose waves at the budgets are given: what it takes there, the law gives back."""
        change = -process @ waves.T @ self.inverse.T
        relative = self.budgets.relative
        return BentLaw(laws.E, laws.A, laws.alpha, laws.unit, laws.sign, process, change, self.law, relative, origin)


def _lack_of_fit(values: Array, covariance: Array, seeds: int) -> float:
    freedom, trace = len(values), np.trace(covariance)
    # Box's factor from the estimated covariance is too small with few seeds; Huynh and Feldt's corrects it.
    box = trace**2 / (freedom * np.trace(covariance @ covariance))
    below = freedom * (seeds - 1 - freedom * box)
    factor = min(max((seeds * freedom * box - 2) / below, 1 / freedom), 1.0) if below > 0 else 1.0
    return float(f_distribution.sf(values @ values / trace, factor * freedom, factor * freedom * (seeds - 1)))


@dataclass(frozen=True, eq=False)
class BentLaw(Law):
    """Laws with a misfit: a smooth process over log compute, and the changes of the law that make room for it.

    The misfit of a metric with relative residuals is in its logarithm.
    """

    process: Array
    """The process's coefficients, shape (curves, 2 · frequencies)."""
    change: Array
    """Changes of E, A and alpha of the law `fitted`, shape (curves, 3), to first order."""
    fitted: Law
    relative: bool
    origin: float
    """The compute at which the process's waves begin; all families of a fit have the same."""

    def at(self, compute: ArrayLike) -> Array:
        """The metric at one or several computes, shape (curves, computes)."""
        places, straight = np.atleast_1d(np.asarray(compute, dtype=float)), super().at(compute)
        tangent = self.fitted.tangent(places)
        if self.relative:
            tangent = tangent / self.fitted.at(places)[0][:, None]
        bend = self.process @ _waves(places, self.origin).T + self.change @ tangent.T
        # Far beyond all budgets a bend may overflow.
        return np.asarray(straight * np.exp(np.clip(bend, -50, 50)) if self.relative else straight + bend)


def bent_laws(missed: Sequence[tuple[Residuals, Noise]], rng: np.random.Generator) -> list[tuple[Law, Law]]:
    """The curves of families whose laws are rejected: the fitted one of each, and those of its resamples.

    The misfit is the model discrepancy of Kennedy & O'Hagan (2001): a Matérn 3/2 process over log compute, added to the law at the
    budgets and beyond. Its standard deviation and the share of its variance that all families have in common are drawn from their
    posterior over a grid (uniform in the share and in the logarithm of the sd, which is at least the noise of a mean), given the
    contrasts of all families. Given these, a resample is a draw of the law and the process together, conditioned on the budgets'
    means (Matheron's rule: Journel & Huijbregts 1978). So curves follow the means, the uncertainty grows beyond them, and a misfit
    that the families share cancels in their difference.

    Args:
        missed: The residuals and the noise of each family.
        rng: The source of the draws.
    """
    families = [residuals for residuals, _ in missed]
    origin = math.exp(float(np.mean([math.log(one.law.unit) for one in families])))
    waves = [_waves(one.budgets.compute, origin) for one in families]
    seen = [one.left @ one.contrasts for one in families]
    # Without seeds to tell it, noise takes the whole misfit.
    noise = [value @ value / len(value) if math.isnan(one.p) else one.noise for one, value in zip(families, seen, strict=True)]
    posterior = _Posterior.of(seen, [one.contrasts.T @ own for one, own in zip(families, waves, strict=True)], noise)
    resamples = len(missed[0][1].level)
    cell = rng.choice(len(posterior.cells), resamples, p=posterior.weights)
    scale, share = (column[:, None] for column in posterior.cells[cell].T)
    normal = rng.standard_normal((len(families) + 1, resamples, 2 * len(_FREQUENCIES)))
    drawn = [scale * (np.sqrt(share) * normal[0] + np.sqrt(1 - share) * own) for own in normal[1:]]
    straight, values = [], []
    for (one, its), process, own, value in zip(missed, drawn, waves, seen, strict=True):
        if math.isnan(one.p):
            _, laws, deviations = resampled_laws(one.budgets, its, len(one.left))
        else:
            deviations = its.of_seeds
            laws = one.budgets.law(one.budgets.mean + deviations)
        straight.append(laws)
        values.append(value + (process @ own.T + deviations * one.budgets.weights) @ one.contrasts)
    centre, known = posterior.mean(), posterior.expected(values, cell)
    return [
        (one.bent(one.law, centre[place], own, origin), one.bent(straight[place], known[place] - drawn[place], own, origin))
        for place, (one, own) in enumerate(zip(families, waves, strict=True))
    ]


@dataclass(frozen=True, eq=False)
class _Posterior:
    """The grid over the misfit's standard deviation and its common share, and what each of its cells expects of the process."""

    cells: Array
    """Pairs of standard deviation and share, shape (cells, 2)."""
    seen: list[Array]
    """Each family's contrasts."""
    bases: list[Array]
    """The waves in each family's contrasts, shape (contrasts, 2 · frequencies)."""
    noise: list[float]
    """The variance of the noise of each family's contrasts."""

    @classmethod
    def of(cls, seen: list[Array], bases: list[Array], noise: list[float]) -> _Posterior:
        """The posterior given each family's contrasts, the waves in these, and the variance of their noise."""
        least = math.sqrt(np.mean(noise))
        most = 10 * max(least, math.sqrt(sum(value @ value for value in seen) / sum(np.sum(basis**2) for basis in bases)))
        shares = _SHARES if len(seen) > 1 else (0.0,)
        cells = np.array([(scale, share) for scale in np.geomspace(least, most, _SCALES) for share in shares])
        return cls(cells, seen, bases, noise)

    @cached_property
    def weights(self) -> Array:
        """The probabilities of the cells."""
        likelihood = np.empty(len(self.cells))
        for index, cell in enumerate(self.cells):
            weighted, log_determinant = self._weighted(cell, [value[None] for value in self.seen])
            square = sum(float(value @ part[0]) for value, part in zip(self.seen, weighted, strict=True))
            likelihood[index] = -(log_determinant + square) / 2
        weights = np.exp(likelihood - likelihood.max())
        return np.asarray(weights / weights.sum())

    def _weighted(self, cell: Array, values: list[Array]) -> tuple[list[Array], float]:
        """Contrasts, shape (rows, contrasts) a family, times the inverse of their covariance, and the log of its determinant.

        What is common has the rank of the waves, so by Woodbury's identity no matrix is larger than these or than one family.
        """
        own, common = cell[0] ** 2 * (1 - cell[1]), cell[0] ** 2 * cell[1]
        weighted, weighted_bases, log_determinant = [], [], 0.0
        for basis, noise, value in zip(self.bases, self.noise, values, strict=True):
            factor = cho_factor(own * basis @ basis.T + noise * np.eye(len(basis)), lower=True)
            weighted.append(cho_solve(factor, value.T).T)
            weighted_bases.append(cho_solve(factor, basis))
            log_determinant += 2 * float(np.log(np.diag(factor[0])).sum())
        inner = sum(basis.T @ part for basis, part in zip(self.bases, weighted_bases, strict=True))
        factor = cho_factor(np.eye(self.bases[0].shape[1]) + common * inner, lower=True)
        log_determinant += 2 * float(np.log(np.diag(factor[0])).sum())
        pulled = common * cho_solve(factor, sum(part @ basis for part, basis in zip(weighted, self.bases, strict=True)).T).T
        return [part - pulled @ basis.T for part, basis in zip(weighted, weighted_bases, strict=True)], log_determinant

    def _at(self, cell: Array, values: list[Array]) -> list[Array]:
        """The process that contrasts, shape (rows, contrasts) a family, let expect; shape (rows, 2 · frequencies) a family."""
        scale, share = cell
        alone = [part @ basis for part, basis in zip(self._weighted(cell, values)[0], self.bases, strict=True)]
        together = sum(alone)
        return [scale**2 * ((1 - share) * part + share * together) for part in alone]

    def expected(self, values: list[Array], cell: Array) -> list[Array]:
        """The same where each row has a cell of its own, given by its index."""
        found = [np.empty((len(cell), basis.shape[1])) for basis in self.bases]
        for index in np.unique(cell):
            rows = cell == index
            for whole, part in zip(found, self._at(self.cells[index], [value[rows] for value in values]), strict=True):
                whole[rows] = part
        return found

    def mean(self) -> list[Array]:
        """The process that is expected given the data, per family, shape (1, 2 · frequencies)."""
        found = [np.zeros((1, basis.shape[1])) for basis in self.bases]
        for weight, cell in zip(self.weights, self.cells, strict=True):
            if weight > 1e-9:
                for whole, part in zip(found, self._at(cell, [value[None] for value in self.seen]), strict=True):
                    whole += weight * part
        return found


def _waves(compute: Array, origin: float) -> Array:
    """The process's basis at computes, shape (computes, 2 · frequencies): coefficients of variance 1 give variance 1."""
    phase = np.log2(compute / origin)[:, None] * _FREQUENCIES
    return np.asarray(np.hstack([np.cos(phase), np.sin(phase)]) / math.sqrt(len(_FREQUENCIES)))
