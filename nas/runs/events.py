"""The events of a ledger."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]

_RENAMED_IN_STUDY = {
    ("training", "objective"): "prediction",
    ("budget", "reduction"): "reduction_factor",
    ("budget", "grace"): "grace_rungs",
}
"""Keys of studies in ledgers of schema 2, by section, and what they are called now."""


def upgraded(event: Event) -> Event:
    """An event of an older ledger in today's words; one that has them already is returned as it is."""
    if "study" in event:
        study = {key: dict(value) if isinstance(value, dict) else value for key, value in event["study"].items()}
        for (section, old), new in _RENAMED_IN_STUDY.items():
            if isinstance(study.get(section), dict) and old in study[section]:
                study[section][new] = study[section].pop(old)
        return {**event, "study": study}
    if isinstance(event.get("spec"), dict) and "ends" in event["spec"]:
        return {**event, "spec": {("stem" if key == "ends" else key): value for key, value in event["spec"].items()}}
    return event
