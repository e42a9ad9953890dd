"""Feasible points of a space near a point that need not be feasible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from space.array import Array
from space.costs.points import Column
from space.costs.table import CostTable
from space.domains.domain import Domain, Value
from space.domains.space import Params, SearchSpace


def feasible_near(space: SearchSpace, wanted: Mapping[str, Value], rng: np.random.Generator, draws: int) -> Iterator[Params]:
    """Feasible points of a space, nearest to a wanted point first.

    Args:
        space: The search space.
        wanted: The values of the wanted point, which need not be feasible.
        rng: The source of randomness.
        draws: The number of random points, of which the feasible ones are returned; see `distances` for their order. Settings that
            are no part of the spec have the wanted values, as no constraint speaks of them.
    """
    points = space.points(rng, draws)
    feasible = np.flatnonzero(space.violation(CostTable(points)) == 0)
    points = points.take(feasible)
    far = distances(space, points.columns, points.count, wanted)
    kept = {name: wanted[name] for name in space.free if name in wanted}
    for row in np.argsort(far, kind="stable"):
        params = points.params(int(row))
        yield params | {name: value for name, value in kept.items() if name in params}


def distances(space: SearchSpace, columns: Mapping[str, Column], count: int, wanted: Mapping[str, Value]) -> Array:
    """Gower's distance (Biometrics 27, 1971) of `count` points from a wanted one, summed over the space's parameters.

    A parameter adds 1 where the choices differ or only one of the two points has a value. Numbers add their difference relative to
    the range, in the logarithm for logarithmic domains.
    """
    total = np.zeros(count)
    for parameter in space.parameters:
        column = columns[parameter.name]
        if parameter.name not in wanted:
            total += column.active
        else:
            apart = _apart(parameter.domain, column, wanted[parameter.name])
            total += np.where(column.active, apart, 1.0)
    return total


def _apart(domain: Domain, column: Column, wanted: Value) -> Array:
    if domain.choice is not None:
        return ~column.equals([wanted])
    bounds = domain.int_ or domain.float_
    assert bounds is not None, "`each` is resolved to one domain per stage"
    scaled = np.log if domain.log else np.asarray
    low, high = (float(scaled(bound)) for bound in bounds)
    apart: Array = np.abs(scaled(column.entries) - scaled(wanted)) / ((high - low) or 1.0)
    return apart
