"""Random streams that depend on (seed, purpose, step) alone.

Whatever a model draws, whatever ran before and on whichever device: one seed gives every variant the same data order,
noise, timesteps and dropped labels, so differences between variants are paired. A run that continues from a
checkpoint needs no generator state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose and step; equal arguments give equal draws."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@dataclass(frozen=True)
class Draw:
    """What one training step needs: rows of the data set, timesteps, noise, and which labels to drop, on the CPU."""

    rows: Tensor
    """(N,) int64"""
    t: Tensor
    """(N,) int64 in [0, steps)"""
    noise: Tensor
    """(N, C, H, W) float32"""
    dropped: Tensor
    """(N,) bool"""


class TrainingStream:
    """The draws of a training run, step by step, in any order.

    Epochs are whole permutations laid end to end, so every sample is seen once before one is seen twice, whatever the batch size.
    """

    def __init__(
        self, seed: int, samples: int, batch_size: int, shape: tuple[int, ...], timesteps: int, label_dropout: float
    ) -> None:
        self.seed, self.samples, self.batch_size = seed, samples, batch_size
        self.shape, self.timesteps, self.label_dropout = shape, timesteps, label_dropout
        self._epoch: tuple[int, Tensor] | None = None

    def draw(self, step: int) -> Draw:
        """The draw of a step, counted from 0."""
        size = self.batch_size
        return Draw(
            rows=self._rows(step),
            t=torch.randint(self.timesteps, (size,), generator=stream(self.seed, "timesteps", step)),
            noise=torch.randn((size, *self.shape), generator=stream(self.seed, "noise", step)),
            dropped=torch.rand(size, generator=stream(self.seed, "labels", step)) < self.label_dropout,
        )

    def _rows(self, step: int) -> Tensor:
        first, left = step * self.batch_size, self.batch_size
        pieces: list[Tensor] = []
        while left:
            epoch, offset = divmod(first, self.samples)
            piece = self._permutation(epoch)[offset : offset + left]
            pieces.append(piece)
            first, left = first + len(piece), left - len(piece)
        return torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(self.samples, generator=stream(self.seed, "order", epoch))
        return self._epoch[1]
