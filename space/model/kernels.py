"""The operators of a transformer block with custom backward passes: fewer passes over memory, and less kept, than autograd's.

Each computes the same function as the plain operators beside it. The plain operators run wherever no gradient is needed, on devices
other than a CPU, and under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from space.model.position import rotate

NORM_EPSILON = 1e-6
UNIT_EPSILON = 1e-12
"""The least length that a vector is divided by, as in F.normalize."""

Maybe: TypeAlias = Tensor | None


def use_custom_backward(x: Tensor, *others: Maybe) -> bool:
    """Whether the custom backward passes apply to these operands."""
    if not torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    # Under autocast the gradients would need additional casts.
    return not torch.is_autocast_enabled("cpu") and any(t is not None and t.requires_grad for t in (x, *others))


def to_convolution(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), sharing memory."""
    return x.permute(0, 3, 1, 2)


def from_convolution(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C), sharing memory."""
    return x.permute(0, 2, 3, 1)


def linear(x: Tensor, weight: Tensor, bias: Maybe = None) -> Tensor:
    """F.linear: (..., C) → (..., D)."""
    if use_custom_backward(x, weight, bias):
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return F.linear(x, weight, bias)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm over the channels of (N, H, W, C), without affine, then · (1 + scale) + shift, each (N, 1, 1, C)."""
    if use_custom_backward(x, shift, scale):
        out: Tensor = _ModulatedNorm.apply(x, shift, scale)  # type: ignore[no-untyped-call]
        return out
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON), 1 + scale)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """A zero-padded depthwise convolution of (N, H, W, C), or of its GELU, by a (C, 1, k, k) kernel with an odd k."""
    if use_custom_backward(x, weight, bias):
        out: Tensor = _Depthwise.apply(x, weight, bias, gelu)  # type: ignore[no-untyped-call]
        return out
    return _depthwise(F.gelu(x) if gelu else x, weight, bias)


def project_qkv(
    tokens: Tensor, weight: Tensor, bias: Tensor, count: int, scale: Maybe = None, rotations: Maybe = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (G, count, L, d) of tokens (G, L, C), projected by a (3C, C) weight in the order q, k, v.

    With a `scale` (count, 1, 1), queries and keys are normalised to length 1 and queries multiplied by it. With `rotations`
    (L, d/2, 2), cosines and sines, the channel pairs of both are rotated.
    """
    if use_custom_backward(tokens, weight, bias, scale):
        heads: tuple[Tensor, Tensor, Tensor] = _Heads.apply(tokens, weight, bias, count, scale, rotations)  # type: ignore[no-untyped-call]
        return heads
    qkv = F.linear(tokens, weight, bias).view(*tokens.shape[:2], 3, count, -1).permute(2, 0, 3, 1, 4)
    # One copy here keeps every pass over queries and keys, forward and backward, free of strides.
    q, k, v = qkv.contiguous()
    q, k = normalise_and_rotate(q, scale is not None, rotations), normalise_and_rotate(k, scale is not None, rotations)
    return (q if scale is None else q * scale.to(q.dtype)), k, v


SHORT = 64
"""With at most this many keys, an explicit softmax(q·kᵀ)·v is 1.3 to 1.6 times as fast as the fused kernel on a CPU."""

CACHED = 1 << 18
"""Attention scores computed at a time, so that they stay in a core's cache and need no large buffer."""


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale · q·kᵀ) · v for (G, heads, L, d) queries and (G, heads, M, d) keys and values."""
    if k.shape[-2] > SHORT or not use_custom_backward(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    out: Tensor = _ShortAttention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
    return out


def normalise_and_rotate(x: Tensor, unit: bool, rotations: Maybe) -> Tensor:
    """Vectors (..., L, d), normalised to length 1 with `unit`, and rotated when there are `rotations`."""
    x = F.normalize(x, dim=-1, eps=UNIT_EPSILON) if unit else x
    return x if rotations is None else rotate(x, rotations)


def _pairs(x: Tensor) -> Tensor:
    """Adjacent pairs of the last axis as complex numbers: (..., d) → (..., d/2)."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def _as_convolution(x: Tensor) -> Tensor:
    """(..., C) as one row of an image (1, C, 1, positions), for which oneDNN's convolutions are fastest."""
    return to_convolution(x.reshape(1, 1, -1, x.shape[-1]))


