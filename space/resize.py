"""Resized specs: the same topology with other numbers of channels, heads and blocks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from space.errors import SpecError
from space.frozen import Frozen
from space.spec import ModelSpec

_REACH = 64
"""Widths at most this far from the scaled one are tried, nearest first."""

Ratio = Annotated[float, Field(gt=0, le=16)]


class Scale(Frozen):
    """The factors of channels and of blocks; heads follow the channels, so the width of a head stays about the same."""

    channels: Ratio = 1.0
    depths: Ratio = 1.0


def scaled(spec: ModelSpec, scale: Scale, input_size: int | None = None) -> ModelSpec:
    """The spec with channels, heads and depths multiplied and rounded, each at least one.

    Channels are the number nearest to the scaled one that can be built with the scaled heads.

    Args:
        spec: The spec to resize.
        scale: The factors.
        input_size: Another height and width of the input; None keeps the spec's.

    Raises:
        SpecError: When no width within 64 channels of the scaled one can be built.
    """
    heads = _each(spec.heads, scale.channels)
    depths = _each(spec.depths, scale.depths)
    wanted = spec.channels * scale.channels
    size = {} if input_size is None else {"input_size": input_size}
    problem: SpecError | None = None
    for channels in sorted(range(1, round(wanted) + _REACH), key=lambda width: (abs(width - wanted), width)):
        if abs(channels - wanted) > _REACH:
            break
        try:
            return spec.replace({"channels": channels, "heads": heads, "depths": depths, **size})
        except SpecError as error:
            problem = problem or error
    raise SpecError(f"no width near {wanted:g} channels can be built: {problem}")


def _each(value: int | tuple[int, ...], ratio: float) -> int | tuple[int, ...]:
    if isinstance(value, tuple):
        return tuple(max(1, round(count * ratio)) for count in value)
    return max(1, round(value * ratio))
