"""What separates two specs."""

from __future__ import annotations

from typing import Any, NamedTuple

from space.domains.space import FIXED_BY_DATA
from space.spec import ModelSpec, spec_paths


class Difference(NamedTuple):
    """A path at which two specs differ."""

    path: str
    before: Any
    after: Any


def diff(one: ModelSpec, other: ModelSpec) -> list[Difference]:
    """The paths at which two specs differ."""
    return [
        Difference(path, one.value_at(path), other.value_at(path))
        for path in spec_paths()
        if path not in FIXED_BY_DATA and one.value_at(path) != other.value_at(path)
    ]
