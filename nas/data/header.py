"""The header of a store: what it holds, without its samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from space.frozen import Frozen
from space.stage import Count


class Header(Frozen):
    """What a store holds; its file is written last, so a folder with a header is whole.

    `content` says what the rows are: `pixels` are uint8 in the codec's layout, x/127.5 - 1 being the latent; `latents` are the
    latents themselves, those of a VAE scaled by `scale` already; `moments` are a VAE's mean and log-variance (2C, H, W), the
    latent being (mean + σ·noise)·scale. With two `views`, row 2i holds sample i and row 2i + 1 its mirror image.
    """

    version: Literal[1] = 1
    samples: Count | Literal[0]
    shape: tuple[Count, Count, Count]
    content: Literal["pixels", "latents", "moments"]
    dtype: Literal["uint8", "float16", "float32"]
    codec: str
    scale: Annotated[float, Field(gt=0)] = 1.0
    views: Literal[1, 2] = 1
    class_names: tuple[str, ...]
    class_counts: tuple[Count | Literal[0], ...] | None = None
    """Samples per class; None where nobody counted, as in stores of earlier versions before their labels are read."""
    source: str
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
    def rows_shape(self) -> tuple[int, int, int, int]:
        """The shape of the flat array; `shape` is that of one latent, (C, H, W)."""
        channels, height, width = self.shape
        return self.samples * self.views, channels * (2 if self.content == "moments" else 1), height, width
