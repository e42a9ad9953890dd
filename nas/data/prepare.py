"""Preparation of a store: batches of a reader's samples are written while the next batch is read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.labels import check_names
from nas.data.readers import Reader
from nas.data.store import Store
from nas.data.writer import StoreWriter
from space.errors import DataError

Batch = tuple[NDArray[Any], NDArray[np.int64]]

PROBE = 16
"""When a preparation resumes, at most this many samples at either end of the written part are read again and compared."""


def prepare_store(
    reader: Reader,
    folder: Path,
    batch_size: int = 1024,
    class_names: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] = lambda done, samples: None,
) -> Store:
    """Write a reader's samples to a store; the same call resumes an interrupted preparation.

    Args:
        reader: The data set.
        folder: The store's folder.
        batch_size: Samples read and written together.
        class_names: Names in place of the reader's, one for each of its classes.
        progress: Called with the number of samples done and the number of all samples.

    Returns:
        The whole store.

    Raises:
        DataError: The data cannot be read, or the folder cannot be written. Samples that were already written are kept, and
            the next call continues after them.
    """
    names = reader.class_names()
    if class_names is not None:
        check_names(class_names, names)
    writer = StoreWriter(folder, reader.plan, reader.made_of)
    reader.leave_out(writer.left_out)
    writer.plan = reader.plan
    progress(writer.done, writer.plan.samples)
    _check_same_source(reader, writer, min(batch_size, PROBE))
    with ThreadPoolExecutor(1) as reading:

        def submit(first: int) -> Future[Batch] | None:
            end = min(first + batch_size, reader.plan.samples)
            return reading.submit(reader.read, first, end) if end > first else None

        coming = submit(writer.done)
        while coming is not None:
            rows, labels = coming.result()
            coming = submit(writer.done + len(labels))
            # The plan has fewer samples once damaged ones have been left out.
            writer.plan = reader.plan
            if len(labels):
                writer.write(rows, labels)
            progress(writer.done, writer.plan.samples)
    writer.plan = reader.plan
    return writer.finish(class_names or names)


def _check_same_source(reader: Reader, writer: StoreWriter, probe: int) -> None:
    """Raise DataError when the source no longer gives the samples that were written."""
    writer.check_made_of()
    others = np.flatnonzero(reader.labels[: writer.done] != writer.labels())
    if len(others):
        raise DataError(
            f"the source is not the one from which {writer.folder} was begun: sample {others[0]} has another label, or classes "
            "came or went and are numbered anew; put it back, or remove the folder"
        )
    for first in {0, max(0, writer.done - probe)} if writer.done else ():
        end = min(first + probe, writer.done)
        rows, _ = reader.read(first, end)
        written, _ = writer.written(first, end)
        # The last digits of a VAE's output may depend on the size of its batches.
        same = np.array_equal(rows, written) if rows.dtype == np.uint8 else np.allclose(rows, written, rtol=1e-2, atol=1e-2)
        if not same:
            raise DataError(
                f"the source is not the one from which {writer.folder} was begun: the samples {first} to {end - 1} differ; "
                "put it back, or remove the folder"
            )
