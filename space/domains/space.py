"""The search space: domains over the values of a spec, with conditions and hard constraints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import ValidationError

from space.array import Array
from space.costs.cost import COST_METRICS, cost
from space.costs.points import Column, Points
from space.costs.table import CostTable
from space.document import nearest, reason
from space.domains.domain import Domain, Range, Value
from space.errors import Mistakes, SpecError, StudyError
from space.paths import PER_STAGE_PATHS, plain_value, value_type
from space.spec import ModelSpec, spec_paths, today
from space.stage import at_stage

Params = dict[str, Value]
"""Values by flat name: a dotted path, or a path and a stage's index (`depths.2`). Inactive parameters are absent."""

TRIES = 3_000_000
"""Points that are drawn, in about ten seconds, before a space counts as having no feasible one."""

REAL_PATHS = {"feed_forward.ratio"}
"""Paths whose values are not whole numbers or names."""

CHECKED_VALUES = 64
"""At most this many values of an integer range are checked one by one, and its last value."""

FIRST_CHUNK, LARGEST_CHUNK = 256, 131_072

FIXED_BY_DATA = {"in_channels", "input_size", "num_classes"}
"""Paths that a space cannot vary, because the data decide them."""


@dataclass(frozen=True)
class Parameter:
    """One value to choose: its flat name, its domain, and the values of other paths, as of `plain_value`, that make it active."""

    name: str
    domain: Domain
    when: dict[str, list[Value]]

    def active(self, params: Mapping[str, Value], base: Mapping[str, Value]) -> bool:
        """Whether the conditions hold for the values chosen so far, the base spec's used for paths that are not searched."""
        return all(plain_value(path, params.get(path, base[path])) in wanted for path, wanted in self.when.items())


