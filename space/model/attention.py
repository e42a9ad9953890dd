"""Attention over all tokens, over downsampled tokens (the paper's contribution), or over downsampled keys and values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from space.model.layout import Convolution, Depthwise
from space.model.position import rotate, rotations
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
        self.shortcut = stage.downsampler == "dwconv-shortcut"
        self.downsampler: Convolution | Depthwise | None = None
        if stage.kernel is not None:
            ordinary = stage.downsampler == "conv"
            self.downsampler = (
                Convolution(stage.width, stage.width, stage.kernel) if ordinary else Depthwise(stage.width, stage.kernel)
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
        n, rows, _, width = x.shape
        filtered = self._filter(x)
        if self.key_value:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x, weight[:width], bias[:width])
            # Averaged after the projection, as the cost printed in the paper's Table 1 (0.91 GFLOPs) needs; the two commute.
            kv = reduce(
                F.linear(filtered, weight[width:], bias[width:]), "n (h i) (w j) c -> n h w c", "mean", i=self.factor, j=self.factor
            )
            q = rearrange(q, "n h w (a d) -> n a (h w) d", a=self.heads)
            k, v = rearrange(kv, "n h w (t a d) -> t n a (h w) d", t=2, a=self.heads).contiguous()
            out = rearrange(self._attend(q, k, v), "n a (h w) d -> n h w (a d)", h=rows)
        else:
            f = self.factor
            groups = rearrange(filtered, "n (h i) (w j) c -> (n i j) (h w) c", i=f, j=f)
            # One copy here keeps every pass over queries and keys, forward and backward, free of strides.
            q, k, v = rearrange(self.qkv(groups), "g l (t a d) -> t g a l d", t=3, a=self.heads).contiguous()
            out = rearrange(self._attend(q, k, v), "(n i j) a (h w) d -> n (h i) (w j) (a d)", n=n, i=f, h=rows // f)
        projected: Tensor = self.out(out)
        return projected

    def _filter(self, x: Tensor) -> Tensor:
        if self.downsampler is None:
            return x
        filtered: Tensor = self.downsampler(x)
        return filtered + x if self.shortcut else filtered

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(similarity of q and k) · v for (N, heads, L, d) queries and (N, heads, M, d) keys and values."""
        scale = None  # 1/√d
        if self.log_scale is not None:
            # The scale goes onto the queries, so that scores are ready for softmax inside the fused kernel.
            q = F.normalize(q, dim=-1) * self.log_scale.clamp(max=LOG_SCALE_BOUND).exp().to(q.dtype)
            k = F.normalize(k, dim=-1)
            scale = 1.0
        if self.query_rotations is not None and self.key_rotations is not None:
            q, k = rotate(q, self.query_rotations), rotate(k, self.key_rotations)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
