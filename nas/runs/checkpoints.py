"""Reads the facts of checkpoint files, such as their step, without torch and without reading their tensors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def facts_in(file: Any, size: int) -> dict[str, Any] | None:
    """The facts of a checkpoint.

    A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, which is JSON with the offsets
    of every tensor.

    Args:
        file: The checkpoint, open for reading bytes.
        size: The file's size in bytes.

    Returns:
        The facts, or None when the file is damaged or cut short.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        return None
    try:
        header = json.loads(file.read(length))
        facts = json.loads(header.pop("__metadata__")["facts"])
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        # A truncated file can still have a whole header, so the size is checked.
        return facts if 8 + length + end == size and isinstance(facts["step"], int) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def facts_of_checkpoint(path: Path) -> dict[str, Any] | None:
    """The facts of a checkpoint on this machine; None when there is none or it is damaged."""
    try:
        with path.open("rb") as file:
            return facts_in(file, path.stat().st_size)
    except OSError:
        return None


def step_of(path: Path) -> int | None:
    """The training step of a checkpoint on this machine; None when there is none or it is damaged."""
    facts = facts_of_checkpoint(path)
    return facts["step"] if facts else None


def keep(path: Path, target: Path) -> None:
    """Keep a checkpoint under another name, as a hard link where the file system has them; an existing target is not changed."""
    try:
        # Checkpoints are replaced, never written into, so a hard link keeps its content.
        os.link(path, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(path, target)
