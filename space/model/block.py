"""The transformer block: attention and feed-forward, each modulated by the condition through adaLN-Zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from space.model.attention import ATTENTION_MODULES
from space.model.feed_forward import feed_forward
from space.model.kernels import modulated_norm
from space.model.modulation import modulation
from space.stage import Stage


class Block(nn.Module):
    """One transformer block (Peebles & Xie, section 3.2).

    x += gate · attention(modulated norm of x), then the same with the feed-forward. This is what `ModelSpec` calls a layer:
    `depths` counts U-DiT's blocks, each of `block_layers` of these.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.modulation = modulation(stage)
        self.attention = ATTENTION_MODULES[stage.tokens](stage)
        self.feed_forward = feed_forward(stage)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, H, W, C) and the level's condition (N, C) → (N, H, W, C)."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(c)[:, None, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attention(modulated_norm(x, shift_a, scale_a)))
        return torch.addcmul(x, gate_f, self.feed_forward(modulated_norm(x, shift_f, scale_f)))


class Blocks(nn.ModuleList):
    """All transformer blocks of a stage, in order."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(Block(stage) for _ in range(stage.layers))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, H, W, C) and the level's condition (N, C) → (N, H, W, C)."""
        for block in self:
            x = block(x, c)
        return x
