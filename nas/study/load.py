"""A study from a file or a mapping, checked; the one module of this package that reads."""

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
    """A study, checked against the header of its data.

    Args:
        source: The path of a YAML file, which is laid over the study that it `extends`; or the same as a mapping.
        changes: `key.path=value` each, applied in this order.

    Raises:
        StudyError: In one sentence, with file and line where there is a file.
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
