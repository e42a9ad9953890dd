"""Random streams keyed by (seed, purpose, step).

One seed gives every variant of an ablation the same data order, noise, timesteps and dropped labels, whatever else a model
draws, whatever ran before and on whichever device. Differences between variants are therefore paired, and a run that
resumes from a checkpoint needs no generator state.
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
    """The random numbers of one training step, on the CPU."""

    samples: Tensor
    """(N,) int64, positions in the training split."""
    mirrored: Tensor
    """(N,) bool, the samples to show as mirror images."""
    t: Tensor
    """(N,) timesteps, in the prediction's type."""
    noise: Tensor
    """(N, C, H, W) float32"""
    dropped: Tensor
    """(N,) bool, the labels to replace by the null class."""
    posterior: Tensor | None
    """(N, C, H, W) float32, with which a VAE's moments are sampled; None for data without moments."""


class TrainingStream:
    """The draws of a training run, for any step in any order.

    Epochs are whole permutations laid end to end, so each sample is drawn once before any is drawn twice, whatever the batch size.

    Args:
        seed: The seed of the trial.
        samples: The number of training samples.
        batch_size: Samples per step.
        shape: The (C, H, W) of one latent.
        times: Draws training times, given their number and a generator.
        label_dropout: The probability of dropping a label.
        moments: Whether the data are a VAE's moments, which are sampled in every step.
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
        """The draw of a step; steps count from 0."""
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
        first, missing = step * self.batch_size, self.batch_size
        pieces: list[Tensor] = []
        while missing:
            epoch, offset = divmod(first, self.samples)
            piece = self._permutation(epoch)[offset : offset + missing]
            pieces.append(piece)
            first, missing = first + len(piece), missing - len(piece)
        return torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(self.samples, generator=stream(self.seed, "order", epoch))
        return self._epoch[1]
