"""The reader of arrays: images, as whole numbers or floats, or latents; from NumPy's files or IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import Codec, PixelUnshuffle
from nas.data.codecs import record_of
from nas.data.header import Header
from nas.data.idx import read_idx
from nas.data.labels import classes_of
from nas.data.readers import check_bound, check_finite
from space.errors import DataError
from space.files import DAMAGED_ARRAY, first_line

RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
"""What the floats of images may run from and to: `--values`."""
LATENTS = "latents"
"""What floats are that are no images."""

NEAR_A_STEP = 0.1
"""Floats this near to the 256 values of 8-bit images were such images; of half precision, they are off by at most 0.07."""


class ArrayReader:
    """A reader of arrays: images, which a pixel codec encodes, or float latents, which are stored as they are.

    What floats are has to be said where they could be either: latents of pixels are images in [-1, 1], and images in [0, 1] look
    like latents. Float images that were of 8 bits are stored as such, others as they are.

    Args:
        arrays: Images uint8 or float, (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), or float latents (N, C, H, W).
        labels: (N,) whole numbers or text, or None for label 0 everywhere.
        codec: The codec that encodes the images or that the latents came from.
        source: The name of the source, for the header and for messages.
        pad_to: Height and width to which smaller images are centred on black.
        values: What floats are, a key of `RANGES`, or `LATENTS`; None where nobody said.

    Raises:
        DataError: Shapes, types or ranges do not fit the codec or what is said of them, floats could be images or latents and
            nobody said which, values are not finite, or a sample has no label.
    """

    def __init__(
        self,
        arrays: NDArray[Any],
        labels: NDArray[Any] | None,
        codec: Codec,
        source: str,
        pad_to: int | None = None,
        values: str | None = None,
    ) -> None:
        if not arrays.ndim or not arrays.size:
            raise DataError(f"{source} holds no samples; give at least one")
        given = np.zeros(len(arrays), np.int64) if labels is None else labels
        if given.shape != (len(arrays),):
            raise DataError(f"{source}: {len(arrays)} samples, but labels of shape {given.shape}; give one label per sample")
        self.labels, self._class_names = classes_of(given, source)
        if _are_images(arrays, codec, source, values):
            if not isinstance(codec, PixelUnshuffle):
                raise DataError(f"{source} holds images, which {codec.name} would have to encode; use `nas data prepare images`")
            pixels = _channels_first(arrays, source)
            if values is not None:
                pixels = _scaled(pixels, *RANGES[values], source)
            self._rows: NDArray[Any] = codec.encode(_padded(pixels, pad_to, source))
        else:
            if pad_to is not None:
                raise DataError(f"{source} holds latents, which are not padded; leave --pad-to out")
            check_finite(arrays, source)
            codec.check_latents((arrays.shape[1], arrays.shape[2], arrays.shape[3]))
            check_bound(arrays, codec.bound, source)
            self._rows = arrays
        digest = hashlib.sha256(np.ascontiguousarray(self._rows).data).hexdigest()[:16]
        record = record_of(codec)
        self.plan = Header.model_validate(
            {
                "samples": len(self._rows),
                "shape": self._rows.shape[1:],
                "content": "pixels" if self._rows.dtype == np.uint8 else "latents",
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
        return self._rows[first:end], self.labels[first:end]

    def class_names(self) -> tuple[str, ...]:
        """The labels that samples have, as names."""
        return self._class_names

    def made_of(self, end: int) -> str:
        """Nothing more than the source in the plan, which has the digest of all rows."""
        return ""

    def leave_out(self, names: Sequence[str]) -> None:
        """Nothing is ever left out."""


def _are_images(arrays: NDArray[Any], codec: Codec, source: str, values: str | None) -> bool:
    """Whether arrays are images rather than latents; raises DataError when they are neither or could be either."""
    if arrays.dtype == np.uint8:
        if values is not None:
            raise DataError(f"{source} holds uint8, which are images of 0 to 255; leave --values out")
        return True
    if arrays.dtype.kind == "f" and values in RANGES:
        return True
    if arrays.dtype not in (np.float32, np.float16) or arrays.ndim != 4:
        raise DataError(
            f"{source}: {arrays.dtype} {arrays.shape} is neither uint8 images nor float latents (N, C, H, W); "
            "say what images of floats run from and to with --values"
        )
    if values == LATENTS:
        return False
    check_finite(arrays, source)
    check_bound(arrays, codec.bound, source)
    coloured = arrays.shape[1] in (1, 3) or arrays.shape[3] in (1, 3)
    if codec.bound is not None or coloured or np.abs(arrays).max() <= 1:
        raise DataError(
            f"{source} holds {arrays.dtype} {arrays.shape} from {arrays.min():.3g} to {arrays.max():.3g}, which could be images or "
            f"latents of {codec.name}; say which with --values {', '.join(RANGES)} (images) or {LATENTS}"
        )
    return False


def _scaled(images: NDArray[Any], low: float, high: float, source: str) -> NDArray[Any]:
    """Images of floats as uint8 where they are made of 8 bits, else as float32 in [-1, 1]."""
    check_finite(images, source)
    if images.min() < low or images.max() > high:
        raise DataError(
            f"{source} holds values from {images.min():.3g} to {images.max():.3g}, which are not in {low:g}..{high:g}; "
            "mend --values or the images"
        )
    unit = (images.astype(np.float32) - low) / (high - low)
    steps = np.rint(unit * 255)
    return steps.astype(np.uint8) if np.abs(unit * 255 - steps).max() < NEAR_A_STEP else unit * 2 - 1


def _channels_first(images: NDArray[Any], source: str) -> NDArray[Any]:
    """Images (N, C, H, W); raises DataError for shapes that no layout has, or two have."""
    if images.ndim == 3:
        return images[:, None]
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (-1, 1))
    if last and first:
        raise DataError(f"{source}: images of shape {images.shape} could have their channels first or last; make them larger")
    if last:
        return images.transpose(0, 3, 1, 2)
    if first:
        return images
    raise DataError(f"{source}: images of shape {images.shape}; give (N, H, W), or four dimensions with 1 or 3 channels")


def _padded(images: NDArray[Any], size: int | None, source: str) -> NDArray[Any]:
    if size is None:
        return images
    height, width = images.shape[2:]
    if max(height, width) > size:
        raise DataError(f"{source}: images of {height}×{width} do not fit into {size}×{size}; pad to a larger size")
    top, left = (size - height) // 2, (size - width) // 2
    around = ((0, 0), (0, 0), (top, size - height - top), (left, size - width - left))
    return np.pad(images, around, constant_values=0 if images.dtype == np.uint8 else -1)


@dataclass(frozen=True)
class Arrays:
    """Samples and labels of a file; labels are None when there are none, and `name` is that of the samples in a `.npz`."""

    samples: NDArray[Any]
    labels: NDArray[Any] | None
    name: str | None = None

    def values(self, said: str | None) -> str | None:
        """What floats are: what is said of them, else `latents` when they are called so and some are below 0."""
        called = self.name == LATENTS and self.samples.dtype.kind == "f" and bool((self.samples < 0).any())
        return said or (LATENTS if called else None)


def read_arrays(path: Path, labels_path: Path | None = None) -> Arrays:
    """Samples and labels from `.npz` or `.npy` files.

    Args:
        path: A `.npz` with samples named images, latents, x or arr_0 and labels named labels, y or arr_1, or a `.npy` of samples.
        labels_path: A `.npy` of labels, used in place of those in `path`.

    Raises:
        DataError: A file is missing or damaged, or lacks an array.
    """
    loaded = _load(path)
    labels: NDArray[Any] | None = None
    name: str | None = None
    if isinstance(loaded, np.ndarray):
        arrays: NDArray[Any] = loaded
    else:
        name = _named(loaded, ("images", "latents", "x", "arr_0"))
        if name is None:
            raise DataError(f"{path} holds {', '.join(loaded.files)}; name the samples images, latents, x or arr_0")
        arrays = _member(loaded, path, name)
        labels_name = _named(loaded, ("labels", "y", "arr_1"))
        labels = _member(loaded, path, labels_name) if labels_name else None
    if labels_path is not None:
        labels = _load(labels_path)
        if not isinstance(labels, np.ndarray):
            raise DataError(f"{labels_path} is not a single array; give the labels as .npy")
    return Arrays(arrays, labels, name)


def _named(archive: Any, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in archive.files), None)


def _member(archive: Any, path: Path, name: str) -> NDArray[Any]:
    try:
        return np.asarray(archive[name])
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path}: {name} cannot be read ({first_line(error)}); write the file again") from None


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
