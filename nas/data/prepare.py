"""Preparing a store: a reader's samples, batch after batch, the next one read while the last is encoded and written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nas.data.readers import Reader
from nas.data.store import LABELS, Store
from nas.data.writer import StoreWriter


def prepare(
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
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(reader.read, *bounds[0]) if bounds else None
        for number in range(len(bounds)):
            assert coming is not None
            rows, labels = coming.result()
            coming = ahead.submit(reader.read, *bounds[number + 1]) if number + 1 < len(bounds) else None
            writer.write(rows, labels)
            progress(writer.done, samples)
    return writer.finish(class_names or reader.class_names(np.load(folder / LABELS, allow_pickle=False)))
