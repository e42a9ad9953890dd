"""Writing a store: batch by batch, continued where an interruption left it, whole only when its header stands."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.header import Header
from nas.data.store import HEADER, LABELS, LATENTS, PROGRESS, Store, checksum, open_store
from space.errors import DataError
from space.files import replace_file


class StoreWriter:
    """The arrays of a store being written; `done` samples are safely there.

    `plan` is the header but for class names and checksum. A folder that holds a half-written store of the same plan is gone
    on with. Raises DataError when the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, plan: Header) -> None:
        self.folder, self.plan = folder, plan
        self._told = plan.model_dump(mode="json", exclude={"checksum", "class_names"})
        if (folder / HEADER).exists():
            raise DataError(f"{folder} already holds a whole store; remove it, or name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = self._progress()
            self.done: int = 0 if found is None else found["done"]
            if found is None:
                # First of all, so that the folder is known for what it is.
                self._note()
            self._rows = _Array(folder / LATENTS, plan.dtype, plan.rows_shape, self.done * plan.views)
            self._labels = _Array(folder / LABELS, "int64", (plan.samples,), self.done)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written: {error}") from None

    def _progress(self) -> dict[str, Any] | None:
        path = self.folder / PROGRESS
        if not path.exists():
            if any(self.folder.iterdir()):
                raise DataError(f"{self.folder} is not empty and no half-written store; name another folder with --out")
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"{path} is damaged; remove {self.folder} and prepare it anew") from None
        if found["plan"] != self._told:
            other = next(key for key, value in self._told.items() if found["plan"].get(key) != value)
            raise DataError(
                f"{self.folder} is half written with {other} {found['plan'].get(other)!r}, not {self._told[other]!r}; "
                "repeat the command that began it, or remove the folder"
            )
        return found

    def write(self, rows: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """The next samples: rows (n·views, C, H, W) and labels (n,); afterwards they survive a crash."""
        try:
            self._rows.append(rows)
            self._labels.append(labels)
            self.done += len(labels)
            self._note()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}; free some space and repeat the command") from None

    def written(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Rows and labels of the samples first … end - 1, which must be done."""
        views = self.plan.views
        return self._rows.read(first * views, end * views), self._labels.read(first, end)

    def _note(self) -> None:
        _write_json(self.folder / PROGRESS, {"plan": self._told, "done": self.done})

    def finish(self, class_names: tuple[str, ...]) -> Store:
        """Write the header, which makes the store whole; raises DataError when samples are missing or a label has no name."""
        if self.done < self.plan.samples:
            raise DataError(f"{self.folder} has {self.done} of {self.plan.samples} samples; repeat the command to go on")
        rows, labels = (np.load(self.folder / name, mmap_mode="r", allow_pickle=False) for name in (LATENTS, LABELS))
        wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if len(wrong):
            raise DataError(
                f"sample {wrong[0]} has label {labels[wrong[0]]}, but there are {len(class_names)} classes; name more classes"
            )
        header = self.plan.model_copy(update={"class_names": class_names, "checksum": ""})
        header = header.model_copy(update={"checksum": checksum(header, rows, labels)})
        _write_json(self.folder / HEADER, header.model_dump(mode="json"))
        (self.folder / PROGRESS).unlink()
        return open_store(self.folder)


class _Array:
    """A .npy file that grows, written with plain file operations: a full disk is an OSError there, and a crash in a memory map."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], done: int) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        # Rewritten at every start: it says what the whole file will hold.
        self._file = path.open("r+b" if path.exists() else "w+b")
        facts = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, facts)
        self._file.flush()
        self._start = self._file.tell()
        self._file.seek(done * self._dtype.itemsize * math.prod(shape[1:]), os.SEEK_CUR)

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Rows that are there already."""
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
