"""The contract of a reader, which gives a store its samples, and the reader of fast-DiT's and U-DiT's per-sample feature files."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import Codec
from nas.data.codecs import record_of
from nas.data.header import Header
from nas.data.labels import classes_of
from space.errors import DataError
from space.files import DAMAGED_ARRAY, first_line

READING_THREADS = 16
"""Reading small files waits for the disk rather than the processor, so more threads than cores help."""
LABELS_AT_ONCE = 4096


class Reader(Protocol):
    """A data set to store: the planned header, and the samples by number."""

    @property
    def plan(self) -> Header:
        """The header of the store, without class names and checksum."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of all samples; they number the classes that occur, so more samples may change those of others."""

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows (n·views, C, H, W) and labels (n,) of the samples first … end - 1."""

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; every class has a sample."""

    def made_of(self, end: int) -> str:
        """A digest of what the first `end` samples are made of, or "": while it is the same, what is written of them is kept."""

    def leave_out(self, names: Sequence[str]) -> None:
        """Leave out damaged samples that the plan of an earlier run names in `left_out`."""


def check_finite(rows: NDArray[Any], source: str, first: int = 0) -> None:
    """Raise DataError, naming the sample, when a value is not finite.

    Args:
        rows: (N, …), one row per sample.
        source: The name of the source, for the message.
        first: The number of the first row's sample.
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"{source}: sample {first + int(np.argmin(finite))} holds values that are not finite; mend or remove it")


def check_bound(latents: NDArray[Any], bound: float | None, source: str) -> None:
    """Raise DataError for floats beyond a codec's bound, which cannot be its latents."""
    if bound is not None and np.abs(latents).max() > bound:
        raise DataError(
            f"{source} holds floats beyond ±{bound:g}, which no pixels have; name the VAE they came from with "
            "--codec vae:NAME, or give images as uint8"
        )


class FeatureFiles:
    """The reader of the files that fast-DiT's and U-DiT's extraction writes: `*_features/0.npy`, `1.npy` … and `*_labels/0.npy` …

    A feature file holds (1, C, H, W) or (C, H, W) float latents, already scaled; a label file holds one integer. The files must
    be numbered from 0 without a gap.

    Raises:
        DataError: A file is missing, truncated or of another shape; the message names its index.
    """

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._features, self._label_files = _only(folder, "_features"), _only(folder, "_labels")
        count = _count(self._features)
        if (labels := _count(self._label_files)) != count:
            raise DataError(
                f"{self._features} has {count} files and {self._label_files} has {labels}; there must be one label per feature file"
            )
        first = _array(self._features / "0.npy", 0)
        self._shape = first.shape[1:] if first.ndim == 4 and first.shape[0] == 1 else first.shape
        self._dtype = first.dtype
        if len(self._shape) != 3 or first.dtype not in (np.float32, np.float16):
            raise DataError(
                f"{self._features / '0.npy'} (index 0) holds {first.dtype} {first.shape}, not float latents (1, C, H, W)"
            )
        codec.check_latents(self._shape)
        self._bound = codec.bound
        record = record_of(codec)
        self._pool = ThreadPoolExecutor(READING_THREADS)
        # All labels come first, since their classes are numbered by what is there; in parts, since each waiting file takes memory.
        parts = (range(first, min(first + LABELS_AT_ONCE, count)) for first in range(0, count, LABELS_AT_ONCE))
        values = [label for part in parts for label in self._pool.map(self._label, part)]
        self.labels, self._class_names = classes_of(values, str(self._label_files))
        self.plan = Header.model_validate(
            {
                "samples": count,
                "shape": self._shape,
                "content": "latents",
                "dtype": str(first.dtype),
                "codec": record.name,
                "scale": record.scale,
                "shift": record.shift,
                "codec_digest": record.digest,
                "class_names": (),
                "source": str(folder.absolute()),
            }
        )

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows of the files first … end - 1, read in parallel, and their labels."""
        rows = np.stack(list(self._pool.map(self._feature, range(first, end))))
        check_finite(rows, str(self._features), first)
        check_bound(rows, self._bound, str(self._features))
        return rows, self.labels[first:end]

    def _feature(self, index: int) -> NDArray[Any]:
        path = self._features / f"{index}.npy"
        array = _array(path, index)
        if array.size != np.prod(self._shape) or array.shape[-3:] != self._shape or array.dtype != self._dtype:
            raise DataError(
                f"{path} (index {index}) holds {array.dtype} {array.shape}, but index 0 holds {self._dtype} {self._shape}"
            )
        return array.reshape(self._shape)

    def _label(self, index: int) -> int:
        path = self._label_files / f"{index}.npy"
        array = _array(path, index)
        if array.size != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{path} (index {index}) holds {array.dtype} {array.shape}, not one whole number")
        return int(array.reshape(()))

    def class_names(self) -> tuple[str, ...]:
        """The labels that samples have, as names."""
        return self._class_names

    def made_of(self, end: int) -> str:
        """Nothing; samples at both ends of what is written are compared."""
        return ""

    def leave_out(self, names: Sequence[str]) -> None:
        """Nothing is ever left out."""


def _only(folder: Path, ending: str) -> Path:
    folders = sorted(path for path in folder.glob(f"*{ending}") if path.is_dir())
    if len(folders) != 1:
        raise DataError(
            f"{folder} has {len(folders)} folders named …{ending}; there must be exactly one, such as imagenet256{ending}"
        )
    return folders[0]


def _count(folder: Path) -> int:
    """The number of files 0.npy, 1.npy …; raises DataError, naming the first missing index, when there is a gap."""
    with os.scandir(folder) as entries:
        numbers = {int(entry.name[:-4]) for entry in entries if re.fullmatch(r"\d+\.npy", entry.name)}
    if not numbers:
        raise DataError(f"{folder} holds no files named 0.npy, 1.npy …; extract the features into it")
    if max(numbers) + 1 != len(numbers):
        gap = next(index for index in range(len(numbers)) if index not in numbers)
        raise DataError(f"{folder / f'{gap}.npy'} (index {gap}) is missing; the files must be numbered from 0 without a gap")
    return len(numbers)


def _array(path: Path, index: int) -> NDArray[Any]:
    """The array of one .npy file; files with equal headers share one parsing of the header."""
    try:
        raw = path.read_bytes()
        end = 10 + int.from_bytes(raw[8:10], "little")
        with _PARSING:
            dtype, shape = _header(raw[:end])
        return np.frombuffer(raw, dtype, math.prod(shape), end).reshape(shape)
    except FileNotFoundError:
        raise DataError(f"{path} (index {index}) is missing; extract it again") from None
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path} (index {index}) is truncated or not an array ({first_line(error)}); extract it again") from None


_PARSING = Lock()
"""NumPy parses headers as Python literals, which several threads cannot do at once in Python 3.11 (cpython issue 106905)."""


@lru_cache(maxsize=64)
def _header(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape in the first bytes of a .npy file; raises ValueError when there are none, or when they describe objects."""
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its format is not version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or fortran:
        raise ValueError("it holds objects, or columns before rows")
    return dtype, shape
