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


def load_study(source: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> Study:
    """Load a study and check it against the header of its data.

    Args:
        source: The path of a YAML file, or the same content as a mapping. A file is merged over the study that it `extends`.
        changes: Overrides of the form `key.path=value`, applied in order.

    Returns:
        The checked, frozen study.

    Raises:
        StudyError: If a key or value is refused. The message is one sentence, with file and line where there is a file.
    """
    document: Document | None = None
    if isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        document = Document.read_extended(Path(source))
        data = document.data
    for change in changes:
        apply_override(data, change)
    return parse(Study, data, document, context={"header": header_of})
