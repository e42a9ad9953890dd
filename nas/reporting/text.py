"""Formats durations, amounts of compute, shares and labelled facts as text."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from space.amounts import PREFIXES

if TYPE_CHECKING:
    # The command line imports this module for the formats alone.
    from nas.study.budget import Unit

COLUMNS, LABEL = 100, 13
"""The width of an estimate, and of its column of labels, in characters."""


def duration(seconds: float) -> str:
    """A duration in a fitting unit: `40 s`, `12 min`, `3.4 h`, `2.5 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def compute(macs: float, digits: int = 4) -> str:
    """Multiply-accumulates in the unit that fits their size: `28.5 MFLOPs`, `1.5 TFLOPs`."""
    unit, factor = unit_of(macs)
    return f"{macs / factor:.{digits}g} {unit}"


def amount(unit: Unit, of: float) -> str:
    """An amount of training in the unit of a budget: `1.5 TFLOPs`, `4,000 steps`, `64,000 images`."""
    return compute(of) if unit == "compute" else f"{of:,.0f} {unit}"


def unit_of(macs: float) -> tuple[str, int]:
    """The unit that fits an amount of compute, and its multiply-accumulates: `TFLOPs`, 10^12."""
    fitting = [prefix for prefix, factor in PREFIXES.items() if macs >= factor]
    prefix = fitting[-1] if fitting else "M"
    return f"{prefix}FLOPs", PREFIXES[prefix]


def percent(share: float) -> str:
    """A share as a percentage with one decimal, or below 1% with two significant digits: `34.1%`, `0.0013%`."""
    digits = 1 if share >= 0.01 or share <= 0 else 1 - math.floor(math.log10(100 * share))
    return f"{share:.{digits}%}"


def line(label: str, text: str) -> str:
    """A fact of an estimate after its label, wrapped to the width."""
    # A long word, such as a path, stays whole.
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=f"{label:{LABEL}s}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
