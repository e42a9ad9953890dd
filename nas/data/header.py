"""The header of a store: what it holds, without its samples."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nas.data.codec import VAE_PREFIX
from space.frozen import Frozen
from space.stage import Count


def printable(name: str) -> str:
    """A file's name as text that every file and terminal takes: bytes that are no UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


FileName = Annotated[str, BeforeValidator(lambda name: printable(name) if isinstance(name, str) else name)]
"""Text that may have been the name of a file or folder, as `printable` makes it."""


class CodecRecord(Frozen):
    """All that is needed to make images of latents: kept by a store's header, by a run with it, and by a model folder.

    A VAE's latents are (z - shift)·scale of its own z; None stands for what the VAE's configuration says, where nobody recorded
    more. `digest` is the SHA-256 of the VAE's configuration and weights, by which it is known wherever it lies; empty if unknown.
    Model folders of earlier versions hold the name alone.
    """

    name: str
    scale: Annotated[float, Field(gt=0)] | None = None
    shift: float | None = None
    digest: str = ""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class Header(Frozen):
    """What a store holds; its file is written last, so a folder with a header is whole.

    `content` says what the rows are: `pixels` are uint8 in the codec's layout, x/127.5 - 1 being the latent; `latents` are the
    latents themselves, those of a VAE scaled and shifted already; `moments` are a VAE's mean and log-variance (2C, H, W), the
    latent being (mean + σ·noise - shift)·scale. With two `views`, row 2i holds sample i and row 2i + 1 its mirror image.
    """

    version: Literal[1] = 1
    samples: Count | Literal[0]
    shape: tuple[Count, Count, Count]
    content: Literal["pixels", "latents", "moments"]
    dtype: Literal["uint8", "float16", "float32"]
    codec: str
    scale: Annotated[float, Field(gt=0)] = 1.0
    shift: float | None = None
    """None in stores of earlier versions, which knew no shift."""
    codec_digest: str = ""
    views: Literal[1, 2] = 1
    class_names: tuple[FileName, ...]
    class_counts: tuple[Count | Literal[0], ...] | None = None
    """Samples per class; None where nobody counted, as in stores of earlier versions before their labels are read."""
    source: FileName
    left_out: tuple[FileName, ...] = ()
    """Names of the images, or numbers of the samples, that were left out as damaged."""
    checksum: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Header:
        if (self.content == "pixels") != (self.dtype == "uint8"):
            raise ValueError(f"{self.content} cannot be {self.dtype}")
        counts = self.class_counts
        if counts is not None and (len(counts) != len(self.class_names) or sum(counts) != self.samples):
            raise ValueError(f"class_counts must count all {self.samples} samples, in {len(self.class_names)} classes")
        return self

    @property
    def without_samples(self) -> tuple[str, ...]:
        """The names of classes that are known to have no sample."""
        return tuple(name for name, count in zip(self.class_names, self.class_counts or (), strict=False) if not count)

    @property
    def decoding(self) -> CodecRecord:
        """All that is needed to make images of the latents."""
        if self.shift is None and self.content == "latents" and self.scale == 1 and self.codec.startswith(VAE_PREFIX):
            # Arrays of a VAE's latents were stored with a scale of 1, whatever theirs was.
            return CodecRecord(name=self.codec)
        return CodecRecord(name=self.codec, scale=self.scale, shift=self.shift or 0.0, digest=self.codec_digest)

    @property
    def rows_shape(self) -> tuple[int, int, int, int]:
        """The shape of the flat array; `shape` is that of one latent, (C, H, W)."""
        channels, height, width = self.shape
        return self.samples * self.views, channels * (2 if self.content == "moments" else 1), height, width
