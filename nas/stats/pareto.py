"""The order of several objectives: non-dominated fronts, and crowding within a front (NSGA-II, Deb et al. 2002)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def by_front(values: Array) -> list[int]:
    """Indices of (N, K) values to be minimised, best first: by front, then from sparse to crowded, then by the first value."""
    order: list[int] = []
    for front in fronts(values):
        crowding = _crowding(values[front])
        order += [front[k] for k in sorted(range(len(front)), key=lambda k: (-crowding[k], values[front[k]][0], front[k]))]
    return order


def fronts(values: Array) -> list[list[int]]:
    """Indices of (N, K) values in fronts: nothing in a front is dominated but by members of those before it.

    In the order of first values a point can be dominated only by earlier ones, and one that a front dominates is dominated by all
    fronts before it too, so that its own is found by bisection (efficient non-dominated sort, Zhang et al. 2015).
    """
    # Equal points do not dominate one another, so they stay together.
    distinct, places = np.unique(values, axis=0, return_inverse=True)
    of = _fronts_of_two(distinct) if distinct.shape[1] == 2 else _fronts_of_many(distinct)
    found: list[list[int]] = [[] for _ in range(max(of, default=-1) + 1)]
    for index, place in enumerate(places.reshape(-1).tolist()):
        found[of[place]].append(index)
    return found


def _fronts_of_two(distinct: Array) -> list[int]:
    """The front of each of (N, 2) distinct points in rising order of their values."""
    of: list[int] = []
    # The lowest second value of every front so far, rising from front to front: a front dominates a point exactly when that is not
    # above the point's own.
    lowest: list[float] = []
    for second in distinct[:, 1].tolist():
        front = bisect_right(lowest, second)
        lowest[front : front + 1] = [second]
        of.append(front)
    return of


def _fronts_of_many(distinct: Array) -> list[int]:
    """The front of each of (N, K) distinct points in rising order of their values."""
    of: list[int] = []
    members: list[Array] = []
    """By front: its points but for their first value, (n, K - 1)."""
    for point in distinct[:, 1:]:
        front = bisect_left(members, True, key=partial(_spared_by, point))
        of.append(front)
        members[front : front + 1] = [np.vstack([*members[front : front + 1], point])]
    return of


def _spared_by(point: Array, front: Array) -> bool:
    """Whether none of a front's points (n, K) dominates a distinct one."""
    return not bool((front <= point).all(axis=1).any())


def _crowding(values: Array) -> Array:
    """The crowding distance of every row of a front: the extent of the gap around it, infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        extent = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if extent > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
    return distance
