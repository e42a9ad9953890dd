"""Image sources that the package carries, and the data set that a study trains on."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

import numpy as np
from numpy.typing import NDArray

from nas.data.codecs import Codec, Shape, codec_named
from space.document import nearest
from space.errors import DataError

VALIDATION_SHARE = 10
"""One image in ten of every class is held out."""


@dataclass(frozen=True)
class Images:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Where images come from; `image_shape` is known before anything is read."""

    name: str
    image_shape: Shape
    class_names: tuple[str, ...]
    read: Callable[[], Images]


@dataclass(frozen=True)
class Split:
    """Latents (N, C, H, W) float32 and labels (N,) int64."""

    latents: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """What a study trains and validates on."""

    train: Split
    validation: Split
    codec: Codec
    class_names: tuple[str, ...]


def source_named(name: str) -> Source:
    """The source of a name; raises DataError, naming the nearest, when there is none."""
    try:
        return SOURCES[name]
    except KeyError:
        raise DataError(f"no data source '{name}'{nearest(name, list(SOURCES))}") from None


def load_data(source: str, codec: str) -> DataSet:
    """Read a source, encode it and split it.

    Pixels are scaled to [-1, 1]. The split is fixed and stratified: of every class, each tenth image in the source's
    order is held out. Raises DataError when the source is unknown, missing or damaged.
    """
    origin, coder = source_named(source), codec_named(codec)
    images = origin.read()
    latents = coder.encode(images.pixels.astype(np.float32) / np.float32(127.5) - np.float32(1))
    held_out = _held_out(images.labels)
    return DataSet(
        train=Split(np.ascontiguousarray(latents[~held_out]), images.labels[~held_out]),
        validation=Split(np.ascontiguousarray(latents[held_out]), images.labels[held_out]),
        codec=coder,
        class_names=origin.class_names,
    )


def _held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[VALIDATION_SHARE - 1 :: VALIDATION_SHARE]] = True
    return held_out


def _fashion_mnist_10k() -> Images:
    """The 10,000 test images of Fashion-MNIST (Xiao et al., arXiv 1708.07747), padded from 28×28 to 32×32 with black."""
    folder = files("nas.data") / "fashion_mnist"
    pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    return Images(np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None], labels.astype(np.int64))


def read_idx(path: Traversable) -> NDArray[np.uint8]:
    """The array of bytes in a gzipped IDX file; raises DataError when it is missing, damaged or holds another type."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install the package again or restore the file") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape)):
        raise DataError(f"{path}: {len(raw) - start} bytes of data where shape {shape} needs {int(np.prod(shape))}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

SOURCES: dict[str, Source] = {
    "fashion-mnist-10k": Source("fashion-mnist-10k", (1, 32, 32), _CLOTHES, _fashion_mnist_10k),
}
