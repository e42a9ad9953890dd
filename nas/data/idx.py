"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
import zlib
from importlib.resources.abc import Traversable

import numpy as np
from numpy.typing import NDArray

from space.errors import DataError


def read_idx(path: Traversable) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzipped or not.

    Raises:
        DataError: The file is missing, damaged or holds another type.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file, or install the package again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes; give one in the format of MNIST")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise DataError(f"{path}: ends within its header of {start} bytes; fetch the file again")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape)):
        needed = int(np.prod(shape))
        raise DataError(f"{path}: {len(raw) - start} bytes of data where shape {shape} needs {needed}; fetch the file again")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
