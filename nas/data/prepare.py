"""Preparing a store: a reader's samples, batch after batch, the next one read while the last is encoded and written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nas.data.readers import Reader
from nas.data.store import LABELS, Store
from nas.data.writer import StoreWriter
from space.errors import DataError

PROBE = 16
"""So many samples at either end of what was written are read again when a preparation is gone on with."""


def prepare_store(
    reader: Reader,
    folder: Path,
    batch_size: int = 1024,
    class_names: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] = lambda done, samples: None,
) -> Store:
    """Write a reader's samples to a store and return it; the same call goes on where an earlier one was interrupted.

    `class_names` replace the reader's; `progress` is told how many samples of how many are done. Raises DataError for data
    that cannot be read and for a folder that cannot be written; what was written before stays and is gone on with.
    """
    writer = StoreWriter(folder, reader.plan)
    samples = reader.plan.samples
    bounds = [(first, min(first + batch_size, samples)) for first in range(writer.done, samples, batch_size)]
    progress(writer.done, samples)
    _check_same_source(reader, writer, min(batch_size, PROBE))
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(reader.read, *bounds[0]) if bounds else None
        for number in range(len(bounds)):
            assert coming is not None
            rows, labels = coming.result()
            coming = ahead.submit(reader.read, *bounds[number + 1]) if number + 1 < len(bounds) else None
            writer.write(rows, labels)
            progress(writer.done, samples)
    return writer.finish(class_names or reader.class_names(np.load(folder / LABELS, allow_pickle=False)))


def _check_same_source(reader: Reader, writer: StoreWriter, probe: int) -> None:
    """Raises DataError when the source no longer gives what was written of it."""
    for first in {0, max(0, writer.done - probe)} if writer.done else ():
        end = min(first + probe, writer.done)
        rows, labels = reader.read(first, end)
        kept, kept_labels = writer.written(first, end)
        # A VAE's arithmetic may differ in the last digits with the size of its batches.
        same = np.array_equal(rows, kept) if rows.dtype == np.uint8 else np.allclose(rows, kept, rtol=1e-2, atol=1e-2)
        if not same or not np.array_equal(labels, kept_labels):
            raise DataError(
                f"the source is not the one from which {writer.folder} was begun: the samples {first} to {end - 1} differ; "
                "put it back, or remove the folder"
            )
