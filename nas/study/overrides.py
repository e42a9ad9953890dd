"""Changes of single keys of a study: `--set search.trials=8`."""

from __future__ import annotations

from typing import Any

import yaml

from space.errors import StudyError


def apply_override(data: dict[str, Any], change: str) -> None:
    """Set one `key.path=value` in the plain data of a study; a key that holds dots itself is found too.

    Raises StudyError for text that is not KEY=VALUE, and for a path through a value that has no keys.
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
        # The longest key that is there, so that search.space.attention.tokens means the space's key `attention.tokens`.
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
    """The value below some keys, None when one is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
