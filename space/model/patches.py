"""Conversion between images and the outermost feature map: patches and their positions (Peebles & Xie, ICCV 2023, section 3.2)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from space.model.kernels import from_convolution, to_convolution


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images (N, C, H, W) → feature map (N, H/p, W/p, C·p·p), the values of a patch in the order (channel, row, column)."""
    if patch == 1:
        return from_convolution(x)
    return rearrange(x, "n c (h i) (w j) -> n h w (c i j)", i=patch, j=patch)


def unpatchify(h: Tensor, patch: int) -> Tensor:
    """Feature map (N, H, W, p·p·C), values in the order (row, column, channel), → images (N, C, H·p, W·p)."""
    if patch == 1:
        return to_convolution(h)
    return rearrange(h, "n h w (i j c) -> n c (h i) (w j)", i=patch, j=patch)


def sincos(grid: int, width: int) -> Tensor:
    """The fixed embedding of patch positions, (grid, grid, C): half the channels for the column, half for the row.

    Each half holds the sines, then the cosines, of position · 10000^(-i / (C/4)) for i < C/4, computed in float64 as in DiT's code.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64).unsqueeze(-1) * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = line.expand(grid, grid, -1), line.unsqueeze(1).expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).float()
