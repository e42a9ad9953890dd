"""The feed-forward of a block: two projections, and what is between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from space.choices.counter import PartCounter
from space.choices.inputs import Number, StageInputs
from space.choices.table import covering

FeedForwardKind = Literal["mlp", "conv"]

FEED_FORWARD_KERNEL = 5
"""Width of the depthwise convolution of a convolutional feed-forward."""


@dataclass(frozen=True)
class FeedForwardChoice:
    """One feed-forward; `space.model.feed_forward.feed_forward` builds it."""

    reparam: bool = False
    """Whether it can be trained re-parameterised."""
    count: Callable[[PartCounter, StageInputs, Number], None] | None = None
    """Counts the operators between the projections of a number of blocks; None where none counts."""
    kept: int = 2
    """Feature maps of the hidden width that it keeps for the backward pass."""


def _depthwise(counter: PartCounter, stage: StageInputs, times: Number) -> None:
    counter.convolution(1, stage.hidden, stage.positions, FEED_FORWARD_KERNEL, times=times)


FEED_FORWARDS = covering(FeedForwardKind, {"mlp": FeedForwardChoice(), "conv": FeedForwardChoice(reparam=True, count=_depthwise)})