def _product(x: Tensor, weight: Tensor, bias: Maybe = None) -> Tensor:
    """F.linear as a 1×1 convolution: oneDNN's adds the bias on the way and is up to 1.4 times faster than MKL's product."""
    out = F.conv2d(_as_convolution(x), weight[:, :, None, None], bias)
    return from_convolution(out).reshape(*x.shape[:-1], -1)


def _product_gradients(needed: tuple[bool, ...], gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Maybe, Maybe, Maybe]:
    """Gradients of `_product` for x, weight and bias."""
    outer, kernel = _as_convolution(gradient), weight[:, :, None, None]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        outer, _as_convolution(x), kernel, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (needed[0], needed[1], False)
    )
    return (
        from_convolution(of_x).reshape(x.shape) if needed[0] else None,
        of_weight.view_as(weight) if needed[1] else None,
        # Computed separately: the convolution's own bias gradient takes longer than its weight gradient.
        gradient.flatten(0, -2).sum(0) if needed[2] else None,
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Maybe, Maybe, Maybe]:
        return _product_gradients(ctx.needs_input_grad, gradient, *ctx.saved_tensors)


class _ModulatedNorm(torch.autograd.Function):
    """Keeps the normalised input and one statistic per position: on a CPU the norm is slower than its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, NORM_EPSILON)
        ctx.save_for_backward(normed, rstd, scale)
        return torch.addcmul(shift, normed, 1 + scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Maybe, Maybe, Maybe]:
        normed, rstd, scale = ctx.saved_tensors
        of_x = of_shift = of_scale = None
        if ctx.needs_input_grad[1]:
            of_shift = gradient.sum((1, 2), keepdim=True)
        if ctx.needs_input_grad[2]:
            of_scale = (gradient * normed).sum((1, 2), keepdim=True)
        if ctx.needs_input_grad[0]:
            # Torch's gradient of a norm, for an input that is already normalised: mean 0, deviation 1.
            of_x = torch.ops.aten.native_layer_norm_backward(
                (gradient * (1 + scale)).mul_(rstd),
                normed,
                normed.shape[-1:],
                torch.zeros_like(rstd),
                torch.ones_like(rstd),
                None,
                None,
                [True, False, False],
            )[0]
        return of_x, of_shift, of_scale


def _depthwise(x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    out = F.conv2d(to_convolution(x), weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[-1])
    return from_convolution(out)


_SPLIT_KERNEL = 5


class _Depthwise(torch.autograd.Function):
    """Keeps only its input; a GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        return _depthwise(F.gelu(x) if gelu else x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Maybe, Maybe, Maybe, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 1, 2))
        if ctx.needs_input_grad[1]:
            of_weight = _depthwise_weight_gradient(x, gradient, weight.shape, ctx.gelu)
        if ctx.needs_input_grad[0]:
            # The gradient, correlated with the kernel rotated by 180 degrees.
            of_x = _depthwise(gradient, weight.flip(2, 3), None)
            of_x = torch.ops.aten.gelu_backward(of_x, x) if ctx.gelu else of_x
        return of_x, of_weight, of_bias, None


