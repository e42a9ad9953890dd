"""Readers of data sets that are ready to be stored: arrays, IDX files, and the per-sample feature files of fast-DiT and U-DiT."""

from __future__ import annotations

import hashlib
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

from nas.data.codec import Codec, PixelUnshuffle
from nas.data.codecs import record_of
from nas.data.header import Header
from nas.data.idx import read_idx
from space.errors import DataError
from space.files import DAMAGED_ARRAY, first_line

READING_THREADS = 16
"""Reading small files waits for the disk rather than the processor, so more threads than cores help."""


class Reader(Protocol):
    """A data set to store: the planned header, and the samples by number."""

    @property
    def plan(self) -> Header:
        """The header of the store, without class names and checksum."""

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows (n·views, C, H, W) and labels (n,) of the samples first … end - 1."""

    def class_names(self, labels: NDArray[np.int64]) -> tuple[str, ...]:
        """The names of the classes, given all labels."""

    def made_of(self, end: int) -> str:
        """A digest of what the first `end` samples are made of, or "": while it is the same, what is written of them is kept."""

    def leave_out(self, names: Sequence[str]) -> None:
        """Leave out damaged samples that the plan of an earlier run names in `left_out`."""


def numbered(labels: NDArray[np.int64]) -> tuple[str, ...]:
    """The names `0`, `1`, … up to the highest label."""
    return tuple(str(label) for label in range(int(labels.max()) + 1))


class ArrayReader:
    """A reader of arrays: images, which a pixel codec encodes, or float latents, which are stored as they are.

    Args:
        arrays: Images uint8 (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), or float latents (N, C, H, W).
        labels: (N,) integers, or None for label 0 everywhere.
        codec: The codec that encodes the images or that the latents came from.
        source: The name of the source, for the header and for messages.
        pad_to: Height and width to which smaller images are centred on black.

    Raises:
        DataError: Shapes or types do not fit, or latents are not finite or beyond the codec's bound.
    """

    def __init__(
        self, arrays: NDArray[Any], labels: NDArray[Any] | None, codec: Codec, source: str, pad_to: int | None = None
    ) -> None:
        if labels is not None and labels.dtype.kind not in "iu":
            raise DataError(f"{source}: labels are {labels.dtype}, not whole numbers; give integers")
        self._labels = np.zeros(len(arrays), np.int64) if labels is None else labels.astype(np.int64)
        if self._labels.shape != (len(arrays),):
            raise DataError(f"{source}: {len(arrays)} samples, but labels of shape {self._labels.shape}; give one label per sample")
        if not len(arrays):
            raise DataError(f"{source} holds no samples; give at least one")
        if arrays.dtype == np.uint8:
            if not isinstance(codec, PixelUnshuffle):
                raise DataError(f"{source} holds images, which {codec.name} would have to encode; use `nas data prepare images`")
            self._rows, content = codec.encode(_padded(_channels_first(arrays, source), pad_to, source)), "pixels"
        elif arrays.dtype in (np.float32, np.float16) and arrays.ndim == 4:
            if pad_to is not None:
                raise DataError(f"{source} holds latents, which are not padded; leave --pad-to out")
            self._rows, content = arrays, "latents"
        else:
            raise DataError(f"{source}: {arrays.dtype} {arrays.shape} is neither uint8 images nor float latents (N, C, H, W)")
        if content == "latents":
            check_finite(arrays, source)
            _check_bound(arrays, codec, source)
        digest = hashlib.sha256(np.ascontiguousarray(self._rows).data).hexdigest()[:16]
        record = record_of(codec)
        self.plan = Header.model_validate(
            {
                "samples": len(self._rows),
                "shape": self._rows.shape[1:],
                "content": content,
                "dtype": str(self._rows.dtype),
                "codec": record.name,
                "scale": record.scale,
                "shift": record.shift,
                "codec_digest": record.digest,
                "class_names": (),
                "source": f"{source} ({digest})",
            }
        )

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows and labels of the samples first … end - 1."""
        return self._rows[first:end], self._labels[first:end]

    def class_names(self, labels: NDArray[np.int64]) -> tuple[str, ...]:
        """The labels as names."""
        return numbered(labels)

    def made_of(self, end: int) -> str:
        """Nothing more than the source in the plan, which has the digest of all rows."""
        return ""

    def leave_out(self, names: Sequence[str]) -> None:
        """Nothing is ever left out."""


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


def _check_bound(latents: NDArray[Any], codec: Codec, source: str) -> None:
    """Raise DataError for floats that cannot be the latents of a pixel codec."""
    if codec.bound is not None and np.abs(latents).max() > codec.bound:
        raise DataError(
            f"{source} holds floats beyond ±{codec.bound:g}, which no pixels have; name the VAE they came from with "
            "--codec vae:NAME, or give images as uint8"
        )


