"""The encoding of positions inside attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from space.choices.counter import PartCounter
from space.choices.inputs import Number, StageInputs
from space.choices.table import covering

Position = Literal["none", "rope2d"]


@dataclass(frozen=True)
class PositionChoice:
    """One encoding; `space.model.position.POSITION_ROTATIONS` says how it is built."""

    title: str = ""
    """Its name in messages."""
    head_unit: int = 1
    """The width of a head must be a multiple of it."""
    count: Callable[[PartCounter, StageInputs, Number, Number], None] | None = None
    """Counts the operators that encode a number of queries and keys in each of a number of blocks; None where none counts."""


def _rotation(counter: PartCounter, stage: StageInputs, encoded: Number, times: Number) -> None:
    """One complex product for every two channels."""
    counter.elementwise(encoded * (stage.width * times) // 2)


POSITIONS = covering(Position, {"none": PositionChoice(), "rope2d": PositionChoice("RoPE2D", head_unit=4, count=_rotation)})
