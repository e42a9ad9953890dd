"""Parts that the figures share."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def new_axes(width: float = 8, height: float = 5) -> Axes:
    """The axes of a new figure; width and height in inches."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def with_minus(number: str) -> str:
    """A number as text with a typographic minus sign.

    >>> with_minus("-0.5 [-1, 0]")
    '−0.5 [−1, 0]'
    """
    return number.replace("-", "−")
