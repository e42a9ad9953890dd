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


def on_one_line(text: pd.DataFrame) -> pd.DataFrame:
    """The cells and column names with single spaces in place of line breaks, which would tear a row of a table."""
    flat = text.map(_flat)
    flat.columns = [_flat(name) for name in text.columns]
    return flat


def _flat(cell: Any) -> Any:
    return " ".join(cell.split()) if isinstance(cell, str) and any(mark in cell for mark in _BREAKS) else cell


_BREAKS = "\n\r\v\f\x85\u2028\u2029"


def latex_grid(text: pd.DataFrame) -> str:
    """A booktabs table; braces go before a row that begins with `[` or `*`, which the row break before it would take.

    >>> print(latex_grid(pd.DataFrame({"variant": ["[new] a_b"]})), end="")
    \\begin{tabular}{l}
    \\toprule
    variant \\\\
    \\midrule
    {}[new] a\\_b \\\\
    \\bottomrule
    \\end{tabular}
    """
    latex = str(on_one_line(text).to_latex(index=False, escape=True))
    return "".join(f"{{}}{line}" if line.lstrip().startswith(("[", "*")) else line for line in latex.splitlines(keepends=True))


def markdown_grid(text: pd.DataFrame) -> str:
    """The lines of a Markdown table, joined without a newline at the end; bars are escaped, line breaks in cells are spaces.

    >>> print(markdown_grid(pd.DataFrame({"trial": ["0"], "reason": ["a|b"]})))
    | trial | reason |
    | --- | --- |
    | 0 | a\\|b |
    """
    text = on_one_line(text)
    head = [[str(name) for name in text.columns], ["---"] * len(text.columns)]
    rows = [[cell.replace("|", "\\|") for cell in line] for line in [*head, *text.to_numpy().tolist()]]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)
