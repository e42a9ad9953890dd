"""A reader that encodes labelled images for a store, with a VAE or a pixel codec, and with mirror images when asked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import Codec
from nas.data.codecs import record_of
from nas.data.header import Header
from nas.data.pictures import Pictures, Pixels
from nas.data.store import latent_shape
from nas.data.vae import Vae


def _encoding_facts(codec: Codec) -> str:
    """A VAE's precision and weights, which moments depend on: a preparation resumes only when both are unchanged."""
    return f", {codec.precision}, VAE {codec.weights_digest[:8]}" if isinstance(codec, Vae) else ""


class EncodedImages:
    """The reader that encodes images, to a VAE's moments (mean, log-variance) or to pixels in a pixel codec's layout.

    With `mirrored`, each image is followed by its mirror image, which training needs for flips: a VAE's latents of a mirrored
    image differ from its mirrored latents. The next images are decoded in a thread while the present ones are encoded.
    """

    def __init__(self, images: Pictures, codec: Codec, source: str, mirrored: bool = False, dtype: str = "float32") -> None:
        self._images, self._codec, self._mirrored = images, codec, mirrored
        shape = latent_shape(codec, np.empty((1, 3, images.size, images.size), np.uint8))
        moments, record = isinstance(codec, Vae), record_of(codec)
        self._facts: dict[str, Any] = {
            "shape": shape,
            "content": "moments" if moments else "pixels",
            "dtype": dtype if moments else "uint8",
            "codec": codec.name,
            "scale": record.scale,
            "shift": record.shift,
            "codec_digest": codec.digest if isinstance(codec, Vae) else "",
            "views": 2 if mirrored else 1,
            "class_names": (),
            "source": f"{source}{_encoding_facts(codec)}",
        }
        self._pool = ThreadPoolExecutor(1)
        self._coming: tuple[int, Future[Pixels]] | None = None

    @property
    def plan(self) -> Header:
        """The header, without class names and checksum; it has fewer samples once damaged images have been left out."""
        return Header.model_validate({**self._facts, "samples": len(self._images), "left_out": self._images.left_out})

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the images."""
        return self._images.labels

    def made_of(self, end: int) -> str:
        """SHA-256, in hexadecimal, of what tells the first `end` images from others."""
        return self._images.made_of(end)

    def leave_out(self, names: Sequence[str]) -> None:
        """Leave out the images of these names."""
        self._images.leave_out(names)

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encoded rows and labels of the images first … end - 1; fewer at the end, when damaged ones are left out."""
        pixels = self._decoded(first, end)
        labels = self._images.labels[first : first + len(pixels)]
        plan = self.plan
        if not len(pixels):
            return np.empty((0, *plan.rows_shape[1:]), plan.dtype), labels
        if self._mirrored:
            pixels = np.stack([pixels, pixels[..., ::-1]], axis=1).reshape(-1, *pixels.shape[1:])
        if isinstance(self._codec, Vae):
            rows: NDArray[Any] = self._codec.moments(pixels).astype(plan.dtype)
        else:
            rows = self._codec.encode(pixels)
        return rows, labels

    def _decoded(self, first: int, end: int) -> Pixels:
        coming, self._coming = self._coming, None
        pixels = coming[1].result() if coming and coming[0] == first else None
        if pixels is None or len(pixels) != min(end, len(self._images)) - first:
            pixels = self._images.read(first, end)
        following = min(2 * end - first, len(self._images))
        if following > end:
            self._coming = end, self._pool.submit(self._images.read, end, following)
        return pixels

    def class_names(self) -> tuple[str, ...]:
        """The class names of the images."""
        return self._images.class_names
