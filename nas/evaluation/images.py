"""Pixels of images in [-1, 1], and grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from space.errors import DataError

Pixels = NDArray[np.uint8]
"""Images (N, C, H, W), 0 to 255."""

ENLARGED = 3
"""The factor by which a grid is enlarged, since the images are small."""


def to_pixels(images: NDArray[np.float32]) -> Pixels:
    """Images in [-1, 1] rounded to 0 … 255."""
    return ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def write_grid(images: NDArray[np.float32], columns: int, path: Path) -> None:
    """Write images as a grid, row by row.

    Args:
        images: (N, 1 or 3, H, W) in [-1, 1]; N must be divisible by `columns`.
        columns: Images per row.
        path: The PNG file.

    Raises:
        DataError: The number of channels is another, as it is for latents without a codec to images.
    """
    if images.shape[1] not in (1, 3):
        raise DataError(f"the codec gives {images.shape[1]} channels, which is no picture; prepare the data with their codec")
    grid = rearrange(to_pixels(images), "(r k) c h w -> (r h) (k w) c", k=columns)
    picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
    width, height = picture.size
    picture.resize((width * ENLARGED, height * ENLARGED), Image.Resampling.NEAREST).save(path)
