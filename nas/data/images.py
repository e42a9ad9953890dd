"""Folders of images with one subfolder per class, each file taken once, whatever the links."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.data.header import printable
from nas.data.pictures import Pictures
from nas.data.store import HEADER, LATENTS, PROGRESS
from space.errors import DataError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name endings of images, in lower or upper case: the list of torchvision's ImageFolder."""

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Names of the parts of a data set, of which one is to be given."""


class ImageFolder(Pictures):
    """The images below `folder`, cropped to (3, size, size); labels number the subfolders in the order of their names.

    Classes, labels and order are those of torchvision's ImageFolder: names are compared character by character, and the images
    directly in a folder precede those of its subfolders. Links are followed where they lead to what is not listed anyway, so
    each file is taken once and under the class that it lies in. Names that begin with a dot and stores that this toolkit wrote
    are ignored. The constructor reads names only.

    Raises:
        DataError: The folder is missing, cannot be listed, has no subfolders with images or has parts (train, val) in place of
            classes, or one of its subfolders has no images, which would shift the labels of the others.
    """

    def __init__(self, folder: Path, size: int, skip_damaged: bool = False) -> None:
        if size < 1:
            raise DataError(f"images of {size}×{size} pixels cannot be cropped from {folder}; ask for a size of at least 1")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder; give one that has a subfolder of images for every class")
        listing = _Listing(self.folder)
        classes = {name: listing.of_class(name) for name in _subfolders(self.folder) if not _is_store(self.folder / name)}
        if not any(classes.values()):
            raise DataError(
                f"{folder}: no subfolders with images ({', '.join(EXTENSIONS)}); put those of each class into a subfolder"
            )
        _refuse_splits(self.folder, classes)
        for name, files in classes.items():
            if not files and name in listing.linked:
                raise DataError(f"{self.folder / name}: what it links to is listed in another place too; remove this link")
            if not files:
                raise DataError(f"{self.folder / name}: a class without images; put its images there or remove the subfolder")
        self.class_names = tuple(classes)
        self._all_files = tuple(file for files in classes.values() for file in files)
        counts = [len(files) for files in classes.values()]
        labels: NDArray[np.int64] = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        super().__init__(str(folder), labels, size, skip_damaged)
        self.passed_over = listing.passed_over
        """How many files were passed over, by what they are."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names relative to `folder`, with forward slashes."""
        return tuple(self._all_files[number] for number in self._numbers)

    def _name(self, number: int) -> str:
        return self._all_files[number]

    def _raw(self, number: int) -> bytes:
        return (self.folder / self._all_files[number]).read_bytes()

    def _fact(self, number: int) -> bytes:
        """The relative name and the file's size."""
        file = self._all_files[number]
        try:
            size = (self.folder / file).stat().st_size
        except OSError as error:
            raise DataError(
                f"{self.folder / file}: the image cannot be read ({error.strerror}); restore or remove the file"
            ) from error
        # No file name contains a zero byte, so different lists never give the same bytes.
        return os.fsencode(file) + f"\0{size}\0".encode()


class _Listing:
    """The images of one class after the other, each file once.

    A link that leads to what is listed at its own place, or to a folder around all of it, is passed over; what lies elsewhere is
    taken by the first link that leads there. Hard links are files like others.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._real_root = root, Path(os.path.realpath(root))
        self._elsewhere: set[str] = set()
        """Real names of files and folders outside of the root, or hidden in it, that a link led to."""
        self.linked: Counter[str] = Counter()
        """Links that were passed over, by class."""
        self._others: Counter[str] = Counter(_kind(entry.name) for entry in _entries(root) if not os.path.isdir(entry.path))

    @property
    def passed_over(self) -> dict[str, int]:
        """Numbers of files and links that are not taken, by what they are."""
        links = {"links to what is listed elsewhere": self.linked.total()} if self.linked else {}
        return dict(sorted(self._others.items())) | links

    def of_class(self, name: str) -> list[str]:
        """The images of a class at any depth, sorted by folder and then by name."""
        images: list[tuple[str, str]] = []
        path = str(self._root / name)
        real = os.path.realpath(path) if os.path.islink(path) else None
        if real is None or self._is_new(real, is_folder=True):
            self._walk(path, name, real, images)
        else:
            self.linked[name] += 1
        return [f"{folder}/{file}" for folder, file in sorted(images)]

    def _walk(self, folder: str, relative: str, real_folder: str | None, images: list[tuple[str, str]]) -> None:
        """Add the images of a folder, whose real name is given when a link led here."""
        for entry in _entries(folder):
            real = f"{real_folder}/{entry.name}" if real_folder else None
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if not is_folder and not entry.name.lower().endswith(EXTENSIONS):
                self._others[_kind(entry.name)] += 1
            elif real and not self._is_new(real, is_folder):
                self.linked[relative.split("/", 1)[0]] += 1
            elif is_folder:
                self._walk(entry.path, f"{relative}/{entry.name}", real, images)
            else:
                images.append((relative, entry.name))

    def _is_new(self, real: str, is_folder: bool) -> bool:
        """Whether what a link leads to has not been listed and will not be at its own place."""
        path = Path(real)
        if path.is_relative_to(self._real_root):
            parts = path.relative_to(self._real_root).parts
            is_hidden = any(part.startswith(".") for part in parts)
            is_listed = not is_hidden and (is_folder or (len(parts) > 1 and path.name.lower().endswith(EXTENSIONS)))
        else:
            is_listed = is_folder and self._real_root.is_relative_to(path)
        if is_listed or real in self._elsewhere:
            return False
        self._elsewhere.add(real)
        return True


def _kind(name: str) -> str:
    """What a file that is passed over is, by its ending."""
    ending = printable(os.path.splitext(name)[1].lower())
    if ending in EXTENSIONS:
        return f"{ending} of no class"
    return ending or "without an ending"


def _refuse_splits(folder: Path, classes: dict[str, list[str]]) -> None:
    """Raise DataError where the subfolders are the parts of a data set, each of which has the classes."""
    parts = [name for name in classes if name.lower() in SPLITS]
    deep = all(file.count("/") > 1 for name in parts for file in classes[name])
    if len(parts) > 1 or (parts and deep and len(parts) == len(classes)):
        first = min(parts, key=lambda name: SPLITS.index(name.lower()))
        raise DataError(
            f"{folder} holds {', '.join(parts)}, which are parts of a data set rather than classes; give one of them, "
            f"such as {folder / first}"
        )


def _is_store(folder: Path) -> bool:
    """Whether a subfolder is a store, whole or half written, that was put below the images."""
    return (folder / PROGRESS).exists() or all((folder / name).exists() for name in (HEADER, LATENTS))


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if os.path.isdir(entry.path)]


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What a folder holds, without names that begin with a dot, in the order of the names.

    Raises:
        DataError: It cannot be listed; to skip it silently would change the labels or the order of the images.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{error.filename}: the folder cannot be listed ({error.strerror}); mend its permissions") from error
