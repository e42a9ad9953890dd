"""Many points of a search space at once: one column of values per parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from space.array import Array
from space.spec import ModelSpec

Encode: TypeAlias = Callable[[Any], Any]
"""A function from a value of a spec to a number."""


@dataclass(frozen=True)
class Column:
    """The values of one parameter: numbers, or indices into `choices`; `active` marks the rows that have a value."""

    entries: Array
    choices: Sequence[Any] | None
    active: Array

    def value(self, row: int) -> Any:
        """The value in a row, as plain data."""
        return self.entries[row].item() if self.choices is None else self.choices[self.entries[row]]

    def numbers(self, encode: Encode) -> Array:
        """The values as numbers, in inactive rows too."""
        if self.choices is None:
            return self.entries
        return np.array([encode(value) for value in self.choices])[self.entries]

    def equals(self, wanted: Any) -> Array:
        """The rows that hold the wanted value, or one of several."""
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
        """The values at a stage, as numbers: an array, or one number where they do not vary."""

        def value_there(value: Any) -> Any:
            # A list that is too short makes the point unbuildable; see `fits`.
            return encode(value[min(stage, len(value) - 1)] if isinstance(value, (list, tuple)) else value)

        whole = self._over(path, value_there(self.base.value_at(path)), value_there)
        return self._over(f"{path}.{stage}", whole, encode)

    def fits(self, path: str, stages: int) -> Any:
        """Whether the value at a path is one for all stages, or lists one per stage."""

        def has_right_length(value: Any) -> bool:
            return not isinstance(value, (list, tuple)) or len(value) == stages

        fitting = self._over(path, has_right_length(self.base.value_at(path)), has_right_length)
        # Values set stage by stage make a list as long as the base spec's.
        listed = self.columns.get(f"{path}.0")
        return fitting if listed is None else np.where(listed.active, len(self.base.depths) == stages, fitting)

    def stage_counts(self) -> Array:
        """The number of stages of each point."""
        counts = self._over("depths", len(self.base.depths), len)
        return np.broadcast_to(np.asarray(counts), self.count)

    def _over(self, name: str, below: Any, encode: Encode) -> Any:
        """The numbers of a column, with those of `below` in rows where it is inactive."""
        column = self.columns.get(name)
        if column is None:
            return below
        return np.where(column.active, column.numbers(encode), below)
