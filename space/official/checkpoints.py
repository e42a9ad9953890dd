"""Reads anybody's checkpoint file as tensors and plain data, never running its code; says what an unreadable one is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from space.errors import RunError
from space.files import what_is

NAMED = 3
"""At most so many of the classes in the way are named."""


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, of safetensors or of torch's format, whatever the file's ending.

    Raises:
        RunError: It cannot be read as tensors and plain data; the message says what the file is.
    """
    try:
        with path.open("rb") as file:
            # A length and then a JSON header: safetensors. The format of torch is a zip archive, or a pickle.
            by_header = file.read(9)[8:] == b"{"
        if by_header:
            return dict(load_file(path))
        # DiT's training script stores its command line beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # Damaged and foreign files raise errors of many kinds, and torch's own message advises to load them unsafely.
        raise RunError(f"{path} cannot be read as tensors and plain data: {_reason(path, error)}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds {type(content).__name__}, not a state dict or a checkpoint")
    return content


def _reason(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which holds code; save the module's state_dict() with torch.save"
    classes = _classes(path, error)
    if not classes:
        return what_is(path)
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    named = ", ".join(classes[:NAMED]) + more
    return f"it holds objects of {named}, which are not unpickled; save the module's state_dict() with torch.save"


def _classes(path: Path, error: Exception) -> list[str]:
    """The classes and functions that a pickle names, beyond those of tensors and plain data; found without running it."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # The classes of the author's own come before those of libraries, because they are the ones to go.
        return sorted(found, key=lambda name: (name.startswith(("torch.", "builtins.", "collections.")), name))
    except Exception:
        # torch lists them for zip archives only; of others its message names the first.
        named = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
        return [named[1]] if named else []
