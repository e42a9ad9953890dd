"""Loads a study from a file or a mapping; the only module of this package that reads files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.data.sources import header_of
from nas.study.overrides import apply_override
from nas.study.study import Study
from space.document import Document, parse
from space.errors import Location, Mistakes


def load_study(source: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> Study:
    """Load a study and check it against the header of its data.

    Args:
        source: The path of a YAML file, or the same content as a mapping. A file is merged over the study that it `extends`.
        changes: Overrides of the form `key.path=value`, applied in order.

    Returns:
        The checked, frozen study.

    Raises:
        Mistakes: If keys or values are refused: all of them. The message is one sentence, with file and line where there is a file.
    """
    document: Document | None = None
    if isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        document = Document.read_extended(Path(source))
        data = document.data
    for change in changes:
        apply_override(data, change)
    try:
        return parse(Study, data, document, context={"header": header_of})
    except Mistakes as error:
        raise Mistakes([*error.each, *_others(error, data, document)]) from None


def _others(first: Mistakes, data: dict[str, Any], document: Document | None) -> list[tuple[Location, str]]:
    """The mistakes that the first ones hide: those of a study without the refused values, which have their defaults there."""
    refused = [at for at, _ in first.each]
    if any(at[:1] in ((), ("data",), ("model",)) or at[:2] == ("training", "prediction") for at in refused):
        # What the others are checked against is not known.
        return []
    remaining = copy.deepcopy(data)
    for at in refused:
        if not _replace(remaining, at):
            return []
    try:
        parse(Study, remaining, document, context={"header": header_of})
    except Mistakes as error:
        # A value that was removed may leave its section incomplete, which is no mistake of its own.
        return [(at, what) for at, what in error.each if not any(_share_a_branch(at, other) for other in refused)]
    return []


def _share_a_branch(one: Location, other: Location) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _replace(data: Any, at: Location) -> bool:
    """Remove the value at a location, or put the stand-in there; whether that was possible."""
    stand_in = _STAND_INS.get(at)
    for part in at[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    if not isinstance(data, dict) or (stand_in is None and at[-1] not in data):
        return False
    data.pop(at[-1], None)
    if stand_in is not None:
        data[at[-1]] = stand_in
    return True


_STAND_INS: dict[Location, Any] = {
    ("name",): "study",
    ("search", "trials"): 720_720,
    ("budget", "max"): "1 MFLOPs",
    ("finish", "budget"): "1000 EFLOPs",
}
"""Values that break no other rule, for refused keys that have no default; 720720 is a multiple of most numbers of replicates."""
