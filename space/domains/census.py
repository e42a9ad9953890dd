"""What a space holds: the feasible share, what the feasible cost, and which values are common among them."""

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

BINS = 4
"""Ranges of numbers with more than so many values are told in as many equal parts."""

SURELY_SEEN = 50
"""Draws for every point of a small space after which each was drawn, but for a chance of exp(-50)."""


@dataclass(frozen=True)
class Marginal:
    """One value (or range) of a parameter: its share among the drawn points that have the parameter, and among the feasible."""

    value: Any
    drawn: float
    feasible: float


@dataclass(frozen=True)
class Census:
    """What random points of a space are; `costs` holds the lowest and highest of every metric among the feasible.

    `draws` says how many were drawn in the end, `cheapest` and `dearest` are the feasible specs with the least and the most
    multiply-accumulates of one training step, and `nearest` is the spec that breaks the constraints least.
    """

    draws: int
    buildable: int
    feasible: int
    costs: dict[str, tuple[float, float]]
    marginals: dict[str, list[Marginal]]
    nearest: ModelSpec | None
    dearest_step_macs: int
    """One training step of the dearest feasible spec."""
    cheapest: ModelSpec | None = None
    dearest: ModelSpec | None = None

    @property
    def share(self) -> float:
        """The estimated feasible share of the space."""
        return self.feasible / self.draws


def census(space: SearchSpace, rng: np.random.Generator, draws: int, batch_size: int = 1) -> Census:
    """Draw so many points of a space and say what they are; steps are costed at the batch size.

    When none of them is feasible, drawing goes on until one is, for at most TRIES points in all. Points are drawn and forgotten in
    chunks, so memory does not grow with their number. Raises SpecError for less than one draw.
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
    """The points drawn so far, counted: the extremes are kept, the rest is forgotten."""

    def __init__(self, space: SearchSpace, batch_size: int) -> None:
        self.space, self.batch_size = space, batch_size
        self.draws = self.buildable = self.feasible = 0
        self._costs: dict[str, tuple[float, float]] = {}
        self._least: dict[str, tuple[float, dict[str, Any]]] = {}
        """By what is sought, the lowest amount so far and the values of its point."""
        self._parts = {parameter.name: _parts(parameter.domain) for parameter in space.parameters}
        self._counts = {name: np.zeros((2, len(parts)), dtype=np.int64) for name, parts in self._parts.items()}
        self._active = {name: np.zeros(2, dtype=np.int64) for name in self._parts}

    def add(self, rng: np.random.Generator, count: int) -> None:
        """Draw and count so many more."""
        table = CostTable(self.space.points(rng, count))
        violation = self.space.violation(table)
        feasible = violation == 0
        self.draws += count
        self.buildable += int(table.buildable.sum())
        self.feasible += int(feasible.sum())
        self._seek("nearest", table, violation)
        if feasible.any():
            steps = table.step_macs(self.batch_size).astype(float)
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
        """What has been counted."""
        found = {what: self.space.spec(params) for what, (_, params) in self._least.items()}
        dearest = found.get("dearest")
        return Census(
            draws=self.draws,
            buildable=self.buildable,
            feasible=self.feasible,
            costs=self._costs,
            marginals={name: self._marginals(name) for name in self._parts},
            nearest=found.get("nearest"),
            dearest_step_macs=cost(dearest).step_macs(self.batch_size) if dearest else 0,
            cheapest=found.get("cheapest"),
            dearest=dearest,
        )

    def _marginals(self, name: str) -> list[Marginal]:
        shares = self._counts[name] / np.maximum(self._active[name], 1)[:, None]
        labels = [label for label, _, _ in self._parts[name]]
        return [Marginal(label, *share) for label, share in zip(labels, shares.T.tolist(), strict=True)]


def _parts(domain: Domain) -> list[tuple[Any, Any, Any]]:
    """A domain in parts that are told apart: what each is called, and the least and largest entry in it."""
    if domain.choice is not None:
        return [(value, place, place) for place, value in enumerate(domain.choice)]
    if domain.int_ is not None:
        values = range(domain.int_[0], domain.int_[1] + 1, domain.step)
        if len(values) <= BINS:
            return [(value, value, value) for value in values]
        bounds: tuple[float, float] = (values[0], values[-1])
    else:
        assert domain.float_ is not None, "`each` is resolved to one domain a stage"
        bounds = domain.float_
        if bounds[0] == bounds[1]:
            return [(bounds[0], *bounds)]
    edges = np.linspace(*bounds, BINS + 1)
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    # A part begins where the one before it ends, and the outer ones have no ends, so that every value is in one part.
    starts, ends = [-np.inf, *edges[1:-1]], [*np.nextafter(edges[1:-1], -np.inf), np.inf]
    return list(zip(labels, starts, ends, strict=True))


def _points_in(space: SearchSpace) -> float:
    """How many points there are, all equally likely; infinite where numbers are real or not drawn evenly."""
    domains = [parameter.domain for parameter in space.parameters]
    return math.prod(math.inf if domain.log or domain.values is None else domain.values for domain in domains)