def _depthwise_weight_gradient(x: Tensor, gradient: Tensor, shape: torch.Size, gelu: bool) -> Tensor:
    """The gradient of a depthwise kernel applied to x or its GELU; for a 5×5 it is computed in two parts of three columns.

    oneDNN's fast kernel supports at most 3 columns; a 5×5 falls back to one that is several times slower.
    Columns 0 to 2 see the input two columns further right, columns 2 to 4 two further left.
    """
    channels, size = shape[0], shape[-1]
    outer = to_convolution(gradient)
    if size != _SPLIT_KERNEL:
        inner = to_convolution(F.gelu(x) if gelu else x)
        whole: Tensor = conv2d_weight(inner, shape, outer, padding=size // 2, groups=channels)  # type: ignore[no-untyped-call]
        return whole
    columns: list[Tensor] = [
        conv2d_weight(to_convolution(shifted), (channels, 1, size, 3), outer, padding=(2, 0), groups=channels)  # type: ignore[no-untyped-call]
        for shifted in _shifted(x, gelu)
    ]
    return torch.cat([columns[0], columns[1][..., 1:]], dim=-1)


def _shifted(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """x, or its GELU, (N, H, W, C) with two columns of zeros to its left, and with two to its right: (N, H, W + 2, C) each.

    Both are views of the same memory, two positions apart: the two zeros after a row are those before the next row.
    """
    n, height, width, channels = x.shape
    memory = x.new_empty(n * height * (width + 2) + 2, channels)
    left, right = (memory[start : len(memory) - 2 + start].view(n, height, width + 2, channels) for start in (0, 2))
    left[:, :, :2] = 0
    memory[-2:] = 0
    left[:, :, 2:] = F.gelu(x) if gelu else x
    return left, right


class _Heads(torch.autograd.Function):
    """Keeps its tokens, its outputs and one factor per query and key, which are enough for the gradients.

    Queries and keys are changed in place, in the layout of the projection's output, (G, L, 3, heads, d).
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, count: int, scale: Maybe, rotations: Maybe
    ) -> tuple[Tensor, ...]:
        qkv = _product(tokens, weight, bias).view(*tokens.shape[:2], 3, count, -1)
        qk, factors = qkv[:, :, :2], None
        if scale is not None:
            factors = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min_(UNIT_EPSILON).reciprocal_()
            factors[:, :, 0] *= scale.view(count, 1)
            qk *= factors
        if rotations is not None:
            _pairs(qk).mul_(_rotations_of_all(rotations, qk))
        ctx.save_for_backward(tokens, weight, qkv, scale, factors, rotations)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Maybe, ...]:
        tokens, weight, qkv, scale, factors, rotations = ctx.saved_tensors
        outer = torch.empty_like(qkv)
        for index, gradient in enumerate(gradients):
            outer[:, :, index] = gradient.transpose(1, 2)
        qk, of_qk, of_scale = qkv[:, :, :2], outer[:, :, :2], None
        if scale is not None:
            # For a normalised vector, only the gradient orthogonal to it counts; the part along it belongs to the scale.
            along = (of_qk * qk).sum(-1, keepdim=True)
            of_scale = (along[:, :, 0].sum((0, 1)) / scale.view(-1, 1)).view_as(scale)
            along *= factors
            along[:, :, 0] /= scale.view(-1, 1).square()
            of_qk.mul_(factors).addcmul_(qk, along, value=-1)
        if rotations is not None:
            _pairs(of_qk).mul_(_rotations_of_all(rotations, qk).conj_physical_())
        return *_product_gradients(ctx.needs_input_grad, outer.flatten(2), tokens, weight), None, of_scale, None


def _rotations_of_all(rotations: Tensor, qk: Tensor) -> Tensor:
    """Rotations (L, d/2, 2) as complex numbers (L, 2, heads, d/2), repeated in memory so that inner loops are long."""
    return torch.view_as_complex(rotations.to(qk.dtype))[:, None, None].repeat(1, *qk.shape[2:4], 1)


class _ShortAttention(torch.autograd.Function):
    """Keeps queries, keys, values and attention weights; computes one head of a few groups at a time.

    One head of tokens in the layout (G, L, heads, d) is a batch of matrices that a product takes without a copy.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        # In memory (G, L, heads, d), the layout of the fused kernel's output and of the projection's input.
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        weights = q.new_empty(q.shape[1], q.shape[0], q.shape[2], k.shape[2]).transpose(0, 1)
        for some_q, some_k, some_v, some_out, some_weights in _by_head(q, k, v, out, weights):
            torch.softmax(torch.baddbmm(q.new_empty(()), some_q, some_k.mT, beta=0, alpha=scale), -1, out=some_weights)
            some_out.copy_(_narrow_product(some_weights, some_v))
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Maybe, ...]:
        kept = ctx.saved_tensors
        gradients = [torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2) for t in kept[:3]]
        for outer, q, k, v, weights, of_q, of_k, of_v in _by_head(gradient, *kept, *gradients):
            of_weights = torch.bmm(outer, v.mT)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            of_q.copy_(_narrow_product(of_scores, k))
            of_k.copy_(_narrow_product(of_scores.mT, q))
            of_v.copy_(_narrow_product(weights.mT, outer))
        return *gradients, None


NARROW = 16
"""For heads narrower than this, the transposed product is up to six times as fast."""


def _narrow_product(weights: Tensor, x: Tensor) -> Tensor:
    """(B, L, M) · (B, M, d) → (B, L, d)."""
    return torch.bmm(x.mT, weights.mT).mT if x.shape[-1] < NARROW else torch.bmm(weights, x)


def _by_head(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Slices (some groups, L, d) of tensors (G, heads, L, d), head by head; the first tensor holds the queries."""
    _, count, tokens, _ = tensors[0].shape
    groups = max(1, CACHED // (tokens * SHORT))
    for head in range(count):
        yield from zip(*(torch.split(t[:, head], groups) for t in tensors), strict=True)
