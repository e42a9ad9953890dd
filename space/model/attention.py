"""Attention over all tokens, over downsampled tokens (the paper's contribution), or over downsampled keys and values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from space.model.kernels import attend, linear, normalise_and_rotate, project_qkv
from space.model.layout import Convolution, Depthwise
from space.model.position import rotations
from space.stage import Stage

LOG_SCALE_BOUND = 4.6052
"""Upper bound of the cosine similarity's log scale, as written in the authors' code (not exactly ln 100)."""


class Attention(nn.Module):
    """Multi-head attention on an (N, H, W, C) feature map (U-DiT, section 3).

    `downsampled` filters the tokens, splits them into factor² groups (pixel-unshuffle: group (i, j) holds rows ≡ i
    and columns ≡ j), attends inside each group and weaves the groups together again, so no token and no channel is
    lost. `key-value` keeps every query and attends to keys and values averaged over factor × factor cells of the
    filtered tokens.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.heads = stage.heads
        self.factor = stage.factor or 1
        self.key_value = stage.tokens == "key-value"
        self.downsampler: Convolution | Depthwise | None = None
        if stage.kernel is not None:
            self.downsampler = (
                Convolution(stage.width, stage.width, stage.kernel)
                if stage.downsampler == "conv"
                else Depthwise(stage.width, stage.kernel, shortcut=stage.downsampler == "dwconv-shortcut")
            )
        self.qkv = nn.Linear(stage.width, 3 * stage.width)
        self.out = nn.Linear(stage.width, stage.width)
        self.log_scale: nn.Parameter | None = None
        if stage.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.full((stage.heads, 1, 1), math.log(10)))
        self.query_rotations: Tensor | None
        self.key_rotations: Tensor | None
        self._set_rotations(stage)

    def _set_rotations(self, stage: Stage) -> None:
        queries = keys = None
        if stage.position == "rope2d":
            head_width, coarse = stage.width // stage.heads, stage.resolution // self.factor
            if self.key_value:
                queries = rotations(stage.resolution, stage.resolution, head_width)
                keys = rotations(coarse, coarse, head_width, stride=self.factor)
            else:
                queries = keys = rotations(coarse, coarse, head_width)
        self.register_buffer("query_rotations", queries, persistent=False)
        self.register_buffer("key_rotations", keys, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        filtered = x if self.downsampler is None else self.downsampler(x)
        return self._to_coarse_keys(x, filtered) if self.key_value else self._in_groups(filtered)

    def _in_groups(self, x: Tensor) -> Tensor:
        f, rows = self.factor, x.shape[1]
        groups = rearrange(x, "n (h i) (w j) c -> (n i j) (h w) c", i=f, j=f)
        q, k, v = project_qkv(groups, self.qkv.weight, self.qkv.bias, self.heads, self._scale(), self.query_rotations)
        out = rearrange(self._attend(q, k, v), "g a l d -> g l (a d)")
        # Projected group by group, then woven: what attention keeps for its gradient serves the projection as well.
        projected = linear(out, self.out.weight, self.out.bias)
        return rearrange(projected, "(n i j) (h w) c -> n (h i) (w j) c", i=f, j=f, h=rows // f)

    def _to_coarse_keys(self, x: Tensor, filtered: Tensor) -> Tensor:
        width, f, scale = x.shape[-1], self.factor, self._scale()
        weight, bias = self.qkv.weight, self.qkv.bias
        q = rearrange(F.linear(x, weight[:width], bias[:width]), "n h w (a d) -> n a (h w) d", a=self.heads)
        # Averaged after the projection, as the cost printed in the paper's Table 1 (0.91 GFLOPs) needs; the two commute.
        kv = reduce(F.linear(filtered, weight[width:], bias[width:]), "n (h i) (w j) c -> n h w c", "mean", i=f, j=f)
        k, v = rearrange(kv, "n h w (t a d) -> t n a (h w) d", t=2, a=self.heads).contiguous()
        q, k = (
            normalise_and_rotate(q, scale is not None, self.query_rotations),
            normalise_and_rotate(k, scale is not None, self.key_rotations),
        )
        q = q if scale is None else q * scale.to(q.dtype)
        return linear(rearrange(self._attend(q, k, v), "n a (h w) d -> n h w (a d)", h=x.shape[1]), self.out.weight, self.out.bias)

    def _scale(self) -> Tensor | None:
        """The factor of the cosine similarity (heads, 1, 1)."""
        return None if self.log_scale is None else self.log_scale.clamp(max=LOG_SCALE_BOUND).exp()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(scores) · v for (G, heads, L, d) queries and (G, heads, M, d) keys and values."""
        # The cosine's scale is on the queries already.
        return attend(q, k, v, q.shape[-1] ** -0.5 if self.log_scale is None else 1.0)
