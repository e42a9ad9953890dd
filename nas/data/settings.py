"""The `data` section of a study: where its samples come from, and what is done with them. Reads nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from nas.data.header import Header
from space.errors import DataError
from space.files import expanded
from space.frozen import Frozen
from space.stage import Count

EMBEDDED_NAMES = ("fashion-mnist-10k",)
"""The data sets that the package carries; `nas.data.sources` reads them."""

DEFAULT_VAE = "vae:stabilityai/sd-vae-ft-ema"
"""The codec of latents in both papers."""


def _resolved(source: str) -> str:
    """A source as every process finds it: an embedded name as it is, a folder by its absolute path."""
    return source if source in EMBEDDED_NAMES else str(expanded(source).absolute())


class ExpectedData(Frozen):
    """The latents that a store must hold, so that a study can be checked and estimated on a machine without the store."""

    shape: tuple[Count, Count, Count]
    classes: Count
    codec: str = DEFAULT_VAE

    def header(self, source: str) -> Header:
        """The header of such a store, mirror images included."""
        names = tuple(str(label) for label in range(self.classes))
        facts = {"samples": 0, "content": "moments", "dtype": "float32", "views": 2}
        return Header.model_validate({**facts, "shape": self.shape, "codec": self.codec, "class_names": names, "source": source})

    def check(self, header: Header, source: str) -> None:
        """Raises DataError when a store holds something else."""
        if (header.shape, len(header.class_names)) != (self.shape, self.classes):
            held = f"{header.shape} of {len(header.class_names)} classes"
            wanted = f"{self.shape} of {self.classes}"
            raise DataError(f"{source} holds latents {held}, but data.expected says {wanted}; mend it or take another store")


class DataSettings(Frozen):
    """The data to train on: an embedded data set and the codec that makes latents of it, or the folder of a prepared store.

    `expected` describes the store while it is missing; only a run needs the store itself. `held_out` is the share of every class
    that is kept for validation. With `flip`, half of the training samples are shown as their mirror images.
    """

    source: Annotated[str, AfterValidator(_resolved)]
    codec: str | None = None
    expected: ExpectedData | None = None
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    flip: bool = False
