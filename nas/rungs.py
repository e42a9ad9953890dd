"""Rungs: which trials go on, compared at equal training compute (asynchronous successive halving, Li et al., MLSys 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Values = tuple[float, ...]
"""One value an objective, all to be minimised."""


class Rungs:
    """What every trial reported at every rung, and the decision that follows; the state is public and rebuilt from the ledger.

    A trial is judged once a rung, when it reports, against those that reported there before it (`stop` mode). With
    one objective it goes on when it is no worse than their best 1/reduction, as in Ray's ASHAScheduler. With two, all
    are ordered by non-dominated front and, within a front, by crowding distance (Deb et al., NSGA-II, 2002), and it
    goes on when at most 1/reduction of the others come before it.
    """

    def __init__(self, count: int, reduction: int) -> None:
        self.reduction = reduction
        self.recorded: list[dict[int, Values]] = [{} for _ in range(count)]

    def judge(self, trial: int, rung: int, values: Values) -> bool:
        """Record a trial's values at a rung and tell whether it goes on; nothing goes on from the last rung.

        Values that are not finite never go on and are not recorded. Raises ValueError when a trial reports at a rung
        twice or skips one.
        """
        if trial in self.recorded[rung]:
            raise ValueError(f"trial {trial} reported at rung {rung} twice")
        if rung and trial not in self.recorded[rung - 1]:
            raise ValueError(f"trial {trial} skipped rung {rung - 1}")
        if not all(math.isfinite(value) for value in values):
            return False
        others = list(self.recorded[rung].values())
        self.recorded[rung][trial] = values
        if rung == len(self.recorded) - 1:
            return False
        return not others or self._among_best(values, others)

    def _among_best(self, values: Values, others: list[Values]) -> bool:
        if len(values) == 1:
            return values[0] <= float(np.percentile([other[0] for other in others], 100 / self.reduction))
        order = by_front(np.array([*others, values]))
        return order.index(len(others)) <= len(others) / self.reduction


def by_front(values: np.ndarray) -> list[int]:
    """Indices of (N, M) values to be minimised, best first: by front, then from sparse to crowded, then by the first value."""
    left = list(range(len(values)))
    order: list[int] = []
    while left:
        front = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        crowding = _crowding(values[front])
        order += [front[k] for k in sorted(range(len(front)), key=lambda k: (-crowding[k], values[front[k]][0]))]
        left = [i for i in left if i not in front]
    return order


def dominates(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> bool:
    """Whether a is nowhere worse than b and somewhere better."""
    return bool(np.all(np.asarray(a) <= np.asarray(b)) and np.any(np.asarray(a) < np.asarray(b)))


def _crowding(values: np.ndarray) -> np.ndarray:
    """The crowding distance of every row of a front: the extent of the gap around it, infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        extent = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if extent > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
    return distance
