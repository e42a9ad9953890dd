"""Frames of text as Markdown, and the formats that tables are written in."""

from __future__ import annotations

from typing import Any

import pandas as pd

from space.errors import ToolkitError

FORMATS = ("md", "latex", "csv")


def check_format(form: str) -> None:
    """Check that a table can be written as `form`.

    Raises:
        ToolkitError: The format is none of `FORMATS`.
    """
    if form not in FORMATS:
        raise ToolkitError(f"no table format '{form}'; known: {', '.join(FORMATS)}")


def is_missing(value: Any) -> bool:
    """Whether a cell is None or NaN, which is written as an empty cell."""
    return value is None or value != value


def drop_empty_columns(text: pd.DataFrame) -> pd.DataFrame:
    """The columns that have any text; all of them where there are no rows."""
    return text.loc[:, (text != "").any()] if len(text) else text


def markdown_grid(text: pd.DataFrame) -> str:
    """The lines of a Markdown table, joined without a newline at the end; bars within cells are escaped.

    >>> print(markdown_grid(pd.DataFrame({"trial": ["0"], "reason": ["a|b"]})))
    | trial | reason |
    | --- | --- |
    | 0 | a\\|b |
    """
    head = [[str(name) for name in text.columns], ["---"] * len(text.columns)]
    rows = [[cell.replace("|", "\\|") for cell in line] for line in [*head, *text.to_numpy().tolist()]]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)
