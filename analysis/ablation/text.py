"""An ablation's tables as Markdown, LaTeX or CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.ablation.tables import COSTS, AblationTable
from analysis.markup import check_format, drop_empty_columns, is_missing, latex_grid, markdown_grid, on_one_line
from nas.study.metrics import SCORES

_MARKS = {"better": " *", "worse": " *"}
"""The mark of a difference with a verdict; the others have none."""

_DIGITS = {**dict.fromkeys(COSTS, 4), "steps/s": 2, "channels": 0, "FFN ratio": 2}
_P_COLUMNS = ("p", "p Holm", "p t Holm", "p rule", "p rule Holm", "step p rule Holm")

_CSV_ONLY = ("rule", "raw_verdict", "exaggeration", "step exaggeration")
"""Columns that the notes tell of, where a table is text."""


def render_tables(tables: Sequence[AblationTable], form: str) -> str:
    """Tables as text, one after the other.

    Args:
        tables: The result of `ablation_tables`.
        form: `md`, `latex` (booktabs) or `csv`. CSV is one table with every digit, whose first column is the title. In the
            others a difference is shown with its interval, followed by * where the verdict is better or worse, and the notes
            are below the table.

    Raises:
        ToolkitError: The format is another one.
    """
    check_format(form)
    if form == "csv":
        frames = [table.frame.assign(table=table.title) for table in tables]
        whole = on_one_line(pd.concat(frames, ignore_index=True))
        return str(whole[["table", *(name for name in whole.columns if name != "table")]].to_csv(index=False))
    return "\n".join(_markdown(table) if form == "md" else _latex(table) for table in tables)


def display(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's frame as text: means with their spread, differences with their interval, digits as the spread warrants."""
    text: dict[str, list[str]] = {"variant": [str(name) for name in frame["variant"]]}
    left = {str(name): frame[name] for name in frame.columns if name not in ("variant", *_CSV_ONLY)}
    metric = str(frame.columns[1])
    if "sd" in left:
        digits = _digits(left["sd"])
        text[metric] = [_with(mean, sd, digits, " ± ") for mean, sd in zip(left.pop(metric), left.pop("sd"), strict=True)]
    for name, low, high, verdict in _INTERVALS:
        if name in left and low in left:
            spread = left[high] - left[low]
            digits = 2 if name == "share" else _digits(spread / 4)
            claims = left.get(verdict, pd.Series([""] * len(frame)))
            columns = zip(left.pop(name), left.pop(low), left.pop(high), claims, strict=True)
            text[f"{name} [95 %]"] = [_interval(value, below, above, digits, claim) for value, below, above, claim in columns]
    if "planned" in left:
        both = zip(left["pairs"], left.pop("planned"), strict=True)
        left["pairs"] = pd.Series([f"{pairs} of {planned}" if pairs < planned else pairs for pairs, planned in both])
    for name, column in left.items():
        text[name] = [_cell(value, name) for value in column]
    order = ["variant", *(name for name in _ORDER if name in text), *(name for name in text if name not in (*_ORDER, "variant"))]
    return drop_empty_columns(pd.DataFrame(text)[order])


_INTERVALS = (
    ("difference", "low", "high", "verdict"),
    ("step", "step low", "step high", "step verdict"),
    ("raw", "raw_low", "raw_high", ""),
    ("matched", "matched_low", "matched_high", "verdict"),
    ("share", "share_low", "share_high", ""),
    ("value", "low", "high", ""),
)
"""Columns that are shown as one: a value, its interval, and the verdict on it."""

_ORDER = (*SCORES, "n", "pairs", "difference [95 %]")


