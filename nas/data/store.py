"""The store: a data set as one memory-mapped array of rows, an array of labels, and a JSON header that describes both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from nas.data.codec import VAE_PREFIX, Codec, Shape
from nas.data.codecs import codec_named, codec_of
from nas.data.header import Header
from space.errors import DataError
from space.files import DAMAGED_ARRAY, first_line

HEADER, LATENTS, LABELS, PROGRESS = "header.json", "latents.npy", "labels.npy", "progress.json"
_CHUNK_BYTES = 2**24
LATER = ("shift", "codec_digest", "left_out")
"""Keys of headers that earlier versions did not have."""


@dataclass(frozen=True)
class Store:
    """A data set: rows as the header describes them, labels (samples,) int64, and its folder or embedded name as `name`."""

    name: str
    header: Header
    rows: NDArray[Any]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return self.header.samples

    @cached_property
    def codec(self) -> Codec:
        """The codec that maps between images and latents."""
        return codec_of(self.header.decoding)


@dataclass(frozen=True)
class Split:
    """Some samples of a store, given by their numbers `samples` (N,) int64."""

    store: Store
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,)."""
        return np.asarray(self.store.labels[self.samples])


def read_header(folder: Path) -> Header:
    """The header of a store; raises DataError when the folder holds none or a half-written store."""
    try:
        text = (folder / HEADER).read_bytes()
    except FileNotFoundError:
        if (folder / PROGRESS).exists():
            raise DataError(f"{folder} is a store only half written; run the same `nas data prepare` again") from None
        raise DataError(f"{folder} is no data store: it has no {HEADER}; make one with `nas data prepare`") from None
    except OSError as error:
        raise DataError(f"{folder / HEADER} cannot be read: {error.strerror}") from None
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{folder / HEADER}: {where}: {first['msg']}; prepare the store again") from None
    if not header.codec.startswith(VAE_PREFIX):
        # A VAE is loaded only when images are needed, so its name is not checked here.
        codec_named(header.codec)
    return header


def check_mirrored(name: str, header: Header, codec: Codec) -> None:
    """Raises DataError when samples have no mirror images: neither stored ones, nor the codec's."""
    if header.views == 1 and codec.mirror_channels(header.shape[0]) is None:
        raise DataError(
            f"{name} holds no mirror images, and those of {header.codec} are not made from its latents; "
            "prepare it with --mirrored, or leave data.flip out"
        )


def open_store(folder: Path) -> Store:
    """The store in a folder, with its arrays memory-mapped.

    Raises:
        DataError: The store is half written, an array is missing, truncated or of another shape than the header says, or labels
            have no name.
    """
    header = read_header(folder)
    rows = _mapped(folder / LATENTS, header.rows_shape, header.dtype)
    labels = _mapped(folder / LABELS, (header.samples,), "int64")
    outside = np.flatnonzero((labels < 0) | (labels >= len(header.class_names)))
    if len(outside):
        raise DataError(
            f"{folder / LABELS}: sample {outside[0]} has label {labels[outside[0]]}, but the header names "
            f"{len(header.class_names)} classes; prepare the store again"
        )
    counts = class_counts(labels, header.class_names)
    if header.class_counts not in (None, counts):
        raise DataError(f"{folder / LABELS} has other numbers of samples per class than the header says; prepare the store again")
    return Store(str(folder), header.model_copy(update={"class_counts": counts}), rows, labels)


def class_counts(labels: NDArray[np.int64], class_names: tuple[str, ...]) -> tuple[int, ...]:
    """The number of samples of every class; every label must have a name."""
    return tuple(np.bincount(labels, minlength=len(class_names)).tolist())


def _mapped(path: Path, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; prepare the store again") from None
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path} is truncated or damaged ({first_line(error)}); prepare the store again") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise DataError(f"{path} holds {array.dtype} {array.shape} where the header says {dtype} {shape}; prepare the store again")
    return array


def checksum(header: Header, rows: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """SHA-256 of the header's facts and of the bytes of rows and labels, computed in one pass.

    Facts that headers did not always have count only where they say something, so that earlier checksums hold. The counts of
    classes follow from the labels, and are filled in when an earlier store is opened, so they never count.
    """
    facts = header.model_dump(mode="json", exclude={"checksum", "class_counts"})
    facts = {key: value for key, value in facts.items() if value or key not in LATER}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in (rows, labels):
        for chunk in _chunks(array):
            digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for first in range(0, len(array), step):
        yield array[first : first + step]


def pixel_store(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], codec: Codec, class_names: tuple[str, ...], source: str
) -> Store:
    """A store in memory of images (N, C, H, W) uint8; raises DataError when the codec cannot take them."""
    rows = np.ascontiguousarray(codec.encode(images))
    header = Header(
        samples=len(rows),
        shape=latent_shape(codec, images),
        content="pixels",
        dtype="uint8",
        codec=codec.name,
        class_names=class_names,
        class_counts=class_counts(labels, class_names),
        source=source,
    )
    return Store(name, header.model_copy(update={"checksum": checksum(header, rows, labels)}), rows, labels)


def latent_shape(codec: Codec, images: NDArray[Any]) -> Shape:
    """The latents' (C, H, W) for images (N, C, H, W)."""
    _, channels, height, width = images.shape
    return codec.latent_shape((channels, height, width))
