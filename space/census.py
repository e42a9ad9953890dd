"""What a space holds: the feasible share, what the feasible cost, and which values are common among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from space.cost_table import CostTable
from space.errors import SpecError
from space.points import Array, Column
from space.search_space import COST_METRICS, SearchSpace
from space.spec import ModelSpec

BINS = 4
"""Ranges of numbers with more than so many values are told in as many equal parts."""


@dataclass(frozen=True)
class Marginal:
    """One value (or range) of a parameter: its share among the drawn points that have the parameter, and among the feasible."""

    value: Any
    drawn: float
    feasible: float


@dataclass(frozen=True)
class Census:
    """What random points of a space are; `costs` holds the lowest and highest of every metric among the feasible."""

    draws: int
    buildable: int
    feasible: int
    costs: dict[str, tuple[float, float]]
    marginals: dict[str, list[Marginal]]
    nearest: ModelSpec | None
    dearest_step_macs: int
    """One training step of the dearest feasible spec."""

    @property
    def share(self) -> float:
        """The estimated feasible share of the space."""
        return self.feasible / self.draws


def census(space: SearchSpace, rng: np.random.Generator, draws: int, batch_size: int = 1) -> Census:
    """Draw so many points of a space and say what they are."""
    if draws < 1:
        raise SpecError(f"a census of {draws} points says nothing; draw at least 1")
    table = CostTable(space.points(rng, draws))
    violation = space.violation(table)
    feasible = violation == 0
    best = int(np.argmin(violation))
    among = {metric: getattr(table, metric)[feasible] for metric in COST_METRICS}
    return Census(
        draws=draws,
        buildable=int(table.buildable.sum()),
        feasible=int(feasible.sum()),
        costs={metric: (float(values.min()), float(values.max())) for metric, values in among.items() if len(values)},
        marginals={name: _marginals(column, feasible) for name, column in table.points.columns.items()},
        nearest=space.spec(table.points.params(best)) if np.isfinite(violation[best]) else None,
        dearest_step_macs=int(table.step_macs(batch_size)[feasible].max(initial=0)),
    )


def _marginals(column: Column, feasible: Array) -> list[Marginal]:
    entries = column.entries[column.active]
    chosen = column.entries[column.active & feasible]
    if column.choices is not None:
        return _shares(entries, chosen, [(value, place, place) for place, value in enumerate(column.choices)])
    values = np.unique(entries)
    if len(values) <= BINS:
        return _shares(entries, chosen, [(v.item(), v, v) for v in values])
    edges = np.linspace(values[0], values[-1], BINS + 1)
    # A part begins where the one before it ends, so that every value is in one part.
    ends = [*np.nextafter(edges[1:-1], -np.inf), edges[-1]]
    return _shares(entries, chosen, [(f"{a:.4g} to {b:.4g}", a, b) for a, b in zip(edges[:-1], ends, strict=True)])


def _shares(entries: Array, chosen: Array, parts: list[tuple[Any, Any, Any]]) -> list[Marginal]:
    def share(among: Array, low: Any, high: Any) -> float:
        return float(((among >= low) & (among <= high)).mean()) if len(among) else 0.0

    return [Marginal(value, share(entries, low, high), share(chosen, low, high)) for value, low, high in parts]
