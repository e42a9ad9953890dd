"""The contract of a codec, which maps images in [-1, 1] to the latents that a model trains on, both (N, C, H, W) float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from space.errors import DataError

Array = NDArray[np.float32]
Shape = tuple[int, int, int]

VAE_PREFIX = "vae:"
"""Precedes a hub name or a folder in a codec's name, which is then the AutoencoderKL found there."""


class Codec(Protocol):
    """A mapping between images and latents, named by a study's `data.codec`."""

    @property
    def name(self) -> str:
        """The name that a study uses."""

    @property
    def guided_channels(self) -> int | None:
        """The number of leading channels that classifier-free guidance acts on, or None for all."""

    @property
    def bound(self) -> float | None:
        """The largest absolute value of a latent, to which samplers may clip a predicted x0, or None when unbounded."""

    def latent_shape(self, image: Shape) -> Shape:
        """The latents' (C, H, W) for images of (C, H, W); raises DataError when the codec does not accept that shape."""

    def check_latents(self, shape: Shape) -> None:
        """Raises DataError when latents of (C, H, W) cannot be this codec's; `bound` says how large their values may be."""

    def mirror_channels(self, channels: int) -> NDArray[np.int64] | None:
        """The channel order (C,) that turns latents flipped along their width into the latents of the mirrored images.

        None when no order does.
        """

    def encode(self, images: NDArray[Any]) -> NDArray[Any]:
        """The latents of images."""

    def decode(self, latents: Array) -> Array:
        """The images of latents."""


@dataclass(frozen=True)
class PixelUnshuffle:
    """The lossless codec that moves blocks of factor × factor pixels into channels: (C, H, W) ↔ (C·factor², H/factor, W/factor).

    Images have 1 or 3 channels and are uint8 in 0..255 or floating point in [-1, 1]. Factor 1 leaves the pixels as they are.
    """

    factor: int
    # Each channel holds a subset of the pixels, so all channels must be guided alike.
    guided_channels: int | None = None
    bound: float | None = 1.0

    @property
    def name(self) -> str:
        """The name that a study uses."""
        return f"pixel-unshuffle-{self.factor}"

    def latent_shape(self, image: Shape) -> Shape:
        """(C, H, W) → (C·factor², H/factor, W/factor)."""
        channels, height, width = image
        if height % self.factor or width % self.factor:
            raise DataError(f"codec {self.name} needs a height and width divisible by {self.factor}, not {height}×{width}")
        return channels * self.factor**2, height // self.factor, width // self.factor

    def check_latents(self, shape: Shape) -> None:
        """Raises DataError unless there are 1·factor² or 3·factor² channels: those of grey and of coloured images."""
        grey, coloured = self.factor**2, 3 * self.factor**2
        if shape[0] not in (grey, coloured):
            raise DataError(
                f"codec {self.name} has latents of {grey} or {coloured} channels, not {shape[0]}; name the codec that made them"
            )

    def mirror_channels(self, channels: int) -> NDArray[np.int64] | None:
        """The order that reverses the columns within each block of pixels."""
        return rearrange(np.arange(channels), "(c i j) -> c i j", i=self.factor, j=self.factor)[..., ::-1].reshape(-1)

    def encode(self, images: NDArray[Any]) -> NDArray[Any]:
        """(N, C, H, W) → (N, C·factor², H/factor, W/factor)."""
        _, channels, height, width = images.shape
        self.latent_shape((channels, height, width))
        return rearrange(images, "n c (h i) (w j) -> n (c i j) h w", i=self.factor, j=self.factor)

    def decode(self, latents: Array) -> Array:
        """(N, C·factor², H, W) → (N, C, H·factor, W·factor)."""
        if latents.shape[1] % self.factor**2:
            raise DataError(f"codec {self.name} needs latents of a multiple of {self.factor**2} channels, not {latents.shape[1]}")
        return rearrange(latents, "n (c i j) h w -> n c (h i) (w j)", i=self.factor, j=self.factor)
