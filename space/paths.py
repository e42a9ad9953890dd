"""Dotted paths into a spec, such as `attention.tokens` or `depths.2`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import TypeAdapter

from space.document import parse
from space.errors import SpecError, StudyError
from space.spec import PER_STAGE, AttentionSpec, FeedForwardSpec, Frozen, ModelSpec


def changed(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The spec with values replaced at dotted paths such as `attention.tokens`, or `depths.2` for one stage.

    A mapping at `attention` or `feed_forward` replaces what it names alone.

    Raises SpecError for a path that no spec has, and when the result cannot be built.
    """
    data: dict[str, Any] = spec.model_dump()
    for path, value in changes.items():
        parts = path.split(".")
        inner = data
        for part in parts[:-1]:
            if not isinstance(inner.get(part), dict):
                break
            inner = inner[part]
        else:
            if parts[-1] in inner:
                old = inner[parts[-1]]
                # What a mapping does not name stays as it is.
                inner[parts[-1]] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
                continue
        _set_stage(data, path, value, len(spec.depths))
    try:
        return parse(ModelSpec, data)
    except StudyError as error:
        raise SpecError(str(error)) from None


def _set_stage(data: dict[str, Any], path: str, value: Any, stages: int) -> None:
    """Set one stage's entry of a per-stage value, whose path ends in the stage's index."""
    *parts, last = path.split(".")
    inner: Any = data
    for part in parts[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not parts or parts[-1] not in inner or not last.isdecimal() or int(last) >= stages:
        raise SpecError(f"no spec has '{path}'; known: {', '.join(spec_paths())}")
    current = inner[parts[-1]]
    values = list(current) if isinstance(current, (tuple, list)) else [current] * stages
    values[int(last)] = value
    inner[parts[-1]] = tuple(values)


PER_STAGE_PATHS = ("depths", *PER_STAGE)
"""The paths that may hold one value a stage."""

_NESTED: dict[str, type[Frozen]] = {"attention": AttentionSpec, "feed_forward": FeedForwardSpec}


def spec_paths() -> list[str]:
    """Every dotted path that can be set or searched."""
    paths: list[str] = []
    for name in ModelSpec.model_fields:
        inner = _NESTED.get(name)
        paths += [f"{name}.{key}" for key in inner.model_fields] if inner else [name]
    return paths


@lru_cache
def value_type(path: str) -> TypeAdapter[Any]:
    """What values a path can hold, each by itself; raises KeyError for a path that no spec has."""
    outer, _, inner = path.partition(".")
    field = (_NESTED[outer] if inner else ModelSpec).model_fields[inner or outer]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)
