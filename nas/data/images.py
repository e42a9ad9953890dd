"""Folders of images with one subfolder per class, centre-cropped to squares as ADM and DiT prepare them."""

from __future__ import annotations

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from space.errors import DataError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name endings of images, in lower or upper case: the list of torchvision's ImageFolder."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""The errors that Pillow raises for files that are missing, truncated, damaged, too large or not images."""


class ImageFolder:
    """The images below `folder`, cropped to (3, size, size); labels number the subfolders in the order of their names.

    Classes, labels and order are those of torchvision's ImageFolder: names are compared character by character, and the images
    directly in a folder precede those of its subfolders. Links are followed; names that begin with a dot are ignored. The
    constructor reads names only.

    Raises:
        DataError: The folder is missing, cannot be listed or has no subfolders with images, or one of its subfolders has no
            images, which would shift the labels of the others.
    """

    def __init__(self, folder: Path, size: int) -> None:
        if size < 1:
            raise DataError(f"images of {size}×{size} pixels cannot be cropped from {folder}; ask for a size of at least 1")
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder; give one that has a subfolder of images for every class")
        classes = {name: self._listed(name) for name in _subfolders(self.folder)}
        if not any(classes.values()):
            raise DataError(
                f"{folder}: no subfolders with images ({', '.join(EXTENSIONS)}); put those of each class into a subfolder"
            )
        for name, files in classes.items():
            if not files:
                raise DataError(f"{self.folder / name}: a class without images; put its images there or remove the subfolder")
        self.class_names = tuple(classes)
        self.files = tuple(file for files in classes.values() for file in files)
        """Names relative to `folder`, with forward slashes."""
        counts = [len(files) for files in classes.values()]
        self.labels: NDArray[np.int64] = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all relative names and file sizes; raises DataError when a file is missing."""
        digest = hashlib.sha256()
        for index, file in enumerate(self.files):
            try:
                size = (self.folder / file).stat().st_size
            except OSError as error:
                self._refuse(index, error)
            # No file name contains a zero byte, so different lists never give the same bytes.
            digest.update(os.fsencode(file) + f"\0{size}\0".encode())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images with the bounds of a slice, uint8 (n, 3, size, size), decoded by several threads.

        Raises:
            DataError: An image cannot be read; the message names the first such image by its index and path.
        """
        wanted = range(len(self))[start:stop]
        pixels = np.empty((len(wanted), 3, self.size, self.size), dtype=np.uint8)
        # Pillow decodes and resizes without holding the interpreter's lock.
        with ThreadPoolExecutor() as pool:
            for row, image in enumerate(pool.map(self._read_one, wanted)):
                pixels[row] = image
        return pixels

    def _read_one(self, index: int) -> NDArray[np.uint8]:
        try:
            with Image.open(self.folder / self.files[index]) as image:
                cropped = centre_crop(image, self.size)
        except UNREADABLE as error:
            self._refuse(index, error)
        return np.asarray(cropped).transpose(2, 0, 1)

    def _refuse(self, index: int, error: Exception) -> NoReturn:
        raise DataError(
            f"{self.folder / self.files[index]}: image {index} cannot be read ({error}); restore or remove the file"
        ) from error

    def _listed(self, class_name: str) -> list[str]:
        """The images of a class at any depth, sorted by folder and then by name."""
        images: list[tuple[str, str]] = []
        for folder, subfolders, names in os.walk(self.folder / class_name, onerror=_refuse_listing, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = Path(folder).relative_to(self.folder).as_posix()
            images += [(relative, name) for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        return [f"{folder}/{name}" for folder, name in sorted(images)]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of size × size pixels, RGB, of the image resized so that its smaller side is `size`.

    As in ADM (Dhariwal & Nichol 2021) and DiT: while the smaller side is at least 2·size, the image is halved by averaging
    blocks of 2×2 pixels, since a bicubic filter alone would alias; one bicubic step then resizes it to the final size.
    """
    image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse_listing(error)


def _refuse_listing(error: OSError) -> NoReturn:
    """Raise DataError: to skip a folder silently would change the labels or the order of the images."""
    raise DataError(f"{error.filename}: the folder cannot be listed ({error.strerror}); mend its permissions") from error
