"""The codecs by the names that a study's `data.codec` gives them."""

from __future__ import annotations

from dataclasses import replace

from nas.data.codec import VAE_PREFIX, Codec, PixelUnshuffle
from space.document import nearest
from space.errors import DataError

CODECS: dict[str, Codec] = {codec.name: codec for codec in (PixelUnshuffle(1), PixelUnshuffle(2), PixelUnshuffle(4))}


def codec_named(name: str, scale: float | None = None) -> Codec:
    """The codec of a name, a VAE's with a scale of its latents; raises DataError, naming the nearest, when there is none."""
    if name.startswith(VAE_PREFIX) and name != VAE_PREFIX:
        from nas.data.vae import Vae

        found = Vae(name.removeprefix(VAE_PREFIX))
        return found if scale is None else replace(found, scale=scale)
    try:
        return CODECS[name]
    except KeyError:
        raise DataError(f"no codec '{name}'{nearest(name, [*CODECS, f'{VAE_PREFIX}NAME'])}") from None
