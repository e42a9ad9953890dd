"""Named tensors in a safetensors file, with a checksum by which a file that was changed later is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from space.files import replace_file

_CHECKSUM = "checksum"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata; a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: When the file cannot be written.
    """
    stored = {name: value.contiguous() for name, value in tensors.items()}
    with replace_file(path) as file:
        file.write(save(stored, metadata={**metadata, _CHECKSUM: _checksum(stored, metadata)}))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, without its tensors, and so without a comparison with the checksum; raises as `read_tensors`."""
    with safe_open(path, framework="pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != _CHECKSUM}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Files of earlier versions have no checksum and are taken as they are.

    Raises:
        OSError: When the file cannot be read.
        SafetensorError: When it is no safetensors file, is cut off, or was changed since it was written.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, metadata):
        raise SafetensorError("its contents are not those that were written: the checksum differs")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 over metadata and over names, types, shapes and values of the tensors, in the order of the names."""
    total = crc32(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        total = crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
