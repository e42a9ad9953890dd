"""The table of codecs: the object that a study's `data.codec` names, and its record."""

from __future__ import annotations

from nas.data.codec import VAE_PREFIX, Codec, PixelUnshuffle
from nas.data.header import CodecRecord
from space.document import nearest
from space.errors import DataError
from space.files import expanded

CODECS: dict[str, Codec] = {codec.name: codec for codec in (PixelUnshuffle(1), PixelUnshuffle(2), PixelUnshuffle(4))}


def codec_named(name: str, scale: float | None = None, shift: float | None = None, digest: str = "") -> Codec:
    """The codec of a name.

    Args:
        name: A key of `CODECS`, or `vae:` followed by a hub name or a folder.
        scale: The factor by which a VAE's latents are scaled, or None for that of its configuration; other codecs have none.
        shift: What is subtracted from a VAE's latents before, likewise.
        digest: The digest that a VAE must have; empty for any.

    Raises:
        DataError: There is no such codec; the message names the nearest.
    """
    if name.startswith(VAE_PREFIX) and name != VAE_PREFIX:
        from nas.data.vae import Vae

        return Vae(name.removeprefix(VAE_PREFIX), scale, shift, expected=digest)
    try:
        return CODECS[name]
    except KeyError:
        raise DataError(f"no codec '{name}'{nearest(name, [*CODECS, f'{VAE_PREFIX}NAME'])}") from None


def codec_of(record: CodecRecord) -> Codec:
    """The codec of a record; a VAE of another digest is refused as soon as it is loaded."""
    return codec_named(record.name, record.scale, record.shift, record.digest)


def record_of(codec: Codec) -> CodecRecord:
    """The record of a codec.

    A VAE in a folder is loaded for its digest; one on the hub is known by its name, and its digest is left out.

    Raises:
        DataError: A VAE's scale is not given and its configuration cannot be read.
    """
    if not codec.name.startswith(VAE_PREFIX):
        return CodecRecord(name=codec.name, scale=1.0, shift=0.0)
    from nas.data.vae import Vae

    assert isinstance(codec, Vae)
    scale, shift = codec.scaling
    return CodecRecord(name=codec.name, scale=scale, shift=shift, digest=codec.digest if codec.is_local else "")


def placed(name: str) -> str:
    """A codec's name as every process finds it: a VAE's folder becomes an absolute path."""
    if not name.startswith(VAE_PREFIX):
        return name
    folder = expanded(name.removeprefix(VAE_PREFIX))
    return f"{VAE_PREFIX}{folder.absolute()}" if folder.is_dir() else name
