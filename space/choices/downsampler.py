"""The filter that tokens pass before they are split into groups, or averaged, by attention over downsampled tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from space.choices.counter import PartCounter
from space.choices.inputs import Number, StageInputs
from space.choices.table import covering

Downsampler = Literal["pixel-shuffle", "dwconv", "dwconv-shortcut", "conv"]


@dataclass(frozen=True)
class DownsamplerChoice:
    """One downsampler; `space.model.attention.DOWNSAMPLER_MODULES` says how it is built."""

    filters: bool = True
    """Whether it changes the tokens at all, with filters of width `attention.kernel`."""
    count: Callable[[PartCounter, StageInputs, Number], None] | None = None
    """Counts the operators of a number of filters; None where none counts."""
    kept: int = 1
    """Feature maps as wide as the stage that it keeps for the backward pass."""


def _depthwise(counter: PartCounter, stage: StageInputs, times: Number) -> None:
    counter.convolution(1, stage.width, stage.positions, stage.kernel, times=times)


def _ordinary(counter: PartCounter, stage: StageInputs, times: Number) -> None:
    counter.convolution(stage.width, stage.width, stage.positions, stage.kernel, times=times)


DOWNSAMPLERS = covering(
    Downsampler,
    {
        "pixel-shuffle": DownsamplerChoice(filters=False, kept=0),
        "dwconv": DownsamplerChoice(count=_depthwise),
        "dwconv-shortcut": DownsamplerChoice(count=_depthwise),
        "conv": DownsamplerChoice(count=_ordinary),
    },
)