def _channels_first(images: NDArray[np.uint8], source: str) -> NDArray[np.uint8]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise DataError(f"{source}: images of shape {images.shape}; give (N, H, W), or four dimensions with 1 or 3 channels")


def _padded(images: NDArray[np.uint8], size: int | None, source: str) -> NDArray[np.uint8]:
    if size is None:
        return images
    height, width = images.shape[2:]
    if max(height, width) > size:
        raise DataError(f"{source}: images of {height}×{width} do not fit into {size}×{size}; pad to a larger size")
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(images, ((0, 0), (0, 0), (top, size - height - top), (left, size - width - left)))


def read_arrays(path: Path, labels_path: Path | None = None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Samples and labels from `.npz` or `.npy` files; labels are None when there are none.

    Args:
        path: A `.npz` with samples named images, latents, x or arr_0 and labels named labels, y or arr_1, or a `.npy` of samples.
        labels_path: A `.npy` of labels, used in place of those in `path`.

    Raises:
        DataError: A file is missing or damaged, or lacks an array.
    """
    loaded = _load(path)
    labels: NDArray[Any] | None = None
    if isinstance(loaded, np.ndarray):
        arrays: NDArray[Any] | None = loaded
    else:
        arrays = _named(loaded, path, ("images", "latents", "x", "arr_0"))
        if arrays is None:
            raise DataError(f"{path} holds {', '.join(loaded.files)}; name the samples images, latents, x or arr_0")
        labels = _named(loaded, path, ("labels", "y", "arr_1"))
    if labels_path is not None:
        labels = _load(labels_path)
        if not isinstance(labels, np.ndarray):
            raise DataError(f"{labels_path} is not a single array; give the labels as .npy")
    assert arrays is not None
    return arrays, labels


def _named(archive: Any, path: Path, names: Sequence[str]) -> NDArray[Any] | None:
    for name in names:
        if name in archive.files:
            try:
                return np.asarray(archive[name])
            except DAMAGED_ARRAY as error:
                raise DataError(f"{path}: {name} cannot be read ({first_line(error)}); write the file again") from None
    return None


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a .npz or .npy file") from None
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path} cannot be read as NumPy arrays ({first_line(error)}); write it again") from None


def idx_reader(images: Path, labels: Path, codec: Codec, pad_to: int | None) -> ArrayReader:
    """The reader of images and labels in IDX files, gzipped or not."""
    return ArrayReader(read_idx(images), read_idx(labels), codec, images.name, pad_to)


class FeatureFiles:
    """The reader of the files that fast-DiT's and U-DiT's extraction writes: `*_features/0.npy`, `1.npy` … and `*_labels/0.npy` …

    A feature file holds (1, C, H, W) or (C, H, W) float latents, already scaled; a label file holds one integer. The files must
    be numbered from 0 without a gap.

    Raises:
        DataError: A file is missing, truncated or of another shape; the message names its index.
    """

    def __init__(self, folder: Path, codec: Codec) -> None:
        self._features, self._labels = _only(folder, "_features"), _only(folder, "_labels")
        count = _count(self._features)
        if (labels := _count(self._labels)) != count:
            raise DataError(
                f"{self._features} has {count} files and {self._labels} has {labels}; there must be one label per feature file"
            )
        first = _array(self._features / "0.npy", 0)
        self._shape = first.shape[1:] if first.ndim == 4 and first.shape[0] == 1 else first.shape
        self._dtype = first.dtype
        if len(self._shape) != 3 or first.dtype not in (np.float32, np.float16):
            raise DataError(
                f"{self._features / '0.npy'} (index 0) holds {first.dtype} {first.shape}, not float latents (1, C, H, W)"
            )
        record = record_of(codec)
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
        self._pool = ThreadPoolExecutor(READING_THREADS)

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows and labels of the files first … end - 1, read in parallel."""
        rows = np.stack(list(self._pool.map(self._feature, range(first, end))))
        check_finite(rows, str(self._features), first)
        return rows, np.array(list(self._pool.map(self._label, range(first, end))), dtype=np.int64)

    def _feature(self, index: int) -> NDArray[Any]:
        path = self._features / f"{index}.npy"
        array = _array(path, index)
        if array.size != np.prod(self._shape) or array.shape[-3:] != self._shape or array.dtype != self._dtype:
            raise DataError(
                f"{path} (index {index}) holds {array.dtype} {array.shape}, but index 0 holds {self._dtype} {self._shape}"
            )
        return array.reshape(self._shape)

    def _label(self, index: int) -> int:
        path = self._labels / f"{index}.npy"
        array = _array(path, index)
        if array.size != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{path} (index {index}) holds {array.dtype} {array.shape}, not one whole number")
        return int(array.reshape(()))

    def class_names(self, labels: NDArray[np.int64]) -> tuple[str, ...]:
        """The labels as names."""
        return numbered(labels)

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
