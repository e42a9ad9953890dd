"""The adaLN-Zero modulation of a transformer block: its own linear layer, or an offset to one that a level shares."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn

from space.stage import Stage

FACTORS = 6
"""The number of modulation vectors: shift, scale and gate of the attention, then of the feed-forward."""


class Offset(nn.Module):
    """A learned offset to the modulation that a level shares (as in adaLN-single; Chen et al., PixArt-α, arXiv 2310.00426)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(FACTORS * width))

    def forward(self, shared: Tensor) -> Tensor:
        """(N, 6C) → (N, 6C)."""
        return shared + self.offset


def modulation(stage: Stage) -> nn.Module:
    """The modulation of one block: maps the level's condition (N, C), or its shared modulation (N, 6C), to (N, 6C)."""
    match stage.modulation:
        case "layer":
            return nn.Linear(stage.width, FACTORS * stage.width)
        case "level":
            return Offset(stage.width)
        case _:
            assert_never(stage.modulation)
