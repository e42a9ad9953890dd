"""The decoding of one picture: upright, RGB of 8 bits whatever its mode, and centre-cropped as in ADM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as a page shows them."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF 6.0, section 8."""


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of size × size pixels, RGB, of the image resized so that its smaller side is `size`.

    As in ADM (Dhariwal & Nichol 2021) and DiT: while the smaller side is at least 2·size, the image is halved by averaging
    blocks of 2×2 pixels, since a bicubic filter alone would alias; one bicubic step then resizes it to the final size. Unlike
    theirs, the image is turned upright first and composed on white where it is transparent.
    """
    image = upright_rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def upright_rgb(image: Image.Image) -> Image.Image:
    """The first frame of an image in RGB, turned as its EXIF orientation says, on white where it is transparent.

    Grey values of 9 to 16 bits are scaled from their whole range to 0 … 255; Pillow itself would cut them off at 255.

    Raises:
        ValueError: The values have no defined range (32 bits, floats), or Pillow finds other damage.
        Exception: Damaged files make Pillow's decoders raise almost anything.
    """
    highest, inverted = _highest(image), _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    clear = image.info.get("transparency")
    # TIFF files are turned by Pillow as they are loaded; their tag is gone then.
    image.load()
    image = ImageOps.exif_transpose(image)
    if highest is not None:
        values = np.asarray(image).astype(np.int64)
        grey = np.rint(values * (255 / highest)).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if clear is not None:
            return Image.composite(Image.new("RGB", image.size, BACKGROUND), _rgb(grey), Image.fromarray(values == clear))
        return _rgb(grey)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if isinstance(clear, tuple) and max(clear) > 255:
        # Pillow keeps the upper 8 of 16 bits of a pixel, by which it cannot be told whether it had this colour.
        raise ValueError("a transparent colour of 16 bits, which Pillow cannot apply; save the picture with an alpha channel")
    behind = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _rgb(grey: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(grey).convert("RGB")


def _highest(image: Image.Image) -> int | None:
    """The highest value that a grey image of more than 8 bits can hold, or None for a mode of 8 bits."""
    if image.mode.startswith("I;16"):
        # TIFF also has 12 bits, which Pillow keeps in 16.
        return int(2 ** _tag(image, _BITS_PER_SAMPLE, 16) - 1)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        # These formats have at most 16 bits, which Pillow keeps in 32 (PNG before Pillow 11.3); it scales those of PGM to 65535.
        return 65535
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are {kind}, whose black and white are not defined; save it with 8 or 16 bits")
    return None


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a TIFF tag, or `default` in other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
