"""Codecs between images in [-1, 1] and the latents that a model is trained on, both (N, C, H, W) float32."""

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
"""Followed by a hub name or a folder: the AutoencoderKL there."""


class Codec(Protocol):
    """What a study's `data.codec` names."""

    @property
    def name(self) -> str:
        """As in a study."""

    @property
    def guided_channels(self) -> int | None:
        """Channels that classifier-free guidance acts on; None: all."""

    @property
    def bound(self) -> float | None:
        """Largest absolute latent, which samplers may clip a predicted x0 to; None: unbounded."""

    def latent_shape(self, image: Shape) -> Shape:
        """The latents' (C, H, W) for images of (C, H, W); raises DataError when the codec cannot take them."""

    def mirror_channels(self, channels: int) -> NDArray[np.int64] | None:
        """The channels' order that makes latents flipped along their width those of mirrored images; None: there is none."""

    def encode(self, images: NDArray[Any]) -> NDArray[Any]:
        """Images to latents."""

    def decode(self, latents: Array) -> Array:
        """Latents to images."""


@dataclass(frozen=True)
class PixelUnshuffle:
    """The lossless codec that moves factor × factor pixels into channels: (C, H, W) ↔ (C·factor², H/factor, W/factor).

    Factor 1 leaves the pixels as they are.
    """

    factor: int
    # Every channel is a share of the pixels, so all must be guided alike.
    guided_channels: int | None = None
    bound: float | None = 1.0

    @property
    def name(self) -> str:
        """As in a study."""
        return f"pixel-unshuffle-{self.factor}"

    def latent_shape(self, image: Shape) -> Shape:
        """(C, H, W) → (C·factor², H/factor, W/factor)."""
        channels, height, width = image
        if height % self.factor or width % self.factor:
            raise DataError(f"codec {self.name} needs a height and width divisible by {self.factor}, not {height}×{width}")
        return channels * self.factor**2, height // self.factor, width // self.factor

    def mirror_channels(self, channels: int) -> NDArray[np.int64] | None:
        """Within every group of pixels, the columns trade places."""
        return rearrange(np.arange(channels), "(c i j) -> c i j", i=self.factor, j=self.factor)[..., ::-1].reshape(-1)

    def encode(self, images: NDArray[Any]) -> NDArray[Any]:
        """(N, C, H, W) → (N, C·factor², H/factor, W/factor)."""
        _, channels, height, width = images.shape
        self.latent_shape((channels, height, width))
        return rearrange(images, "n c (h i) (w j) -> n (c i j) h w", i=self.factor, j=self.factor)

    def decode(self, latents: Array) -> Array:
        """(N, C·factor², H, W) → (N, C, H·factor, W·factor)."""
        return rearrange(latents, "n (c i j) h w -> n c (h i) (w j)", i=self.factor, j=self.factor)
