"""The order in which recorded architectures are tried again: a fixed one, or that of a sampler's proposals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from nas.replay.curves import Recorded
from nas.runs.records import State
from nas.search.variants import Values
from nas.study.choices import SearcherKind
from nas.study.study import Study
from space.array import Array
from space.costs.points import Column, Points
from space.costs.table import CostTable
from space.domains.domain import Value
from space.domains.space import Parameter, Params, SearchSpace

ReplaySampler = Literal["recorded"] | SearcherKind


class Order:
    """A fixed order of the recorded architectures, given as their indices (`places`).

    A simulated search reports how the tried architectures end. It calls them by `number`, which counts them as they are tried. A
    fixed order ignores these reports.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places

    def next(self, number: int) -> int:
        """The index of the recorded architecture to try under this number."""
        return self._places[number]

    def tell_waiting(self, number: int, losses: Sequence[float]) -> None:
        """Report that an architecture waits at a rung, with one loss per rung so far."""

    def resume(self, number: int) -> None:
        """Report that a waiting architecture trains on."""

    def tell(self, number: int, state: State, values: Values, losses: Sequence[float]) -> None:
        """Report that an architecture ended: `values` of the objectives when COMPLETE, and one loss per rung reached."""


class Proposed(Order):
    """A sampler's proposals, each moved to the nearest untried recorded architecture; those outside the space come first."""

    def __init__(self, record: Recorded, kind: ReplaySampler, seed: int) -> None:
        # Optuna takes a while to import, and listed orders do without it.
        from nas.search.proposals import SEARCHERS

        search = record.search
        sampler = search.sampler.model_copy(update={"kind": kind, "seed": seed})
        inside = [place for place, curve in enumerate(record.curves) if curve.params is not None]
        self._outside = [place for place, curve in enumerate(record.curves) if curve.params is None]
        self._space = RecordedSpace(record.study, {place: record.curves[place].params or {} for place in inside})
        # With a feasible share of 0, the searcher moves every proposal to a point of the space: a recorded architecture.
        self._searcher = SEARCHERS[kind](self._space, search.model_copy(update={"sampler": sampler}), 0.0)

    def next(self, number: int) -> int:
        """The index of the recorded architecture nearest to the next proposal."""
        if number < len(self._outside):
            return self._outside[number]
        proposed = self._searcher.suggest(number, self._space.rejects)
        assert proposed is not None, "an architecture is left"
        return self._space.take(proposed.params)

    def tell_waiting(self, number: int, losses: Sequence[float]) -> None:
        """Tell the sampler, as a search does."""
        if number in self._searcher:
            self._searcher.tell_waiting(number, losses)

    def resume(self, number: int) -> None:
        """Tell the sampler, as a search does."""
        if number in self._searcher:
            self._searcher.resume(number)

    def tell(self, number: int, state: State, values: Values, losses: Sequence[float]) -> None:
        """Tell the sampler, as a search does."""
        if number in self._searcher:
            self._searcher.tell(number, state, values, losses)


class RecordedSpace(SearchSpace):
    """A search space whose only points are the recorded ones that were not tried yet."""

    def __init__(self, study: Study, params: Mapping[int, Params]) -> None:
        assert study.search is not None, "only searches are replayed"
        domains = {path: study.search.space[path] for path in study.varied}
        super().__init__(study.base, domains, study.search.constraints, study.nuisance)
        columns = {parameter.name: _column(parameter, list(params.values())) for parameter in self.parameters}
        self._all = Points(self.base, columns, len(params))
        self._rows = {_key(self._all.params(row)): row for row in range(len(params))}
        self._places = list(params)
        self._left = np.ones(len(params), dtype=bool)

    @property
    def free(self) -> frozenset[str]:
        """None: a recorded architecture has the settings that it was trained with."""
        return frozenset()

    def points(self, rng: np.random.Generator, count: int) -> Points:
        """All points that are left, in a random order, whatever the count."""
        return self._all.take(rng.permutation(np.flatnonzero(self._left)))

    def violation(self, table: CostTable) -> Array:
        """Zeros, because every recorded architecture is feasible."""
        return np.zeros(len(table))

    def rejects(self, params: Params) -> dict[str, float] | None:
        """None for a recorded point that is left; otherwise by how much the point breaks which constraints."""
        row = self._rows.get(_key(params))
        if row is not None and self._left[row]:
            return None
        spec = self.spec_or_none(params)
        return {"spec": 1.0} if spec is None else self.violations(spec)

    def take(self, params: Params) -> int:
        """Mark a recorded point as tried, and return the index of its architecture."""
        row = self._rows[_key(params)]
        self._left[row] = False
        return self._places[row]


def _column(parameter: Parameter, params: Sequence[Params]) -> Column:
    name, domain = parameter.name, parameter.domain
    active = np.array([name in point for point in params])
    if domain.choice is not None:
        indices = {json.dumps(value): index for index, value in enumerate(domain.choice)}
        chosen = np.array([indices[json.dumps(point[name])] if name in point else 0 for point in params])
        return Column(chosen, domain.choice, active)
    low, _ = domain.int_ or domain.float_ or (0, 0)
    kind = np.int64 if domain.int_ is not None else np.float64
    return Column(np.array([point.get(name, low) for point in params], dtype=kind), None, active)


def _key(params: Mapping[str, Value]) -> str:
    return json.dumps(params, sort_keys=True)


def order_of(record: Recorded, sampler: ReplaySampler, seed: int) -> Order:
    """The order of a name; the seed is that of a shuffle, or of the sampler."""
    places = range(len(record.curves))
    if sampler == "recorded":
        return Order(places)
    if sampler == "random":
        return Order(np.random.default_rng(seed).permutation(len(places)).tolist())
    return Proposed(record, sampler, seed)