class SearchSpace:
    """Specs around a base spec.

    `domains` maps dotted paths of the spec to domains. `constraints` maps cost metrics to ranges that every feasible spec keeps to.
    `settings` maps names of values that are drawn with a spec and are no part of it, such as a learning rate, to domains; they are
    without cost, and their values are the caller's to check.

    Raises:
        StudyError: For a path, a condition or a metric that does not exist.
    """

    def __init__(
        self,
        base: ModelSpec,
        domains: Mapping[str, Domain],
        constraints: Mapping[str, Range] | None = None,
        settings: Mapping[str, Domain] | None = None,
    ) -> None:
        self.base, self.settings = base, frozenset(settings or ())
        self.constraints = dict(constraints or {})
        mistakes: list[tuple[tuple[str | int, ...], str]] = [
            (("constraints", metric), f"constraint '{metric}' is not a cost{nearest(metric, COST_METRICS)}")
            for metric in self.constraints
            if metric not in COST_METRICS
        ]
        self._base_values = {path: base.value_at(path) for path in spec_paths()}
        for path, domain in [*domains.items(), *(settings or {}).items()]:
            try:
                if path in domains:
                    self._check(path, domain, domains)
                self._check_conditions(path, domain, domains)
            except StudyError as error:
                mistakes.append((("space", path), str(error)))
        if mistakes:
            raise Mistakes(mistakes)
        own = [parameter for path, domain in (settings or {}).items() for parameter in self._parameters(path, domain)]
        self.parameters = (*self._ordered(domains), *own)

    def _check(self, path: str, domain: Domain, domains: Mapping[str, Domain]) -> None:
        """Raise StudyError for a path or a value that no spec has."""
        if path not in self._base_values:
            raise StudyError(f"the space varies '{path}', which no spec has{today(path) or nearest(path, spec_paths())}")
        if path in FIXED_BY_DATA:
            raise StudyError(f"the space varies '{path}', which the data decide; remove it")
        if domain.each is not None and path not in PER_STAGE_PATHS:
            raise StudyError(
                f"'{path}' has one value for all stages, so 'each' does not apply; these have one per stage: "
                f"{', '.join(PER_STAGE_PATHS)}"
            )
        self._check_values(path, domain.each or domain, one_stage=domain.each is not None)

    def _check_conditions(self, path: str, domain: Domain, domains: Mapping[str, Domain]) -> None:
        """Raise StudyError for a condition that no spec has."""
        for parent, wanted in domain.when.items():
            self._check_condition(path, parent, domains)
            for value in wanted if isinstance(wanted, (list, tuple)) else [wanted]:
                _check_value(parent, value, one_stage=False)

    def _ordered(self, domains: Mapping[str, Domain]) -> Iterator[Parameter]:
        """The parameters, each after those that its conditions name."""
        placed: set[str] = set()
        while len(placed) < len(domains):
            ready = [
                p
                for p in domains
                if p not in placed and all(parent in placed or parent not in domains for parent in domains[p].when)
            ]
            if not ready:
                raise StudyError(f"the conditions of {', '.join(p for p in domains if p not in placed)} go in a circle")
            for path in ready:
                placed.add(path)
                yield from self._parameters(path, domains[path])

    def _check_values(self, path: str, domain: Domain, one_stage: bool) -> None:
        """Check that every choice, or points of a range, are valid values of the spec."""
        values: list[Value] = list(domain.choice or ())
        if domain.int_ is not None:
            low_int, high_int = domain.int_
            whole = range(low_int, high_int + 1, domain.step)
            # A range over a few named numbers, such as kernels, may have holes between good ends.
            values = [*whole[:CHECKED_VALUES], whole[-1]]
        elif domain.float_ is not None:
            if path not in REAL_PATHS:
                raise StudyError(f"the space varies '{path}' over real numbers, which it does not take; write int or choice")
            low, high = domain.float_
            values = [low, low + (high - low) / 3, high]
        for value in values:
            _check_value(path, value, one_stage)

    def _check_condition(self, path: str, parent: str, domains: Mapping[str, Domain]) -> None:
        if parent not in self._base_values:
            raise StudyError(f"'{path}' depends on '{parent}', which no spec has{today(parent) or nearest(parent, spec_paths())}")
        if parent in domains and domains[parent].each is not None:
            raise StudyError(f"'{path}' depends on '{parent}', which has one value per stage; a condition needs a single value")

    def _parameters(self, path: str, domain: Domain) -> Iterator[Parameter]:
        when = {
            parent: [plain_value(parent, value) for value in (wanted if isinstance(wanted, (list, tuple)) else [wanted])]
            for parent, wanted in domain.when.items()
        }
        if domain.each is None:
            yield Parameter(path, domain, when)
        else:
            for stage in range(len(self.base.depths)):
                yield Parameter(f"{path}.{stage}", domain.each, when)

    @property
    def free(self) -> frozenset[str]:
        """The settings that can have any value of their domain beside any spec."""
        return self.settings

    def active(self, parameter: Parameter, params: Mapping[str, Value]) -> bool:
        """Whether a parameter is active, given the values of those before it."""
        return parameter.active(params, self._base_values)

    def spec(self, params: Mapping[str, Value]) -> ModelSpec:
        """The spec of chosen values; raises SpecError when no such architecture can be built."""
        return self.base.replace({name: value for name, value in params.items() if name not in self.settings})

    def params_of(self, spec: ModelSpec, settings: Mapping[str, Value] | None = None) -> Params | None:
        """The values that give this architecture, each as its domain holds it; None for an architecture outside the space.

        `settings` has the values of the space's settings; None where one of them is outside the space.

        What counts is the network: it does not matter whether a value that all stages share is written once or for each of them,
        nor which value a path has where it has no effect.
        """
        params: Params = {}
        for parameter in self.parameters:
            if not self.active(parameter, params):
                continue
            if parameter.name in self.settings:
                chosen = parameter.domain.own((settings or {}).get(parameter.name))
                if chosen is None:
                    return None
                params[parameter.name] = chosen
                continue
            path, _, stage = parameter.name.rpartition(".")
            if not stage.isdecimal():
                path, value = parameter.name, spec.value_at(parameter.name)
            elif int(stage) >= len(spec.depths):
                return None
            else:
                value = at_stage(spec.value_at(path), int(stage))
            own = parameter.domain.own(value, partial(plain_value, path, stages=len(spec.depths)))
            # Any value will do where the path has no effect; where it has one, the digests differ.
            params[parameter.name] = parameter.domain.first if own is None else own
        found = self.spec_or_none(params)
        return params if found is not None and found.digest == spec.digest else None

    def violations(self, spec: ModelSpec) -> dict[str, float]:
        """The amount by which the spec breaks each constraint, relative to the bound; empty for a feasible spec."""
        amounts = {metric: float(wanted.violation(getattr(cost(spec), metric))) for metric, wanted in self.constraints.items()}
        return {metric: amount for metric, amount in amounts.items() if amount > 0}

    def spec_or_none(self, params: Mapping[str, Value]) -> ModelSpec | None:
        """The spec of chosen values, None when it cannot be built."""
        try:
            return self.spec(params)
        except SpecError:
            return None

    def points(self, rng: np.random.Generator, count: int) -> Points:
        """Points drawn independently from the domains, whether or not they can be built or are feasible."""
        columns: dict[str, Column] = {}
        for parameter in self.parameters:
            active = np.ones(count, dtype=bool)
            for path, wanted in parameter.when.items():
                parent, base = columns.get(path), plain_value(path, self._base_values[path]) in wanted
                if parent is not None and parent.choices is not None:
                    wanted = [choice for choice in parent.choices if plain_value(path, choice) in wanted]
                active &= base if parent is None else np.where(parent.active, parent.equals(wanted), base)
            columns[parameter.name] = Column(parameter.domain.draw(rng, count), parameter.domain.choice, active)
        return Points(self.base, columns, count)

    def violation(self, table: CostTable) -> Array:
        """The summed amount by which each point breaks constraints: 0 if feasible, infinite if it cannot be built."""
        total = np.zeros(len(table))
        for metric, wanted in self.constraints.items():
            total += wanted.violation(getattr(table, metric))
        return np.where(table.buildable, total, np.inf)

    def sample(self, rng: np.random.Generator, tries: int = TRIES) -> ModelSpec:
        """A spec drawn uniformly among the feasible ones; raises SpecError when `tries` draws find none."""
        return self.spec(self.sample_params(rng, tries))

    def sample_params(self, rng: np.random.Generator, tries: int = TRIES) -> Params:
        """The values behind `sample`."""
        return next(self.feasible(rng, tries))

    def feasible(self, rng: np.random.Generator, tries: int = TRIES) -> Iterator[Params]:
        """The feasible points among `tries` independent draws, in that order; raises SpecError when there are none."""
        drawn, chunk, any_feasible = 0, FIRST_CHUNK, False
        nearest: tuple[float, Params] = np.inf, {}
        while drawn < tries:
            points = self.points(rng, min(chunk, tries - drawn))
            violation = self.violation(CostTable(points))
            for row in np.flatnonzero(violation == 0):
                any_feasible = True
                yield points.params(int(row))
            best = int(np.argmin(violation))
            nearest = min(nearest, (float(violation[best]), points.params(best)), key=lambda candidate: candidate[0])
            drawn, chunk = drawn + len(violation), min(4 * chunk, LARGEST_CHUNK)
        if not any_feasible:
            raise SpecError(self.problem(drawn, self.spec(nearest[1]) if nearest[0] < np.inf else None))

    def problem(self, draws: int, nearest: ModelSpec | None) -> str:
        """The message for a space in which nothing feasible was found."""
        wanted = ", ".join(f"{metric} {bounds}" for metric, bounds in self.constraints.items())
        if nearest is None:
            return (
                f"none of {draws} random points of the space is an architecture that can be built; check that heads "
                f"divide the widths"
            )
        reached = ", ".join(f"{metric} {getattr(cost(nearest), metric):.4g}" for metric in self.constraints)
        return (
            f"none of {draws} random architectures of the space has {wanted}; the nearest has {reached}, so widen "
            f"the range or the space"
        )


def cost_table(space: SearchSpace, n: int, rng: np.random.Generator | None = None) -> CostTable:
    """The costs of `n` random points of a space; the same points every time unless a generator is given."""
    return CostTable(space.points(rng or np.random.default_rng(0), n))


def _check_value(path: str, value: Value, one_stage: bool) -> None:
    try:
        # Depths are always a list: check one stage's value as all values of a short list.
        value_type(path).validate_python((value,) * 3 if one_stage and path == "depths" else _as_tuple(value), strict=True)
    except ValidationError as error:
        raise StudyError(f"the space gives '{path}' the value {value!r}: {reason(error, value)}") from None


def _as_tuple(value: Value) -> Value:
    return tuple(value) if isinstance(value, list) else value
