"""Writing a store: batch by batch, continued where an interruption left it, whole only when its header stands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.store import HEADER, LABELS, LATENTS, PROGRESS, Header, Store, checksum, open_store
from space.errors import DataError


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
            mode = "w+" if found is None else "r+"
            self._rows = np.lib.format.open_memmap(folder / LATENTS, mode, plan.dtype, plan.rows_shape)
            self._labels = np.lib.format.open_memmap(folder / LABELS, mode, "int64", (plan.samples,))
            if found is None:
                self._note()
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written: {error}") from None

    def _progress(self) -> dict[str, Any] | None:
        path = self.folder / PROGRESS
        if not path.exists():
            if any(self.folder.iterdir()):
                raise DataError(f"{self.folder} is not empty and no half-written store; name another folder with --out")
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["plan"] != self._told:
            other = next(key for key, value in self._told.items() if found["plan"].get(key) != value)
            raise DataError(
                f"{self.folder} is half written with {other} {found['plan'].get(other)!r}, not {self._told[other]!r}; "
                "repeat the command that began it, or remove the folder"
            )
        return found

    def write(self, rows: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """The next samples: rows (n·views, C, H, W) and labels (n,); afterwards they survive a crash."""
        views, first = self.plan.views, self.done
        end = first + len(labels)
        try:
            self._rows[first * views : end * views] = rows
            self._labels[first:end] = labels
            self._rows.flush()
            self._labels.flush()
            self.done = end
            self._note()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}; free some space and repeat the command") from None

    def _note(self) -> None:
        _replace(self.folder / PROGRESS, {"plan": self._told, "done": self.done})

    def finish(self, class_names: tuple[str, ...]) -> Store:
        """Write the header, which makes the store whole; raises DataError when samples are missing or a label has no name."""
        if self.done < self.plan.samples:
            raise DataError(f"{self.folder} has {self.done} of {self.plan.samples} samples; repeat the command to go on")
        if len(self._labels) and not 0 <= self._labels.min() <= self._labels.max() < len(class_names):
            wrong = int(np.flatnonzero((self._labels < 0) | (self._labels >= len(class_names)))[0])
            raise DataError(
                f"sample {wrong} has label {self._labels[wrong]}, but there are {len(class_names)} classes; name more classes"
            )
        header = self.plan.model_copy(update={"class_names": class_names, "checksum": checksum(self._rows, self._labels)})
        _replace(self.folder / HEADER, header.model_dump(mode="json"))
        (self.folder / PROGRESS).unlink()
        return open_store(self.folder)


def _replace(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON so that a crash leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
