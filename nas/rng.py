"""Random streams that depend on (seed, purpose, step) alone.

Whatever a model draws, whatever ran before and on whichever device: one seed gives every variant the same data order,
noise, timesteps and dropped labels, so differences between variants are paired. A run that continues from a
checkpoint needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose and step; equal arguments give equal draws."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@dataclass(frozen=True)
class Draw:
    """What one training step needs: which samples, which of them mirrored, timesteps, noise, which labels to drop; on the CPU."""

    samples: Tensor
    """(N,) int64"""
    mirrored: Tensor
    """(N,) bool"""
    t: Tensor
    """(N,) as the prediction draws them"""
    noise: Tensor
    """(N, C, H, W) float32"""
    dropped: Tensor
    """(N,) bool"""
    posterior: Tensor | None
    """(N, C, H, W) float32 with which a VAE's moments are sampled, None where the data have none."""


class TrainingStream:
    """The draws of a training run, step by step, in any order.

    Epochs are whole permutations laid end to end, so every sample is seen once before one is seen twice, whatever the batch size.
    """

    def __init__(
        self,
        seed: int,
        samples: int,
        batch_size: int,
        shape: tuple[int, ...],
        times: Callable[[int, torch.Generator], Tensor],
        label_dropout: float,
        moments: bool = False,
    ) -> None:
        self.seed, self.samples, self.batch_size, self.moments = seed, samples, batch_size, moments
        self.shape, self.times, self.label_dropout = shape, times, label_dropout
        self._epoch: tuple[int, Tensor] | None = None

    def draw(self, step: int) -> Draw:
        """The draw of a step, counted from 0."""
        size = self.batch_size
        shape = (size, *self.shape)
        return Draw(
            samples=self._samples(step),
            mirrored=torch.rand(size, generator=stream(self.seed, "mirror", step)) < 0.5,
            t=self.times(size, stream(self.seed, "timesteps", step)),
            noise=torch.randn(shape, generator=stream(self.seed, "noise", step)),
            dropped=torch.rand(size, generator=stream(self.seed, "labels", step)) < self.label_dropout,
            posterior=torch.randn(shape, generator=stream(self.seed, "posterior", step)) if self.moments else None,
        )

    def _samples(self, step: int) -> Tensor:
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
