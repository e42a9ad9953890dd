"""Encodings of positions. RoPE2D: rotary positions of tokens on a grid (Su et al., arXiv 2104.09864, in two dimensions)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from space.choices.position import Position
from space.choices.table import covering

THETA = 10000.0
"""The base of the frequencies."""


def rotations(height: int, width: int, head_width: int, *, stride: int = 1) -> Tensor:
    """Cosine and sine (height · width, head_width / 2, 2) of the angles by which the channel pairs of a head rotate.

    Pair 2j rotates by x·f_j and pair 2j+1 by y·f_j, with f_j = θ^(-4j/d), for j < d/4 of a head width d divisible by 4. Tokens are
    counted row by row. A `stride` above 1 places every token at the centre of a stride × stride cell of the finer grid.
    """
    frequencies = THETA ** (-4.0 * torch.arange(head_width // 4) / head_width)
    offset = (stride - 1) / 2
    y, x = torch.meshgrid(torch.arange(height) * stride + offset, torch.arange(width) * stride + offset, indexing="ij")
    angles = torch.stack([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies], dim=-1).flatten(1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(heads: Tensor, by: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of (..., T, d) by `rotations` (T, d/2, 2); computed in float32 at least."""
    wide = heads if heads.dtype == torch.float64 else heads.float()
    # As complex numbers a rotation is one product, twice as fast on a CPU as on real halves.
    pairs = torch.view_as_complex(wide.reshape(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.view_as_complex(by.to(wide.dtype))).flatten(-2).to(heads.dtype)


POSITION_ROTATIONS: Mapping[Position, Callable[..., Tensor] | None] = covering(Position, {"none": None, "rope2d": rotations})
"""The function that makes the rotations of each choice of `attention.position`, called like `rotations`; None for no rotation."""
