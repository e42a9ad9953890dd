"""A census of a search space: the feasible share, the costs of feasible specs, and the values that are common among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from space.array import Array
from space.costs.cost import COST_METRICS, cost
from space.costs.table import CostTable
from space.domains.domain import Domain
from space.domains.space import LARGEST_CHUNK, TRIES, SearchSpace
from space.errors import SpecError
from space.spec import ModelSpec

BINS, MOST_VALUES = 4, 64
"""Ranges with more than MOST_VALUES values are reported in BINS equal parts."""

LIKELY = 10
"""A value counts as never feasible where this many feasible points with it would be expected by chance, and there is none."""

SURELY_SEEN = 50
"""Draws per point of a small space after which a given point is missed with a chance of exp(-50)."""


@dataclass(frozen=True)
class Marginal:
    """One value (or range) of a parameter: its share among the drawn points that have the parameter, and among the feasible.

    `points` is the number of drawn points with the value.
    """

    value: Any
    points: int
    drawn: float
    feasible: float


@dataclass(frozen=True)
class Census:
    """Counts and extremes over random points of a space.

    `draws`, `buildable` and `feasible` are numbers of points. `costs` holds the lowest and highest value of every metric among the
    feasible. `mean_step_macs` are the multiply-accumulates of one training step, the mean over the feasible; `cheapest` and
    `dearest` are the feasible specs with the least and the most of them, and `nearest` is the spec that breaks the constraints
    least.
    """

    draws: int
    buildable: int
    feasible: int
    costs: dict[str, tuple[float, float]]
    marginals: dict[str, list[Marginal]]
    nearest: ModelSpec | None
    dearest_step_macs: int
    """Multiply-accumulates of one training step of the dearest feasible spec."""
    cheapest: ModelSpec | None = None
    dearest: ModelSpec | None = None
    mean_step_macs: float = 0.0

    @property
    def share(self) -> float:
        """The estimated feasible share of the space."""
        return self.feasible / self.draws

    @property
    def never_feasible(self) -> dict[str, list[Any]]:
        """By parameter: the values with which no drawn point is feasible, as far as there were draws enough to say so."""
        never = {
            name: [part.value for part in parts if not part.feasible and part.points * self.share >= LIKELY]
            for name, parts in self.marginals.items()
        }
        return {name: values for name, values in never.items() if values}


def census(space: SearchSpace, rng: np.random.Generator, draws: int, batch_size: int = 1) -> Census:
    """Draw points of a space and count them.

    When none of them is feasible, drawing continues until one is, up to TRIES points in total. Points are drawn and dropped in
    chunks, so memory does not grow with their number.

    Args:
        space: The search space.
        rng: The source of randomness.
        draws: The number of points to draw.
        batch_size: Samples per training step, for the cost of a step.

    Raises:
        SpecError: For less than one draw.
    """
    if draws < 1:
        raise SpecError(f"a census of {draws} points says nothing; draw at least 1")
    tally = _Tally(space, batch_size)
    while tally.draws < draws:
        tally.add(rng, min(LARGEST_CHUNK, draws - tally.draws))
    most = min(TRIES, SURELY_SEEN * _points_in(space))
    while not tally.feasible and tally.draws < most:
        tally.add(rng, min(LARGEST_CHUNK, TRIES - tally.draws))
    return tally.census()


class _Tally:
    """Running counts over the points drawn so far; of the points themselves only the extremes are kept."""

    def __init__(self, space: SearchSpace, batch_size: int) -> None:
        self.space, self.batch_size = space, batch_size
        self.draws = self.buildable = self.feasible = 0
        self._step_macs = 0.0
        self._costs: dict[str, tuple[float, float]] = {}
        self._least: dict[str, tuple[float, dict[str, Any]]] = {}
        """The lowest amount so far, and the values of its point, by the extreme that is sought."""
        self._parts = {parameter.name: _parts(parameter.domain) for parameter in space.parameters}
        self._counts = {name: np.zeros((2, len(parts)), dtype=np.int64) for name, parts in self._parts.items()}
        self._active = {name: np.zeros(2, dtype=np.int64) for name in self._parts}

    def add(self, rng: np.random.Generator, count: int) -> None:
        """Draw and count more points."""
        table = CostTable(self.space.points(rng, count))
        violation = self.space.violation(table)
        feasible = violation == 0
        self.draws += count
        self.buildable += int(table.buildable.sum())
        self.feasible += int(feasible.sum())
        self._seek("nearest", table, violation)
        if feasible.any():
            steps = table.step_macs(self.batch_size).astype(float)
            self._step_macs += float(steps[feasible].sum())
            self._seek("cheapest", table, np.where(feasible, steps, np.inf))
            self._seek("dearest", table, np.where(feasible, -steps, np.inf))
            for metric in COST_METRICS:
                values = getattr(table, metric)[feasible]
                low, high = self._costs.get(metric, (np.inf, -np.inf))
                self._costs[metric] = (min(low, float(values.min())), max(high, float(values.max())))
        for name, column in table.points.columns.items():
            for row, rows in enumerate((column.active, column.active & feasible)):
                entries = column.entries[rows]
                self._active[name][row] += len(entries)
                self._counts[name][row] += [((entries >= low) & (entries <= high)).sum() for _, low, high in self._parts[name]]

    def _seek(self, what: str, table: CostTable, amounts: Array) -> None:
        row = int(np.argmin(amounts))
        if amounts[row] < self._least.get(what, (np.inf, {}))[0]:
            self._least[what] = float(amounts[row]), table.points.params(row)

    def census(self) -> Census:
        """The census of all points drawn so far."""
        extremes = {what: self.space.spec(params) for what, (_, params) in self._least.items()}
        dearest = extremes.get("dearest")
        return Census(
            draws=self.draws,
            buildable=self.buildable,
            feasible=self.feasible,
            costs=self._costs,
            marginals={name: self._marginals(name) for name in self._parts},
            nearest=extremes.get("nearest"),
            dearest_step_macs=cost(dearest).step_macs(self.batch_size) if dearest else 0,
            cheapest=extremes.get("cheapest"),
            dearest=dearest,
            mean_step_macs=self._step_macs / max(1, self.feasible),
        )

    def _marginals(self, name: str) -> list[Marginal]:
        shares = self._counts[name] / np.maximum(self._active[name], 1)[:, None]
        labels = [label for label, _, _ in self._parts[name]]
        points = self._counts[name][0].tolist()
        return [Marginal(label, count, *share) for label, count, share in zip(labels, points, shares.T.tolist(), strict=True)]


def _parts(domain: Domain) -> list[tuple[Any, Any, Any]]:
    """The parts of a domain that are counted separately: the label, the least and the largest entry of each."""
    if domain.choice is not None:
        return [(value, index, index) for index, value in enumerate(domain.choice)]
    if domain.int_ is not None:
        values = range(domain.int_[0], domain.int_[1] + 1, domain.step)
        if len(values) <= MOST_VALUES:
            return [(value, value, value) for value in values]
        bounds: tuple[float, float] = (values[0], values[-1])
    else:
        assert domain.float_ is not None, "`each` is resolved to one domain per stage"
        bounds = domain.float_
        if bounds[0] == bounds[1]:
            return [(bounds[0], *bounds)]
    edges = np.linspace(*bounds, BINS + 1)
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    # A part begins where the one before it ends, and the outer ones have no ends, so that every value is in one part.
    starts, ends = [-np.inf, *edges[1:-1]], [*np.nextafter(edges[1:-1], -np.inf), np.inf]
    return list(zip(labels, starts, ends, strict=True))


def _points_in(space: SearchSpace) -> float:
    """The number of points when all are equally likely; infinite where numbers are real or not drawn evenly."""
    domains = [parameter.domain for parameter in space.parameters]
    return math.prod(math.inf if domain.log or domain.values is None else domain.values for domain in domains)
