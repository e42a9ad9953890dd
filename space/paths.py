"""Dotted paths into a spec, such as `attention.tokens`, `depths.2` or `depths.bottleneck`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import TypeAdapter

from space.spec import NESTED, PER_STAGE, ModelSpec

PER_STAGE_PATHS = ("depths", *PER_STAGE)
"""The paths that can hold one value per stage."""


def replace(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """A copy of a spec with other values at dotted paths; see `ModelSpec.replace`.

    >>> from space import preset
    >>> replace(preset("u-dit-s"), {"channels": 192, "depths.2": 4}).depths
    (2, 5, 4, 5, 2)
    """
    return spec.replace(changes)


def plain_value(path: str, value: Any, stages: int | None = None) -> Any:
    """A value of a path in the form in which values are compared: a list for a tuple, and one value where all stages share it.

    Args:
        path: The dotted path.
        value: Its value, as a spec or a study holds it.
        stages: Lists of another length than this are no value of a spec, and stay as they are; None takes any length.
    """
    if not isinstance(value, (list, tuple)):
        return value
    if path in PER_STAGE and value and stages in (None, len(value)) and all(one == value[0] for one in value):
        return value[0]
    return list(value)


@lru_cache
def value_type(path: str) -> TypeAdapter[Any]:
    """The validator of the values at a path; raises KeyError for a path that no spec has."""
    outer, _, inner = path.partition(".")
    field = (NESTED[outer] if inner else ModelSpec).model_fields[inner or outer]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)
