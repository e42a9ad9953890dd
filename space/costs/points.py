"""Many points of a search space at once: a column of values for every parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from space.array import Array
from space.spec import ModelSpec

Encode: TypeAlias = Callable[[Any], Any]
"""From a value of a spec to a number."""


@dataclass(frozen=True)
class Column:
    """The values of one parameter: numbers, or places in a list of `choices`; `active` marks the rows that have a value."""

    entries: Array
    choices: Sequence[Any] | None
    active: Array

    def value(self, row: int) -> Any:
        """The value in a row, as plain data."""
        return self.entries[row].item() if self.choices is None else self.choices[self.entries[row]]

    def numbers(self, encode: Encode) -> Array:
        """The values as numbers, those of inactive rows too."""
        if self.choices is None:
            return self.entries
        return np.array([encode(value) for value in self.choices])[self.entries]

    def equals(self, wanted: Any) -> Array:
        """Which rows hold the wanted value, or one of a list of them."""
        several = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if self.choices is None:
            return np.isin(self.entries, several)
        return np.array([value in several for value in self.choices])[self.entries]

    def take(self, rows: Array) -> Column:
        """Some of the rows."""
        return Column(self.entries[rows], self.choices, self.active[rows])


class Points:
    """`count` points around a base spec; columns are named by paths such as `channels` or `depths.2`."""

    def __init__(self, base: ModelSpec, columns: Mapping[str, Column], count: int) -> None:
        self.base, self.columns, self.count = base, dict(columns), count

    def params(self, row: int) -> dict[str, Any]:
        """The values of one point; inactive parameters are absent."""
        return {name: column.value(row) for name, column in self.columns.items() if column.active[row]}

    def take(self, rows: Array) -> Points:
        """Some of the points."""
        return Points(self.base, {name: column.take(rows) for name, column in self.columns.items()}, len(rows))

    def number(self, path: str, encode: Encode = int) -> Any:
        """The values at a path as numbers: an array, or one number where the path does not vary."""
        return self._over(path, encode(self.base.value_at(path)), encode)

    def at_stage(self, path: str, stage: int, encode: Encode = int) -> Any:
        """The values that hold at a stage."""

        def there(value: Any) -> Any:
            # A list that is too short makes the point unbuildable; see `fits`.
            return encode(value[min(stage, len(value) - 1)] if isinstance(value, (list, tuple)) else value)

        whole = self._over(path, there(self.base.value_at(path)), there)
        return self._over(f"{path}.{stage}", whole, encode)

    def fits(self, path: str, stages: int) -> Any:
        """Whether a path's values are one for all stages, or as many as there are stages."""

        def has_place(value: Any) -> bool:
            return not isinstance(value, (list, tuple)) or len(value) == stages

        fitting = self._over(path, has_place(self.base.value_at(path)), has_place)
        # Values set stage by stage make a list as long as the base spec's.
        listed = self.columns.get(f"{path}.0")
        return fitting if listed is None else np.where(listed.active, len(self.base.depths) == stages, fitting)

    def stage_counts(self) -> Array:
        """How many stages each point has."""
        counts = self._over("depths", len(self.base.depths), len)
        return np.broadcast_to(np.asarray(counts), self.count)

    def _over(self, name: str, below: Any, encode: Encode) -> Any:
        """A column's numbers, over what holds in rows where it is not active."""
        column = self.columns.get(name)
        if column is None:
            return below
        return np.where(column.active, column.numbers(encode), below)
