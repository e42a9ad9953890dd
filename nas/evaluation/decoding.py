"""How a model's latents become images: as its folder records it, filled in from the command line and from its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nas.data.codec import VAE_PREFIX, Codec
from nas.data.codecs import codec_of, placed
from nas.data.header import CodecRecord, Header
from nas.data.settings import DataSettings
from nas.data.sources import header_of
from space.document import parse
from space.errors import DataError, RunError, ToolkitError


def decoding_of(facts: Mapping[str, Any], codec: str | None = None, header: Header | None = None) -> CodecRecord:
    """The record of the codec of a model's latents.

    Args:
        facts: The facts of the model's folder. Those of an imported checkpoint may name no codec; those of earlier versions name
            it without its scale, which the header of their data still has.
        codec: A codec's name, for a model that names none, or the place of the same VAE on this machine.
        header: The header of the model's data, for a model that names no codec.

    Raises:
        RunError: Nothing says which codec it is, or the facts are damaged.
        DataError: Another codec is given than the model's.
    """
    given = facts.get("codec")
    recorded = parse(CodecRecord, given if isinstance(given, Mapping) else {"name": given}) if given is not None else None
    if recorded is not None and recorded.scale is None and recorded.name.startswith(VAE_PREFIX):
        recorded = _of_older(recorded, facts, header)
    if recorded is None and header is not None:
        recorded = header.decoding
    if recorded is None and codec is None:
        raise RunError("the model does not say which codec its latents have; name it with --codec, or its data with --data")
    if codec is None or (recorded is not None and codec == recorded.name):
        assert recorded is not None
        return recorded
    if recorded is None:
        return CodecRecord(name=placed(codec))
    if not (codec.startswith(VAE_PREFIX) and recorded.name.startswith(VAE_PREFIX)):
        raise DataError(f"the codec is {codec}, but the model's latents are those of {recorded.name}; leave it out")
    return recorded.model_copy(update={"name": placed(codec)})


def _of_older(recorded: CodecRecord, facts: Mapping[str, Any], header: Header | None) -> CodecRecord:
    """The record with the scale of the data that it was trained on, where they can still be found."""
    try:
        of_data = header or header_of(parse(DataSettings, facts["data"]))
    except (KeyError, ToolkitError):
        return recorded
    return of_data.decoding if of_data.codec == recorded.name else recorded


def decoder_of(record: CodecRecord, channels: int) -> Codec:
    """The codec of a record, tried on latents of a number of channels, so that what is wrong shows before anything is drawn.

    Raises:
        DataError: The codec is not here, is another than recorded, or does not take such latents.
    """
    codec = codec_of(record)
    codec.decode(np.zeros((1, channels, 2, 2), np.float32))
    return codec
