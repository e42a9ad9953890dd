"""Files of the ADM evaluation suite (Dhariwal & Nichol 2021): samples as `arr_0`, reference statistics as `mu` and `sigma`."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.statistics import Matrix, Moments
from space.errors import DataError, RunError
from space.files import DAMAGED_ARRAY, first_line, replace_file

Images = NDArray[np.uint8]
"""(N, H, W, C), 0 to 255."""

IMAGES, POOLED, SPATIAL = "arr_0", ("mu", "sigma"), ("mu_s", "sigma_s")
"""The suite's keys: images, and mean and covariance of pooled and of spatial features."""


@dataclass(frozen=True, eq=False)
class AdmFile:
    """The content of a file of the suite; a field is None when the file does not have it."""

    mu: Matrix | None = None
    """(D,): mean of the pooled features."""
    sigma: Matrix | None = None
    """(D, D): their covariance."""
    mu_s: Matrix | None = None
    """(E,): mean of the spatial features."""
    sigma_s: Matrix | None = None
    """(E, E): their covariance."""
    arr_0: Images | None = None
    """(N, H, W, 3) uint8."""

    @property
    def pooled(self) -> Moments | None:
        """The statistics for FID; the files do not record the number of images."""
        return None if self.mu is None or self.sigma is None else Moments(self.mu, self.sigma)

    @property
    def spatial(self) -> Moments | None:
        """The statistics for sFID."""
        return None if self.mu_s is None or self.sigma_s is None else Moments(self.mu_s, self.sigma_s)


def write_samples_npz(images: Iterable[Images], path: Path) -> int:
    """Write images as the suite's `arr_0`.

    Grey images are repeated to three channels. One batch is in memory at a time. The file begins with the number of images, so
    they first go to a nameless file in the same folder, and the disk needs twice their size until the end. A failure leaves an
    older file of that name as it was.

    Args:
        images: Batches uint8 (n, H, W, 3), or grey (n, H, W, 1).
        path: The file to write.

    Returns:
        The number of images.

    Raises:
        DataError: A batch has another type or shape, or there are no images.
        RunError: The file cannot be written.
    """
    path = Path(path)
    spool = _spool(path)
    try:
        shape = _collect(images, spool, path)
        try:
            with replace_file(path) as file:
                _pack(spool, shape, file)
        except OSError as error:
            raise _unwritable(path, error) from None
    finally:
        # Closing flushes again, which fails again on a full disk; the spool is no longer needed.
        with contextlib.suppress(OSError):
            spool.close()
    return shape[0]


def read_reference_npz(path: Path, images: bool = True) -> AdmFile:
    """Read a file of the suite: statistics (`mu`, `sigma`, `mu_s`, `sigma_s`) and images (`arr_0`), each of which is optional.

    Other keys are ignored, and nothing is unpickled.

    Args:
        path: The .npz file.
        images: Whether to read `arr_0`, which may need much memory.

    Raises:
        DataError: The file is missing, damaged, has none of the keys or a mean without its covariance, or an array has another
            shape or type than the suite's.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there; give the .npz file of a reference batch or of samples")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or is cut short; fetch or write it again")
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGED_ARRAY:
        raise DataError(f"{path} is a damaged .npz file; fetch or write it again") from None
    with archive:
        arrays: dict[str, Any] = {}
        for mean, covariance in (POOLED, SPATIAL):
            arrays |= _read_statistics(archive, mean, covariance, path)
        if images and IMAGES in archive.files:
            arrays[IMAGES] = _read_images(archive, path)
        if not arrays and IMAGES not in archive.files:
            raise DataError(f"{path} holds neither {IMAGES} nor mu and sigma; give a file in the ADM suite's format")
    return AdmFile(**arrays)


def count_images(path: Path) -> int:
    """The number of images in a file of the suite; raises DataError when the file is missing or damaged."""
    read_reference_npz(path, images=False)
    with _images_entry(path) as (_, shape):
        return shape[0]


def stream_images(path: Path, batch: int) -> Iterator[Images]:
    """The images (n, H, W, 3) of a file of the suite, in batches, so that the memory never holds all of them.

    Raises:
        DataError: The file is missing or damaged, or holds no images.
    """
    read_reference_npz(path, images=False)
    with _images_entry(path) as (entry, shape):
        if entry is None:
            raise DataError(f"{path} holds no images; give a file with {IMAGES}")
        for first in range(0, shape[0], batch):
            count = min(batch, shape[0] - first)
            raw = entry.read(count * math.prod(shape[1:]))
            yield np.frombuffer(raw, np.uint8).reshape(count, *shape[1:])


@contextlib.contextmanager
def _images_entry(path: Path) -> Iterator[tuple[IO[bytes] | None, tuple[int, ...]]]:
    """The entry of the images, positioned at the first one, and its shape (N, H, W, 3); None and (0,) without images."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{IMAGES}.npy" not in archive.namelist():
                yield None, (0,)
                return
            with archive.open(f"{IMAGES}.npy") as entry:
                first_version = np.lib.format.read_magic(entry) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(entry)
                if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran:
                    raise DataError(f"{path}: {IMAGES} is {dtype} {_times(shape)}; it must be uint8 (N, H, W, 3)")
                yield entry, shape
    except DAMAGED_ARRAY:
        raise DataError(f"{path} is a damaged .npz file; fetch or write it again") from None


