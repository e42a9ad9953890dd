"""Labels as classes: numbered from 0 without a gap, whatever the source calls them, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.header import printable
from space.errors import DataError


def classes_of(
    values: Sequence[Any] | NDArray[Any], source: str, names: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels numbered from 0 without a gap, and the names of the classes, each of which has a sample.

    Args:
        values: (N,), whole numbers from 0 on or text, one per sample.
        source: The name of the source, for messages.
        names: The names of the numbers 0, 1, …; without them a class is called as it is labelled.

    Returns:
        Labels (N,) and names (K,) in the order of numbers, or of text character by character.

    Raises:
        DataError: There is no sample, one has no label, or labels are neither whole numbers from 0 on nor text.
    """
    array = np.asarray(values)
    if not len(array):
        raise DataError(f"{source} has no samples; give a split or files that have some")
    if array.dtype.kind in "Of":
        missing = [number for number, value in enumerate(values) if value is None or value != value]
        if missing:
            raise DataError(f"{source}: sample {missing[0]} has no label ({len(missing)} in all); label it or remove it")
    if array.dtype.kind not in "iuU":
        kinds = sorted({type(value).__name__ for value in values}) if array.dtype.kind == "O" else [str(array.dtype)]
        raise DataError(f"{source}: labels are {', '.join(kinds)}, not whole numbers or text; give one of these")
    if array.dtype.kind == "i" and len(array) and array.min() < 0:
        raise DataError(
            f"{source} has no labels where they are below 0; sample {int(np.argmin(array))} has {array.min()}; label or remove it"
        )
    held, labels = np.unique(array, return_inverse=True)
    if len(names) and len(held) and int(held[-1]) >= len(names):
        number = int(np.argmax(array))
        raise DataError(f"{source}: sample {number} has label {held[-1]}, but there are {len(names)} classes; name more classes")
    return labels.astype(np.int64), tuple(names[int(label)] if len(names) else str(label) for label in held)


def check_names(given: Sequence[str], held: Sequence[str]) -> None:
    """Raise DataError when names do not suit the classes `held`, which have samples: one for each, in their order."""
    if len(given) != len(held):
        listed = ", ".join(map(printable, held[:10])) + (" …" if len(held) > 10 else "")
        raise DataError(
            f"--class-names gives {len(given)} names, but the samples are of {len(held)} classes ({listed}); "
            "name exactly those, in this order"
        )
    if not all(given) or len(set(given)) < len(given):
        raise DataError(f"--class-names {printable(','.join(given))} leaves a name empty or gives one twice; name every class once")