def _digits(spread: pd.Series) -> int:
    """The decimals that show two digits of the median positive spread; four where there is none."""
    known = [value for value in spread if value == value and value > 0]
    return min(8, max(0, 1 - math.floor(math.log10(sorted(known)[len(known) // 2])))) if known else 4


def _with(mean: float, sd: float, digits: int, between: str) -> str:
    if mean != mean:
        return ""
    return f"{mean:.{digits}f}" + (f"{between}{sd:.{digits}f}" if sd == sd else "")


def _interval(value: float, low: float, high: float, digits: int, claim: Any) -> str:
    if value != value:
        return ""
    mark = _MARKS.get(str(claim), "")
    bounds = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if low == low else ""
    return f"{value:+.{digits}f}{bounds}{mark}"


def _cell(value: Any, name: str) -> str:
    if is_missing(value):
        return ""
    if name in _P_COLUMNS:
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    if name == "steps":
        return f"{value:.0f}"
    if name == "share":
        return f"{value:.0%}"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and name in ("n", "pairs") else f"{value:.{_DIGITS.get(name, 4)}f}"
    return str(value)


_SECOND = ("train GFLOPs", "params (M)", "channels", "FFN ratio", "steps/s", "GFLOPs printed")
"""Costs go to a second table, so that each table fits a page, and so do all printed scores but the first."""


def parts(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """A table's frame as text, in one part or two: results with the first printed score, and costs with the other scores.

    Uncorrected p-values are in the CSV only, and so are numbers of pairs where all equal n.
    """
    text = display(frame)
    if "GFLOPs" not in text:
        return [text]
    printed = [str(name) for name in text if "printed" in str(name) and name not in _SECOND]
    second = [name for name in text if name in _SECOND] + [name for name in printed if name != _main_printed(printed)]
    whole = (frame["pairs"] == frame["n"]) & (frame["pairs"] == frame["planned"])
    left_out = {"p", "p rule"} | ({"pairs"} if whole[1:].all() else set())
    first = [name for name in text if name not in second and name not in left_out]
    first.insert(1, first.pop(first.index("GFLOPs")))
    return [text[first], text[["variant", *second]]]


def narrow(texts: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The same parts, with a ladder's steps split off, as a page is narrower than a screen."""
    split: list[pd.DataFrame] = []
    for text in texts:
        steps = [name for name in text if str(name).startswith("step ")]
        split += [text.drop(columns=steps), text[["variant", *steps]]] if steps else [text]
    return split


def _main_printed(names: Sequence[str]) -> str | None:
    return next((name for name in names if name.startswith("FID")), None)


def _markdown(table: AblationTable) -> str:
    grids = "\n\n".join(markdown_grid(text) for text in parts(table.frame))
    title, *notes = (" ".join(text.split()) for text in (table.title, *table.notes))
    return "\n".join([f"**{title}**", "", grids, "", *(f"{note}  " for note in notes), ""])


def _latex(table: AblationTable) -> str:
    """A table environment with the notes below the table; it needs the packages booktabs and graphicx."""
    lines = [r"\begin{table}  % \usepackage{booktabs,graphicx}", r"\centering", f"\\caption{{{_escaped(table.title)}}}"]
    for text in narrow(parts(table.frame)):
        body = _symbols(latex_grid(text)).rstrip()
        lines += [r"\resizebox{\linewidth}{!}{%", f"{body}}}", r"\par\smallskip"]
    # A note that begins with a bracket would be the argument of the line break before it.
    notes = r"\\{} ".join(_escaped(note) for note in table.notes)
    return "\n".join([*lines, f"{{\\scriptsize {notes}\\par}}", r"\end{table}", ""])


def _escaped(text: str) -> str:
    escaped = re.sub(r"[%&#_$^~\\{}]", lambda match: _SPECIAL.get(match[0], f"\\{match[0]}"), " ".join(text.split()))
    return _symbols(escaped)


_SPECIAL = {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}


def _symbols(text: str) -> str:
    """The text with commands for the characters that LaTeX's default fonts lack."""
    for symbol, command in (
        ("±", r"$\pm$"),
        ("†", r"\textsuperscript{\textdagger}"),
        ("×", r"$\times$"),
        ("<", r"$<$"),
        ("α", r"$\alpha$"),
    ):
        text = text.replace(symbol, command)
    return text
