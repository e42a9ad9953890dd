"""Dotted paths into a spec, such as `attention.tokens` or `depths.2`."""

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


@lru_cache
def value_type(path: str) -> TypeAdapter[Any]:
    """The validator of the values at a path; raises KeyError for a path that no spec has."""
    outer, _, inner = path.partition(".")
    field = (NESTED[outer] if inner else ModelSpec).model_fields[inner or outer]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)
