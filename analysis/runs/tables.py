"""Tables of a run, as text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.runs.frames import RunFrames
from space.errors import ToolkitError

_ORDER = ["COMPLETE", "PRUNED", "RUNNING", "FAILED"]
FORMATS = ("md", "latex", "csv")


def ranking_table(run: RunFrames) -> pd.DataFrame:
    """Every trial, one row: complete ones by loss, then the others by how far they came.

    `val_loss` is the loss at full budget of a COMPLETE trial; for the others it is missing, and `last` holds the loss
    at the last rung they reached, which compares only with the same rung. FLOPs, parameters, speed and memory stand
    together.
    """
    trials = run.trials
    order = trials["state"].map(_ORDER.index)
    ranked = trials.assign(_order=order).sort_values(
        ["_order", "val_loss", "rung", "last_val_loss"], ascending=[True, True, False, True]
    )
    complete = ranked["state"] == "COMPLETE"
    return pd.DataFrame(
        {
            "trial": ranked["trial"],
            "state": ranked["state"],
            "val_loss": ranked["val_loss"],
            "last": ranked["last_val_loss"].where(~complete),
            "rung": ranked["rung"],
            "GFLOPs": ranked["gflops"],
            "train GFLOPs": ranked["train_gflops"],
            "params (M)": ranked["params_m"],
            "images/s": ranked["images_per_s"],
            "memory (MiB)": ranked["peak_memory_mib"],
            "reason": ranked["reason"],
        }
    ).reset_index(drop=True)


def render(table: pd.DataFrame, form: str) -> str:
    """A table as `md`, `latex` (booktabs) or `csv`; raises ToolkitError for another form. CSV keeps every digit."""
    if form == "csv":
        return str(table.to_csv(index=False))
    text = cells(table)
    if form == "latex":
        return str(text.to_latex(index=False, escape=True))
    if form != "md":
        raise ToolkitError(f"no table format '{form}'; known: {', '.join(FORMATS)}")
    lines = [text.columns.tolist(), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


_DIGITS = {"val_loss": 4, "last": 4, "GFLOPs": 4, "gflops": 4, "train GFLOPs": 4, "params (M)": 3, "images/s": 0, "memory (MiB)": 0}


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table as text with sensible digits; missing values are empty, and a column of nothing but them is left out."""
    text = pd.DataFrame({name: [_cell(value, _DIGITS.get(str(name))) for value in column] for name, column in table.items()})
    return text.loc[:, (text != "").any()] if len(text) else text


def _cell(value: Any, digits: int | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.{digits}f}" if digits is not None else str(value)
