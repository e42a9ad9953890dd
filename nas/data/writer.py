"""The writer of a store: batch by batch, resumed after an interruption; the header is written last and completes the store."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.header import Header, printable
from nas.data.store import HEADER, LABELS, LATENTS, PROGRESS, Store, checksum, class_counts, open_store
from space.errors import DataError
from space.files import replace_file


class StoreWriter:
    """The writer of a store's arrays; `done` samples are safely on the disk.

    A half-written store with the same plan is resumed. The number of samples may change meanwhile, as long as `made_of` says that
    those that are written are made of the same.

    Args:
        folder: The store's folder.
        plan: The header, without class names and checksum. It may be replaced as samples turn out to be damaged.
        made_of: A digest of what the first so many samples are made of, or "".

    Raises:
        DataError: The folder holds something else or cannot be written.
    """

    def __init__(self, folder: Path, plan: Header, made_of: Callable[[int], str] = lambda end: "") -> None:
        self.folder, self.plan, self._made_of = folder, plan, made_of
        if (folder / HEADER).exists():
            raise DataError(f"{folder} already holds a whole store; remove it, or name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            progress = self._progress()
            self.done: int = 0 if progress is None else progress["done"]
            self.left_out: tuple[str, ...] = () if progress is None else tuple(progress.get("left_out", ()))
            """Samples that were left out of what is written."""
            self._written_of: str = "" if progress is None else progress.get("made_of", "")
            if progress is None:
                # The progress file comes first: it marks the folder as a half-written store.
                self._write_progress()
            self._rows = _Array(folder / LATENTS, plan.dtype, plan.rows_shape, self.done * plan.views)
            self._labels = _Array(folder / LABELS, "int64", (plan.samples,), self.done)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written: {error}") from None

    def _progress(self) -> dict[str, Any] | None:
        path = self.folder / PROGRESS
        # What a full disk or a killed process left of a file that was about to be replaced.
        for leftover in self.folder.glob("*.partial"):
            if leftover.name.startswith((f"{path.stem}.", f"{HEADER}.")):
                leftover.unlink()
        if not path.exists():
            if any(self.folder.iterdir()):
                raise DataError(f"{self.folder} is not empty and is not a half-written store; name another folder with --out")
            return None
        try:
            progress: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            plan, now = progress["plan"], self._plan_facts()
            _ = plan["source"], int(progress["done"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is damaged; remove {self.folder} and prepare the store again") from None
        if "made_of" not in progress and self._made_of(0):
            raise DataError(
                f"{self.folder} was begun by an earlier version, which prepared images in another way; "
                "remove the folder and prepare the store again"
            )
        for key, value in now.items():
            # Keys that an earlier version did not know yet are as they are now.
            if plan.get(key, value) != value:
                raise DataError(
                    f"{self.folder} is half written with {key} {plan[key]!r}, not {value!r}; "
                    "repeat the command that began it, or remove the folder"
                )
        return progress

    def _plan_facts(self) -> dict[str, Any]:
        """The facts that rows depend on, whatever their number."""
        return self.plan.model_dump(mode="json", exclude={"samples", "left_out", "checksum", "class_names", "class_counts"})

    def check_made_of(self) -> None:
        """Raise DataError when the samples that are written were made of others than there are now."""
        if self.done > self.plan.samples or (self.done and self._written_of != self._made_of(self.done)):
            raise DataError(
                f"the source is not the one from which {self.folder} was begun: its first {self.done} samples are others; "
                "put them back, or remove the folder"
            )

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

    def labels(self) -> NDArray[np.int64]:
        """The labels of all samples that have been written."""
        return self._labels.read(0, self.done)

    def _write_progress(self) -> None:
        facts = {"plan": self._plan_facts(), "done": self.done, "made_of": self._made_of(self.done), "left_out": self.plan.left_out}
        _write_json(self.folder / PROGRESS, facts)

    def finish(self, class_names: tuple[str, ...]) -> Store:
        """Write the header, which completes the store.

        Raises:
            DataError: Samples are missing, a label has no name, or a class has no sample.
        """
        if self.done < self.plan.samples:
            raise DataError(f"{self.folder} has {self.done} of {self.plan.samples} samples; repeat the command to resume")
        try:
            self._rows.resize(self.plan.rows_shape)
            self._labels.resize((self.plan.samples,))
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}; repeat the command") from None
        rows, labels = (np.load(self.folder / name, mmap_mode="r", allow_pickle=False) for name in (LATENTS, LABELS))
        unnamed = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if len(unnamed):
            raise DataError(
                f"sample {unnamed[0]} has label {labels[unnamed[0]]}, but there are {len(class_names)} classes; name more classes"
            )
        counts = class_counts(labels, class_names)
        if 0 in counts:
            raise DataError(
                f"class {printable(class_names[counts.index(0)])} has no samples in {self.folder}; remove the class, or add samples"
            )
        digest = self._made_of(self.done)
        source = f"{self.plan.source} ({digest[:16]})" if digest else self.plan.source
        facts = {**self.plan.model_dump(), "class_names": class_names, "class_counts": counts, "source": source, "checksum": ""}
        header = Header.model_validate(facts)
        header = header.model_copy(update={"checksum": checksum(header, rows, labels)})
        _write_json(self.folder / HEADER, header.model_dump(mode="json"))
        (self.folder / PROGRESS).unlink()
        return open_store(self.folder)


class _Array:
    """A growing .npy file, written with file operations: a full disk is then an OSError, where a memory map would crash."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], done: int) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._write_header(shape)
        self._file.seek(done * self._row_bytes, os.SEEK_CUR)

    def _write_header(self, shape: tuple[int, ...]) -> None:
        # NumPy leaves room for the number of rows to change, so the header is as long at every start.
        self._shape, self._row_bytes = shape, self._dtype.itemsize * math.prod(shape[1:])
        self._file.seek(0)
        facts = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, facts)
        self._file.flush()
        self._start = self._file.tell()

    def resize(self, shape: tuple[int, ...]) -> None:
        """Make the file hold this many rows, of those that were written."""
        self._write_header(shape)
        self._file.truncate(self._start + shape[0] * self._row_bytes)
        os.fsync(self._file.fileno())

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Rows first … end - 1, which must have been written."""
        raw = os.pread(self._file.fileno(), (end - first) * self._row_bytes, self._start + first * self._row_bytes)
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
