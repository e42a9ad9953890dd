"""Batches of latents on the training device, gathered from the store's map or from the device's memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nas.data.store import Split, Store
from nas.data.vae import sample_moments
from space.errors import DataError

RESIDENT_SHARE = 0.4
"""A split of at most this share of a GPU's free memory is kept there; the rest is for training."""

_CHUNK_SAMPLES = 4096


class Feed:
    """Latents and labels of a split's samples, by number, on a device.

    On a GPU with room, the split lies in the GPU's memory unless `resident` is false; elsewhere a batch is gathered from the memory
    map. Mirror images come from the store's second view, or from the codec where mirroring is exact.
    """

    def __init__(self, split: Split, device: torch.device, mirrored: bool = False, resident: bool = True) -> None:
        self.split, self.device, self.store, self.mirrored = split, device, split.store, mirrored
        header = self.store.header
        # Where the store has no mirror images of its own, the codec says how channels trade places under mirroring.
        self._mirror = None if header.views == 2 else self.store.codec.mirror_channels(header.shape[0])
        if mirrored and header.views == 1 and self._mirror is None:
            raise DataError(
                f"{self.store.name} holds no mirror images, and those of {header.codec} are not made from its latents; "
                "prepare it with --mirrored, or leave data.flip out"
            )
        self.labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        self._resident = self._copy() if resident and _fits(split, device) else None

    def __len__(self) -> int:
        return len(self.split)

    def latents(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (N, C, H, W) float32 of the split's samples `index` (N,), those with `mirrored` (N,) bool as mirror images.

        `noise` (N, C, H, W) draws from a VAE's moments, which are taken at their mean without it; other stores ignore it.
        """
        views = self.store.header.views
        row = index * views
        if views == 2 and mirrored is not None:
            row = row + mirrored
        if self._resident is not None:
            raw = self._resident[row.to(self.device)]
        else:
            own = torch.from_numpy(self.split.samples)[index] * views + (row - index * views)
            raw = torch.from_numpy(np.take(self.store.rows, own.numpy(), axis=0)).to(self.device, non_blocking=True)
        latents = self._as_latents(raw, noise)
        if self._mirror is not None and mirrored is not None:
            flipped = latents[:, torch.from_numpy(self._mirror).to(self.device)].flip(-1)
            latents = torch.where(mirrored.to(self.device).view(-1, 1, 1, 1), flipped, latents)
        return latents

    def _as_latents(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        header, values = self.store.header, raw.float()
        if header.content == "pixels":
            return values / 127.5 - 1
        if header.content == "latents":
            return values
        if noise is not None:
            return sample_moments(values, noise.to(self.device, non_blocking=True), header.scale)
        return values.chunk(2, dim=1)[0] * header.scale

    def _copy(self) -> Tensor:
        """The split's rows on the device, in chunks, so that they never lie in the main memory as a whole."""
        views, rows = self.store.header.views, self.store.rows
        own = (self.split.samples[:, None] * views + np.arange(views)).reshape(-1)
        whole = torch.empty((len(own), *rows.shape[1:]), dtype=torch.from_numpy(np.empty(0, rows.dtype)).dtype, device=self.device)
        for first in range(0, len(own), _CHUNK_SAMPLES):
            piece = np.take(rows, own[first : first + _CHUNK_SAMPLES], axis=0)
            whole[first : first + len(piece)] = torch.from_numpy(piece).to(self.device)
        return whole


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(split) * split.store.header.views * _row_bytes(split.store) <= RESIDENT_SHARE * free


def _row_bytes(store: Store) -> int:
    return int(store.rows[:1].nbytes)
