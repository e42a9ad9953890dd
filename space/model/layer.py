"""One layer: attention and feed-forward, each modulated by the condition through adaLN-Zero."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from space.model.attention import Attention
from space.model.feed_forward import feed_forward
from space.model.modulation import modulation
from space.stage import Stage

NORM_EPSILON = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm over the channels of (N, H, W, C), without affine, then · (1 + scale) + shift, each (N, 1, 1, C)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON) * (1 + scale) + shift


class Layer(nn.Module):
    """x += gate · attention(modulated norm of x), then the same with the feed-forward (Peebles & Xie, section 3.2)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.modulation = modulation(stage)
        self.attention = Attention(stage)
        self.feed_forward = feed_forward(stage)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, H, W, C) and the level's condition (N, C) → (N, H, W, C)."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(c)[:, None, None].chunk(6, dim=-1)
        x = x + gate_a * self.attention(modulated_norm(x, shift_a, scale_a))
        out: Tensor = x + gate_f * self.feed_forward(modulated_norm(x, shift_f, scale_f))
        return out


class Layers(nn.ModuleList):
    """All layers of a stage."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(Layer(stage) for _ in range(stage.layers))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, H, W, C) and the level's condition (N, C) → (N, H, W, C)."""
        for layer in self:
            x = layer(x, c)
        return x
