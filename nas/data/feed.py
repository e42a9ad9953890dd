"""Batches of latents on the training device, gathered from the store's memory map or from the device's memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nas.data.store import Split, Store, check_mirrored
from nas.data.vae import sample_moments

RESIDENT_SHARE = 0.4
"""A split is kept in a GPU's memory when it takes at most this share of the free memory; training needs the rest."""

_CHUNK_SAMPLES = 4096


class Feed:
    """Latents and labels of a split's samples on a device, addressed by number.

    On a GPU with enough free memory the split is copied there, unless `resident` is false; otherwise each batch is gathered from
    the memory map. Mirror images come from the store's second view, or from the codec where mirroring is exact.

    Args:
        split: The samples.
        device: The device of latents and labels.
        mirrored: Whether mirror images will be asked for.
        resident: Whether the split may be kept in a GPU's memory.

    Raises:
        DataError: Mirror images are wanted, and neither the store nor the codec has them.
    """

    def __init__(self, split: Split, device: torch.device, mirrored: bool = False, resident: bool = True) -> None:
        self.split, self.device, self.store, self.mirrored = split, device, split.store, mirrored
        header = self.store.header
        # A store without mirror images leaves mirroring to the codec, which gives the channels' order after a flip.
        self._mirror = None if header.views == 2 else self.store.codec.mirror_channels(header.shape[0])
        if mirrored:
            check_mirrored(self.store.name, header, self.store.codec)
        self.labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        self._resident = self._copy() if resident and _fits(split, device) else None

    def __len__(self) -> int:
        return len(self.split)

    def latents(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (N, C, H, W) float32 of samples of the split.

        Args:
            index: (N,) int64, the samples' positions in the split.
            mirrored: (N,) bool, the samples to return as mirror images; None for none.
            noise: (N, C, H, W), with which a VAE's moments are sampled; None takes their mean. Stores of other content ignore it.
        """
        views = self.store.header.views
        resident_rows = index * views
        if views == 2 and mirrored is not None:
            resident_rows = resident_rows + mirrored
        if self._resident is not None:
            raw = self._resident[resident_rows.to(self.device)]
        else:
            store_rows = torch.from_numpy(self.split.samples)[index] * views + (resident_rows - index * views)
            raw = torch.from_numpy(np.take(self.store.rows, store_rows.numpy(), axis=0)).to(self.device, non_blocking=True)
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
            return sample_moments(values, noise.to(self.device, non_blocking=True), header.scale, header.shift or 0.0)
        return (values.chunk(2, dim=1)[0] - (header.shift or 0.0)) * header.scale

    def _copy(self) -> Tensor:
        """The split's rows on the device, copied in chunks so that the main memory never holds them all."""
        views, array = self.store.header.views, self.store.rows
        rows = (self.split.samples[:, None] * views + np.arange(views)).reshape(-1)
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        copy = torch.empty((len(rows), *array.shape[1:]), dtype=dtype, device=self.device)
        for first in range(0, len(rows), _CHUNK_SAMPLES):
            chunk = np.take(array, rows[first : first + _CHUNK_SAMPLES], axis=0)
            copy[first : first + len(chunk)] = torch.from_numpy(chunk).to(self.device)
        return copy


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(split) * split.store.header.views * _row_bytes(split.store) <= RESIDENT_SHARE * free


def _row_bytes(store: Store) -> int:
    return int(store.rows[:1].nbytes)
