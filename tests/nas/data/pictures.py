"""Small pictures in files."""

import numpy as np
from PIL import Image

from nas.data.images import ImageFolder


def noise(height, width, seed=0):
    """Away from black and white, where a filter's overshoot would be cut off."""
    return np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def plain(value):
    """An image of one colour, which identifies it."""
    return np.full((8, 8, 3), value, dtype=np.uint8)


def one(tmp_path):
    """The image in class `a`, (H, W, 3)."""
    return ImageFolder(tmp_path, 8).read(0, 1)[0].transpose(1, 2, 0)
