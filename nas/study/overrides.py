"""Overrides of single keys of a study, such as `--set search.trials=8`."""

from __future__ import annotations

from typing import Any

import yaml

from space.errors import StudyError


def apply_override(data: dict[str, Any], change: str) -> None:
    """Apply one override to a study's plain data, in place.

    Args:
        data: The study as nested mappings.
        change: The override, `key.path=value`; the value is YAML. Keys that contain dots themselves are matched too.

    Raises:
        StudyError: If the text is not KEY=VALUE, or the path leads through a value that has no keys.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise StudyError(f"--set {change}: write KEY=VALUE, such as search.trials=8")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise StudyError(f"--set {change}: '{text}' is not a YAML value") from None
    inner, parts = data, path.split(".")
    while parts:
        # Take the longest existing key: in search.space.attention.tokens that is the key `attention.tokens` of the space.
        known = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in inner]
        dotted = any(inner is _below(data, *keys) for keys in (("model", "set"), ("search", "space")))
        take = known[0] if known else (len(parts) if dotted else 1)
        key, parts = ".".join(parts[:take]), parts[take:]
        if not parts:
            inner[key] = value
            return
        below = inner.setdefault(key, {})
        if not isinstance(below, dict):
            raise StudyError(f"--set {change}: '{key}' holds {below!r}, not keys")
        inner = below


def _below(data: Any, *keys: str) -> Any:
    """The value at nested keys; None when one is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
