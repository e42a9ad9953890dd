"""The writer of a store: batch by batch, resumed after an interruption; the header is written last and completes the store."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.header import Header
from nas.data.store import HEADER, LABELS, LATENTS, PROGRESS, Store, checksum, class_counts, open_store
from space.errors import DataError
from space.files import replace_file


class StoreWriter:
    """The writer of a store's arrays; `done` samples are safely on the disk.

    A half-written store with the same plan is resumed.

    Args:
        folder: The store's folder.
        plan: The header, without class names and checksum.

    Raises:
        DataError: The folder holds something else or cannot be written.
    """

    def __init__(self, folder: Path, plan: Header) -> None:
        self.folder, self.plan = folder, plan
        self._plan_facts = plan.model_dump(mode="json", exclude={"checksum", "class_names", "class_counts"})
        if (folder / HEADER).exists():
            raise DataError(f"{folder} already holds a whole store; remove it, or name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            progress = self._progress()
            self.done: int = 0 if progress is None else progress["done"]
            if progress is None:
                # The progress file comes first: it marks the folder as a half-written store.
                self._write_progress()
            self._rows = _Array(folder / LATENTS, plan.dtype, plan.rows_shape, self.done * plan.views)
            self._labels = _Array(folder / LABELS, "int64", (plan.samples,), self.done)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written: {error}") from None

    def _progress(self) -> dict[str, Any] | None:
        path = self.folder / PROGRESS
        if not path.exists():
            if any(self.folder.iterdir()):
                raise DataError(f"{self.folder} is not empty and is not a half-written store; name another folder with --out")
            return None
        try:
            progress: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"{path} is damaged; remove {self.folder} and prepare the store again") from None
        if progress["plan"] != self._plan_facts:
            key = next(key for key, value in self._plan_facts.items() if progress["plan"].get(key) != value)
            raise DataError(
                f"{self.folder} is half written with {key} {progress['plan'].get(key)!r}, not {self._plan_facts[key]!r}; "
                "repeat the command that began it, or remove the folder"
            )
        return progress

    def write(self, rows: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Append the next samples, rows (n·views, C, H, W) and labels (n,); when it returns, they survive a crash."""
        try:
            self._rows.append(rows)
            self._labels.append(labels)
            self.done += len(labels)
            self._write_progress()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}; free some space and repeat the command") from None

    def written(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows and labels of the samples first … end - 1, which must have been written."""
        views = self.plan.views
        return self._rows.read(first * views, end * views), self._labels.read(first, end)

    def _write_progress(self) -> None:
        _write_json(self.folder / PROGRESS, {"plan": self._plan_facts, "done": self.done})

    def finish(self, class_names: tuple[str, ...]) -> Store:
        """Write the header, which completes the store.

        Raises:
            DataError: Samples are missing, a label has no name, or a class has no sample.
        """
        if self.done < self.plan.samples:
            raise DataError(f"{self.folder} has {self.done} of {self.plan.samples} samples; repeat the command to resume")
        rows, labels = (np.load(self.folder / name, mmap_mode="r", allow_pickle=False) for name in (LATENTS, LABELS))
        unnamed = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if len(unnamed):
            raise DataError(
                f"sample {unnamed[0]} has label {labels[unnamed[0]]}, but there are {len(class_names)} classes; name more classes"
            )
        counts = class_counts(labels, class_names)
        if 0 in counts:
            raise DataError(
                f"class {class_names[counts.index(0)]} has no samples in {self.folder}; remove the class, or add samples"
            )
        header = self.plan.model_copy(update={"class_names": class_names, "class_counts": counts, "checksum": ""})
        header = header.model_copy(update={"checksum": checksum(header, rows, labels)})
        _write_json(self.folder / HEADER, header.model_dump(mode="json"))
        (self.folder / PROGRESS).unlink()
        return open_store(self.folder)


class _Array:
    """A growing .npy file, written with file operations: a full disk is then an OSError, where a memory map would crash."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], done: int) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        # The .npy header describes the whole array, so it is the same at every start.
        self._file = path.open("r+b" if path.exists() else "w+b")
        facts = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, facts)
        self._file.flush()
        self._start = self._file.tell()
        self._file.seek(done * self._dtype.itemsize * math.prod(shape[1:]), os.SEEK_CUR)

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Rows first … end - 1, which must have been written."""
        row = self._dtype.itemsize * math.prod(self._shape[1:])
        raw = os.pread(self._file.fileno(), (end - first) * row, self._start + first * row)
        return np.frombuffer(raw, self._dtype).reshape(-1, *self._shape[1:])

    def append(self, values: NDArray[Any]) -> None:
        """Write rows of the array's shape, so that they survive a crash."""
        if values.shape[1:] != self._shape[1:]:
            raise ValueError(f"rows of shape {values.shape[1:]} do not fit an array of {self._shape}")
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._file.flush()
        os.fsync(self._file.fileno())


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    with replace_file(path) as file:
        file.write(json.dumps(facts, indent=1).encode())
