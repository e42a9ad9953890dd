"""The feed-forward of a transformer block: an MLP, or a convolutional one that can be trained re-parameterised."""

from __future__ import annotations

from typing import NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from space.choices.feed_forward import FEED_FORWARD_KERNEL
from space.model.kernels import depthwise, linear
from space.model.layout import Depthwise
from space.stage import Stage


class Folded(NamedTuple):
    """The weights that a convolutional feed-forward applies."""

    w_in: Tensor
    b_in: Tensor
    w_depthwise: Tensor
    b_depthwise: Tensor
    w_out: Tensor
    b_out: Tensor


class MLP(nn.Module):
    """Linear → GELU (tanh form) → Linear on the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, hidden)
        self.project_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        into, out = self.project_in, self.project_out
        return linear(F.gelu(linear(x, into.weight, into.bias), approximate="tanh"), out.weight, out.bias)


class ConvFeedForward(nn.Module):
    """Linear → GELU (erf form) → depthwise 5×5 → Linear (U-DiT, section 4); subclasses provide the weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        w = self.folded()
        hidden = depthwise(linear(x, w.w_in, w.b_in), w.w_depthwise, w.b_depthwise, gelu=True)
        return linear(hidden, w.w_out, w.b_out)

    def folded(self) -> Folded:
        """The weights to apply."""
        raise NotImplementedError


class PlainConvFeedForward(ConvFeedForward):
    """The convolutional feed-forward that has its weights as parameters."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, hidden)
        self.depthwise = Depthwise(hidden, FEED_FORWARD_KERNEL)
        self.project_out = nn.Linear(hidden, width)

    def folded(self) -> Folded:
        """The parameters."""
        into, out, middle = self.project_in, self.project_out, self.depthwise
        return Folded(into.weight, into.bias, middle.weight, middle.bias, out.weight, out.bias)


class ReparamConvFeedForward(ConvFeedForward):
    """The convolutional feed-forward trained with more parameters for the same function (U-DiT, section 4).

    Each projection is two stacked ones with hidden/2 channels between, and the depthwise convolution is 5×5 + 3×3 + 1×1 + identity.
    All of that is linear. Every step therefore computes the weights of the plain form from these parameters, with gradients, and
    applies only them: the function and its gradients are those of the branches, and the cost per sample is that of the plain form.
    With `branches`, the branches are applied one by one, as the authors train them.
    """

    def __init__(self, width: int, hidden: int, branches: bool = False) -> None:
        super().__init__()
        middle = hidden // 2
        self.branches = branches
        self.project_in = Stacked(width, middle, hidden)
        self.depthwise = nn.ModuleDict({f"k{kernel}": Depthwise(hidden, kernel) for kernel in (FEED_FORWARD_KERNEL, 3, 1)})
        self.project_out = Stacked(hidden, middle, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        if not self.branches:
            return super().forward(x)
        out = hidden = F.gelu(self.project_in(x))
        for branch in self._branches():
            out = out + branch(hidden)
        projected: Tensor = self.project_out(out)
        return projected

    def folded(self) -> Folded:
        """The weights of the plain form, differentiable in the training parameters."""
        branches = self._branches()
        # The identity is one more 1×1 kernel, of ones and without bias.
        kernel = _centred(branches[0].weight.new_ones(1, 1, 1, 1))
        for branch in branches:
            kernel = kernel + _centred(branch.weight)
        bias = torch.stack([branch.bias for branch in branches]).sum(0)
        return Folded(*self.project_in.product(), kernel, bias, *self.project_out.product())

    def _branches(self) -> list[Depthwise]:
        """The depthwise kernels: 5×5, 3×3 and 1×1."""
        return [branch for branch in self.depthwise.values() if isinstance(branch, Depthwise)]

    def plain(self) -> PlainConvFeedForward:
        """A plain feed-forward that computes the same function."""
        folded = self.folded()
        plain = PlainConvFeedForward(folded.w_in.shape[1], folded.w_in.shape[0]).to(folded.w_in)
        for parameter, value in zip(plain.folded(), folded, strict=True):
            parameter.data.copy_(value.detach())
        return plain


def _centred(kernel: Tensor) -> Tensor:
    """A (C, 1, k, k) kernel padded with zeros to 5×5."""
    return F.pad(kernel, ((FEED_FORWARD_KERNEL - kernel.shape[-1]) // 2,) * 4)


class Stacked(nn.Module):
    """Two linear layers with nothing between them."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, middle)
        self.second = nn.Linear(middle, outputs)

    def product(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the single linear layer that computes the same function."""
        weight = linear(self.second.weight, self.first.weight.t())
        return weight, F.linear(self.first.bias, self.second.weight, self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs), one after the other."""
        return linear(linear(x, self.first.weight, self.first.bias), self.second.weight, self.second.bias)


def feed_forward(stage: Stage) -> nn.Module:
    """The feed-forward of a stage, in the form that is trained."""
    match stage.feed_forward:
        case "mlp":
            return MLP(stage.width, stage.hidden)
        case "conv" if stage.reparam:
            return ReparamConvFeedForward(stage.width, stage.hidden, stage.branches)
        case "conv":
            return PlainConvFeedForward(stage.width, stage.hidden)
        case _:
            assert_never(stage.feed_forward)
