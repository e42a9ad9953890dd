"""The numbers of one stage that its cost and its memory depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Number: TypeAlias = Any
"""An int for one spec, or an int64 array for many; a yes or no is 1 or 0."""

Choice: TypeAlias = Callable[[Callable[[Any], int]], Number]
"""A choice made at a stage, of one spec or of many.

Called with a function from the choice's value to an int, it gives that int, or an array with one for every spec. It gives 0 for a
choice that has no effect, such as the downsampler of attention over all tokens.
"""


@dataclass(frozen=True)
class StageInputs:
    """The numbers and choices of one stage, of one spec or of many."""

    name: str
    level: int
    condition: int
    layers: Number
    width: Number
    positions: Number
    heads: Number
    keys: Number
    """Tokens that each query attends to."""
    tokens: Choice
    downsampler: Choice
    kernel: Number
    """Width of the downsampler's convolution; it means nothing for a downsampler without one."""
    similarity: Choice
    position: Choice
    feed_forward: Choice
    hidden: Number
    reparam: Number
    branches: Number
