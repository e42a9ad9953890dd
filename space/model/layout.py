"""The layout of the network: feature maps are (N, H, W, C), channels last in memory.

Linear layers and norms then act on the last axis without a copy, and a convolution sees the same memory as a channels-last (N, C,
H, W) tensor, for which its kernels are fastest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


def to_convolution(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), sharing memory."""
    return x.permute(0, 3, 1, 2)


def from_convolution(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C), sharing memory."""
    return x.permute(0, 2, 3, 1)


class Convolution(nn.Conv2d):
    """A k×k convolution of (N, H, W, C) with zero padding that keeps height and width."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, inputs) → (N, H, W, outputs)."""
        out = from_convolution(F.conv2d(to_convolution(x), self.weight, padding=self.padding))
        # Added outside: on CPU the convolution's own bias gradient takes longer than its weight gradient.
        return out if self.bias is None else out + self.bias


class Depthwise(nn.Module):
    """A depthwise k×k convolution of (N, H, W, C) with bias and zero padding; k is odd."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        return depthwise(x, self.weight, self.bias)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise convolution of (N, H, W, C) by a (C, 1, k, k) kernel with an odd k, zero padded."""
    # Under autocast the two gradients would need casts of their own.
    trained = weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if trained and x.device.type == "cpu" and weight.shape[-1] == _SPLIT_KERNEL:
        out: Tensor = _SplitDepthwise.apply(x, weight)  # type: ignore[no-untyped-call]
        return out + bias
    out = F.conv2d(to_convolution(x), weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[-1])
    return from_convolution(out)


_SPLIT_KERNEL = 5


class _SplitDepthwise(torch.autograd.Function):
    """A depthwise 5×5 convolution whose weight gradient is taken in two halves of three columns.

    oneDNN's fast kernel for that gradient takes kernels up to 3 columns wide; the 5×5 falls back to one several times
    slower. Columns 0 to 2 see the input two columns further right, columns 2 to 4 two further left.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return from_convolution(F.conv2d(to_convolution(x), weight, padding=2, groups=x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        channels, outer = x.shape[-1], to_convolution(gradient)
        # The gradient of the input is the outer gradient correlated with the kernel turned by half a turn.
        inner = F.conv2d(outer, weight.flip(2, 3), padding=2, groups=channels)
        half = (channels, 1, _SPLIT_KERNEL, 3)
        columns: list[Tensor] = [
            conv2d_weight(  # type: ignore[no-untyped-call]
                to_convolution(F.pad(x, (0, 0, *border))), half, outer, padding=(2, 0), groups=channels
            )
            for border in ((2, 0), (0, 2))
        ]
        return from_convolution(inner), torch.cat([columns[0], columns[1][..., 1:]], dim=-1)


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
