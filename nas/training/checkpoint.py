"""Checkpoints: one safetensors file, replaced atomically, with JSON facts as metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from space.errors import RunError
from space.tensors import read_tensors, write_tensors

_FACTS = "facts"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts atomically: a crash leaves the old file or the new one, never a part.

    Raises:
        RunError: If the disk is full or the folder is gone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {_FACTS: json.dumps(facts)})
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; free some space and run the same command again") from None


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of a checkpoint; None when the file is missing or damaged."""
    try:
        tensors, metadata = read_tensors(path)
        return (tensors, json.loads(metadata[_FACTS])) if _FACTS in metadata else None
    except (OSError, SafetensorError, ValueError):
        return None