def _spool(path: Path) -> IO[bytes]:
    """A nameless file in the folder of `path`; it disappears when closed, and after a crash."""
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is no folder; create it, or write the samples elsewhere")
    try:
        return tempfile.TemporaryFile(dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None


def _collect(batches: Iterable[Images], spool: IO[bytes], path: Path) -> tuple[int, int, int, int]:
    """Append the bytes of all images to the spool, and return their common shape (N, H, W, 3)."""
    count, size = 0, None
    for number, batch in enumerate(batches):
        batch = np.asarray(batch)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] not in (1, 3):
            raise DataError(
                f"batch {number} of the samples is {batch.dtype} of shape {batch.shape}; it must be uint8 of shape "
                "(n, height, width, 3), or 1 for grey"
            )
        size = size or batch.shape[1:3]
        if batch.shape[1:3] != size:
            raise DataError(
                f"batch {number} of the samples has images of {_times(batch.shape[1:3])} pixels and those before {_times(size)}; "
                "all must be of one size"
            )
        colour = np.repeat(batch, 3, axis=3) if batch.shape[3] == 1 else np.ascontiguousarray(batch)
        try:
            spool.write(colour.data)
        except OSError as error:
            raise _unwritable(path, error) from None
        count += len(batch)
    if size is None or not count or 0 in size:
        raise DataError(f"there are no samples to write to {path}; give at least 1 image")
    return count, size[0], size[1], 3


def _pack(spool: IO[bytes], shape: tuple[int, int, int, int], file: BinaryIO) -> None:
    """Write one uncompressed entry, as np.savez does, because the suite reads it as a stream."""
    spool.seek(0)
    entry_name = f"{IMAGES}.npy"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive, archive.open(entry_name, "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(spool, entry, length=1 << 20)


def _read_statistics(archive: Any, mean: str, covariance: str, path: Path) -> dict[str, Matrix]:
    present = [key for key in (mean, covariance) if key in archive.files]
    if not present:
        return {}
    if len(present) == 1:
        missing = covariance if present == [mean] else mean
        raise DataError(f"{path} holds {present[0]} but not {missing}; both are needed, so fetch or compute the file again")
    mu, sigma = _read(archive, mean, "(D,)", path), _read(archive, covariance, "(D, D)", path)
    for key, array in ((mean, mu), (covariance, sigma)):
        if array.dtype.kind != "f":
            raise DataError(f"{key} of {path} is of type {array.dtype}; it must be floating-point")
    if mu.ndim != 1 or not mu.size:
        raise DataError(f"{mean} of {path} has shape {mu.shape}; it must be (D,)")
    if sigma.shape != (mu.size, mu.size):
        raise DataError(f"{covariance} of {path} has shape {sigma.shape}; beside {mean} it must be ({mu.size}, {mu.size})")
    try:
        moments = Moments(mu, sigma)
    except DataError as error:
        raise DataError(f"{mean} and {covariance} of {path}: {error}") from None
    return {mean: moments.mean, covariance: moments.covariance}


def _read_images(archive: Any, path: Path) -> Images:
    images = _read(archive, IMAGES, "(N, height, width, 3)", path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise DataError(
            f"{IMAGES} of {path} is {images.dtype} of shape {images.shape}; it must be uint8 of shape (N, height, width, 3)"
        )
    return images


def _read(archive: Any, key: str, shape: str, path: Path) -> NDArray[Any]:
    try:
        array = archive[key]
    except DAMAGED_ARRAY as error:
        reason = f" ({first_line(error)})" if str(error) else ""
        raise DataError(f"{key} of {path} cannot be read as an array {shape}{reason}; fetch or write the file again") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{key} of {path} is no NumPy array; it must be {shape}, so fetch or write the file again")
    return array


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written: {error.strerror}; free some space, or write the samples elsewhere")
