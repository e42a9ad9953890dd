"""The table of codecs: the object that a study's `data.codec` names."""

from __future__ import annotations

from dataclasses import replace

from nas.data.codec import VAE_PREFIX, Codec, PixelUnshuffle
from space.document import nearest
from space.errors import DataError

CODECS: dict[str, Codec] = {codec.name: codec for codec in (PixelUnshuffle(1), PixelUnshuffle(2), PixelUnshuffle(4))}


def codec_named(name: str, scale: float | None = None) -> Codec:
    """The codec of a name.

    Args:
        name: A key of `CODECS`, or `vae:` followed by a hub name or a folder.
        scale: The factor by which a VAE's latents are scaled, or None for its default; other codecs have none.

    Raises:
        DataError: There is no such codec; the message names the nearest.
    """
    if name.startswith(VAE_PREFIX) and name != VAE_PREFIX:
        from nas.data.vae import Vae

        vae = Vae(name.removeprefix(VAE_PREFIX))
        return vae if scale is None else replace(vae, scale=scale)
    try:
        return CODECS[name]
    except KeyError:
        raise DataError(f"no codec '{name}'{nearest(name, [*CODECS, f'{VAE_PREFIX}NAME'])}") from None
