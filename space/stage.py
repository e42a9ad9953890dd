"""A stage of a spec with every choice resolved: the input of the model's builder and of the cost formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field

from space.choices.attention import Similarity, Tokens
from space.choices.downsampler import Downsampler
from space.choices.feed_forward import FeedForwardKind
from space.choices.position import Position

T = TypeVar("T")
PerStage: TypeAlias = T | tuple[T, ...]
"""One value for all stages, or one per stage in the order of `ModelSpec.depths`."""

Modulation = Literal["layer", "level"]
Factor = Literal[1, 2, 4]
Kernel = Literal[1, 3, 5, 7]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]

TIME_SINUSOIDS = 256
"""Width of the timestep's sinusoidal embedding, in every model of both papers."""


@dataclass(frozen=True)
class Stage:
    """One stage. Choices that have no effect hold None or False, so equal architectures give equal stages."""

    name: str
    level: int
    resolution: int
    """Height and width of the stage's feature map."""
    width: int
    condition: int
    """The level whose condition embedding modulates the stage; its width is the stage's width."""
    layers: int
    """Number of transformer blocks."""
    modulation: Modulation
    heads: int
    tokens: Tokens
    factor: int | None
    downsampler: Downsampler | None
    kernel: int | None
    similarity: Similarity
    position: Position
    feed_forward: FeedForwardKind
    hidden: int
    reparam: bool
    branches: bool
    """Whether training applies the re-parameterised branches one by one."""


@dataclass(frozen=True)
class StagePlace:
    """The position of a stage in a U."""

    name: str
    level: int
    condition: int
    decoder: bool


def stage_place(index: int, stages: int) -> StagePlace:
    """The position of a stage: encoder from the outside in, bottleneck, decoder from the inside out.

    Widths follow the condition's level: C, 2C, 4C, 2C, 2C for five stages. The outermost decoder stage keeps the width of the
    level below (U-DiT, Figure 3). A single stage is the trunk of an isotropic model.
    """
    bottleneck = stages // 2
    level = index if index <= bottleneck else stages - 1 - index
    decoder = index > bottleneck
    if index == bottleneck:
        name = "bottleneck" if stages > 1 else "trunk"
    else:
        name = f"{'decoder' if decoder else 'encoder'}-{level + 1}"
    return StagePlace(name, level, max(level, 1) if decoder else level, decoder)


def at_stage(value: PerStage[T], index: int) -> T:
    """The value at a stage."""
    return value[index] if isinstance(value, tuple) else value
