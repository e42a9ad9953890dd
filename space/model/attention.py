"""Attention over all tokens, over downsampled tokens (the paper's contribution), or over downsampled keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import assert_never

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from space.choices.attention import Tokens
from space.choices.downsampler import Downsampler
from space.choices.table import covering
from space.model.kernels import attend, linear, normalise_and_rotate, project_qkv
from space.model.layout import Convolution, Depthwise
from space.model.position import POSITION_ROTATIONS
from space.stage import Stage

LOG_SCALE_BOUND = 4.6052
"""Upper bound of the cosine similarity's log scale, as written in the authors' code (not exactly ln 100)."""

DOWNSAMPLER_MODULES: Mapping[Downsampler, Callable[[int, int], nn.Module] | None] = covering(
    Downsampler,
    {
        "pixel-shuffle": None,
        "dwconv": Depthwise,
        "dwconv-shortcut": partial(Depthwise, shortcut=True),
        "conv": lambda width, kernel: Convolution(width, width, kernel),
    },
)
"""Builds the filter of each choice of `attention.downsampler` from the stage's width and `attention.kernel`; None for none."""


class Attention(nn.Module):
    """The parts that every kind of multi-head attention on an (N, H, W, C) feature map has (U-DiT, section 3)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.heads = stage.heads
        self.factor = stage.factor or 1
        self.downsampler: nn.Module | None = None
        if stage.downsampler is not None and (filter_of := DOWNSAMPLER_MODULES[stage.downsampler]):
            self.downsampler = filter_of(stage.width, stage.kernel or 0)
        self.qkv = nn.Linear(stage.width, 3 * stage.width)
        self.out = nn.Linear(stage.width, stage.width)
        self.log_scale = log_scale(stage)
        self.query_rotations: Tensor | None
        self.key_rotations: Tensor | None
        rotations_of = POSITION_ROTATIONS[stage.position]
        queries, keys = (None, None) if rotations_of is None else self._rotations(stage, rotations_of)
        self.register_buffer("query_rotations", queries, persistent=False)
        self.register_buffer("key_rotations", keys, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C)."""
        return self._over(x, x if self.downsampler is None else self.downsampler(x))

    def _over(self, x: Tensor, filtered: Tensor) -> Tensor:
        """Attention of a feature map, which has passed the downsampler as `filtered`: (N, H, W, C) → (N, H, W, C)."""
        raise NotImplementedError

    def _rotations(self, stage: Stage, rotations_of: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """The rotations of queries and of keys."""
        raise NotImplementedError

    def _scale(self) -> Tensor | None:
        """The factor of the cosine similarity (heads, 1, 1)."""
        return None if self.log_scale is None else self.log_scale.clamp(max=LOG_SCALE_BOUND).exp()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(scores) · v for (G, heads, L, d) queries and (G, heads, M, d) keys and values."""
        # The cosine's scale is on the queries already.
        return attend(q, k, v, q.shape[-1] ** -0.5 if self.log_scale is None else 1.0)


class GroupedAttention(Attention):
    """Attention inside groups of tokens; one group holds all tokens where nothing is downsampled.

    Filtered tokens are split into factor² groups (pixel-unshuffle: group (i, j) holds rows ≡ i and columns ≡ j), attend inside each
    group, and the groups are interleaved again, so no token and no channel is lost.
    """

    def _over(self, x: Tensor, filtered: Tensor) -> Tensor:
        f, rows = self.factor, x.shape[1]
        groups = rearrange(filtered, "n (h i) (w j) c -> (n i j) (h w) c", i=f, j=f)
        q, k, v = project_qkv(groups, self.qkv.weight, self.qkv.bias, self.heads, self._scale(), self.query_rotations)
        out = rearrange(self._attend(q, k, v), "g a l d -> g l (a d)")
        # Projected group by group, then interleaved: the projection shares what attention keeps for its gradient.
        projected = linear(out, self.out.weight, self.out.bias)
        return rearrange(projected, "(n i j) (h w) c -> n (h i) (w j) c", i=f, j=f, h=rows // f)

    def _rotations(self, stage: Stage, rotations_of: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        coarse = stage.resolution // self.factor
        both = rotations_of(coarse, coarse, stage.width // stage.heads)
        return both, both


class KeyValueAttention(Attention):
    """Attention of every query to keys and values that are averaged over factor × factor cells of the filtered tokens."""

    def _over(self, x: Tensor, filtered: Tensor) -> Tensor:
        width, f, scale = x.shape[-1], self.factor, self._scale()
        weight, bias = self.qkv.weight, self.qkv.bias
        q = rearrange(F.linear(x, weight[:width], bias[:width]), "n h w (a d) -> n a (h w) d", a=self.heads)
        # Averaged after the projection, as the cost printed in the paper's Table 1 (0.91 GFLOPs) needs; the two commute.
        kv = reduce(F.linear(filtered, weight[width:], bias[width:]), "n (h i) (w j) c -> n h w c", "mean", i=f, j=f)
        k, v = rearrange(kv, "n h w (t a d) -> t n a (h w) d", t=2, a=self.heads).contiguous()
        q = normalise_and_rotate(q, scale is not None, self.query_rotations)
        k = normalise_and_rotate(k, scale is not None, self.key_rotations)
        q = q if scale is None else q * scale.to(q.dtype)
        return linear(rearrange(self._attend(q, k, v), "n a (h w) d -> n h w (a d)", h=x.shape[1]), self.out.weight, self.out.bias)

    def _rotations(self, stage: Stage, rotations_of: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        fine, coarse, head_width = stage.resolution, stage.resolution // self.factor, stage.width // stage.heads
        return rotations_of(fine, fine, head_width), rotations_of(coarse, coarse, head_width, stride=self.factor)


ATTENTION_MODULES: Mapping[Tokens, type[Attention]] = covering(
    Tokens, {"all": GroupedAttention, "downsampled": GroupedAttention, "key-value": KeyValueAttention}
)
"""The module of each choice of `attention.tokens`."""


def log_scale(stage: Stage) -> nn.Parameter | None:
    """The learned log scale of a stage's similarity, (heads, 1, 1), from ln 10; None for a similarity without one."""
    match stage.similarity:
        case "dot":
            return None
        case "cosine":
            return nn.Parameter(torch.full((stage.heads, 1, 1), math.log(10)))
        case _:
            assert_never(stage.similarity)
