"""Layers on feature maps of the layout (N, H, W, C), with channels last in memory.

In this layout linear layers and norms act on the last axis without a copy. Convolutions see the same memory as a channels-last
(N, C, H, W) tensor, for which torch has its fastest kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from space.model.kernels import depthwise, from_convolution, to_convolution


class Convolution(nn.Conv2d):
    """A k×k convolution of (N, H, W, C) with zero padding that keeps height and width."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, inputs) → (N, H, W, outputs)."""
        out = from_convolution(F.conv2d(to_convolution(x), self.weight, padding=self.padding))
        # The bias is added separately: on a CPU the convolution's own bias gradient takes longer than its weight gradient.
        return out if self.bias is None else out + self.bias


class Depthwise(nn.Module):
    """A depthwise k×k convolution of (N, H, W, C) with bias and zero padding, plus the input with a `shortcut`; k is odd."""

    def __init__(self, channels: int, kernel: int, *, shortcut: bool = False) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        return depthwise(x, plus_identity(self.weight) if self.shortcut else self.weight, self.bias)


def plus_identity(weight: Tensor) -> Tensor:
    """The (C, 1, k, k) kernel plus the identity: it adds the input to the result within the same convolution."""
    return weight + F.pad(weight.new_ones(1, 1, 1, 1), (weight.shape[-1] // 2,) * 4)


class Down(nn.Module):
    """Half the resolution, twice the channels: 3×3 convolution to half the channels, then pixel-unshuffle by 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = Convolution(width, width // 2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H/2, W/2, 2C)."""
        # The order of torch's pixel_unshuffle: channel, then row, then column.
        out: Tensor = self.convolution(x)
        return rearrange(out, "n (h i) (w j) c -> n h w (c i j)", i=2, j=2)


class Up(nn.Module):
    """Twice the resolution, half the channels: 3×3 convolution to twice the channels, then pixel-shuffle by 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = Convolution(width, 2 * width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, 2H, 2W, C/2)."""
        out: Tensor = self.convolution(x)
        return rearrange(out, "n h w (c i j) -> n (h i) (w j) c", i=2, j=2)
