"""The `data` section of a study: where its samples come from, and what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, model_validator

from nas.data.codec import VAE_PREFIX
from nas.data.codecs import codec_named
from nas.data.header import Header
from nas.data.sources import EMBEDDED, DataSet, header_of, load_data, resolved
from space.errors import DataError
from space.frozen import Frozen
from space.stage import Count


class ExpectedData(Frozen):
    """What a store must hold, so that a study can be checked, and its bill be told, where the store is not: latents of a VAE."""

    shape: tuple[Count, Count, Count]
    classes: Count
    codec: str = f"{VAE_PREFIX}stabilityai/sd-vae-ft-ema"

    def header(self, source: str) -> Header:
        """The header of such a store, mirror images included."""
        names = tuple(str(label) for label in range(self.classes))
        facts = {"samples": 0, "content": "moments", "dtype": "float32", "views": 2}
        return Header.model_validate({**facts, "shape": self.shape, "codec": self.codec, "class_names": names, "source": source})

    def check(self, found: Header, source: str) -> None:
        """Raises DataError when a store holds something else."""
        if (found.shape, len(found.class_names)) != (self.shape, self.classes):
            held = f"{found.shape} of {len(found.class_names)} classes"
            wanted = f"{self.shape} of {self.classes}"
            raise DataError(f"{source} holds latents {held}, but data.expected says {wanted}; mend it or take another store")


class DataSettings(Frozen):
    """The data to train on: an embedded data set and the codec that makes latents of it, or the folder of a prepared store.

    What is `expected` of a store stands in for it as long as it is missing; only a run needs the store itself. `held_out` is the
    share of every class that is kept for validation. With `flip`, half of the training samples are shown as their mirror images.
    """

    source: Annotated[str, AfterValidator(resolved)]
    codec: str | None = None
    expected: ExpectedData | None = None
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    flip: bool = False
    _recorded: Header | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _take_recorded(self, info: ValidationInfo) -> DataSettings:
        """A run is read where its data need not be, so its ledger's record of the header stands in for them."""
        if info.context:
            self._recorded = info.context["header"]
        return self

    def header(self) -> Header:
        """What the source holds, or held when it was recorded; raises DataError when there is none, or it has another codec."""
        if self._recorded:
            return self._recorded
        if self.expected and self.is_missing:
            return self.expected.header(self.source)
        header = header_of(self.source, self.codec)
        if self.expected:
            self.expected.check(header, self.source)
        return header

    @property
    def is_missing(self) -> bool:
        """Whether there is no such source here."""
        return self.source not in EMBEDDED and not Path(self.source).is_dir()

    def check_flip(self) -> None:
        """Raises DataError when `flip` is asked of data that have no mirror images."""
        header = self.header()
        if self.flip and header.views == 1 and codec_named(header.codec).mirror_channels(header.shape[0]) is None:
            raise DataError(
                f"data.flip: {self.source} holds no mirror images, and those of {header.codec} are not made from its latents; "
                "prepare it with --mirrored, or leave flip out"
            )

    def load(self) -> DataSet:
        """The data, split; raises DataError when they are missing or damaged."""
        return load_data(self.source, self.codec, self.held_out)
