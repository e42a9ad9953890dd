"""Checks of the frames that users pass in; each mistake is one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from space.document import nearest
from space.errors import ToolkitError


def require_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Check that `frame` is a DataFrame with these columns.

    Raises:
        ToolkitError: It is something else, lacks a column, or has two of one name.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ToolkitError(
            f"this takes a pandas DataFrame, but got {type(frame).__name__}; pass a tidy frame such as "
            "analysis.load(run).reports or analysis.load(run).ablation.rows('')"
        )
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        names = "', '".join(missing)
        raise ToolkitError(f"the frame has no column '{names}'{nearest(missing[0], [str(name) for name in frame.columns])}")
    twice = next((name for name in columns if list(frame.columns).count(name) > 1), None)
    if twice is not None:
        raise ToolkitError(f"the frame has two columns '{twice}'; rename or drop one of them")


def require_seeds(frame: pd.DataFrame) -> None:
    """Check that the column `seed` has an order, by which values are paired.

    Raises:
        ToolkitError: Its seeds are of types that have no common order, such as 0 and "1".
    """
    seeds = frame["seed"].dropna().unique().tolist()
    try:
        sorted(seeds)
    except TypeError:
        kinds = {type(seed): seed for seed in reversed(seeds)}
        named = ", ".join(f"{seed!r} ({kind.__name__})" for kind, seed in kinds.items())
        raise ToolkitError(
            f"column 'seed' holds seeds of several types, such as {named}, which make no pairs; convert the column to one type"
        ) from None


def require_table(table: pd.DataFrame, columns: Sequence[str], maker: str) -> None:
    """Check that `table` has the columns of what the function `maker` returns.

    Raises:
        ToolkitError: It is no DataFrame, or lacks columns.
    """
    if not isinstance(table, pd.DataFrame):
        raise ToolkitError(f"got {type(table).__name__} instead of a table; give what {maker} returned")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ToolkitError(f"the table has no column {', '.join(missing)}; give what {maker} returned")


def numeric_column(frame: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column as floats, with NaN where nothing was measured.

    Raises:
        ToolkitError: It holds something other than numbers.
    """
    try:
        # numpy would read numbers from text, and drop imaginary parts.
        if np.iscomplexobj(frame[name]):
            raise TypeError
        if not is_numeric_dtype(frame[name]) and any(isinstance(value, str) for value in frame[name]):
            raise TypeError
        return pd.Series(frame[name].to_numpy(dtype=np.float64, na_value=np.nan), index=frame.index)
    except (TypeError, ValueError):
        raise ToolkitError(
            f"column '{name}' does not hold numbers only; correct those rows, and leave a missing value empty (NaN)"
        ) from None
