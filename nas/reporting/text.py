"""Numbers and facts as text."""

from __future__ import annotations

import math
import textwrap

COLUMNS, LABEL = 100, 13
"""Width of an estimate, and of the labels to its left."""


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `12 min`, `3.4 h`, `2.5 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def percent(share: float) -> str:
    """A share with one digit after the point, or as many as its first two digits need: `34.1%`, `0.0013%`."""
    digits = 1 if share >= 0.01 or share <= 0 else 1 - math.floor(math.log10(100 * share))
    return f"{share:.{digits}%}"


def line(label: str, text: str) -> str:
    """A fact of an estimate behind its label, wrapped."""
    # A long word, such as a path in the question, is left whole.
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=f"{label:{LABEL}s}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
