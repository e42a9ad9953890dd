"""Embeddings of the timestep and the class label (Peebles & Xie, ICCV 2023; U-DiT has one of each per level)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from space.stage import TIME_SINUSOIDS


def sinusoids(t: Tensor) -> Tensor:
    """Timesteps (N,) as (N, 256): cosines, then sines, of t · exp(-ln 10000 · i / 128)."""
    half = TIME_SINUSOIDS // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ConditionEmbedder(nn.Module):
    """The condition of one level, SiLU(embedded t + embedded y).

    In adaLN-Zero every use of the condition begins with SiLU, so it is applied once here. With a null class, its label is
    `num_classes`.
    """

    def __init__(self, width: int, num_classes: int, null_class: bool) -> None:
        super().__init__()
        self.time_in = nn.Linear(TIME_SINUSOIDS, width)
        self.time_out = nn.Linear(width, width)
        self.labels = nn.Embedding(num_classes + null_class, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Sinusoids (N, 256) and labels (N,) → (N, C)."""
        time = self.time_out(F.silu(self.time_in(t)))
        return F.silu(time + self.labels(y))
