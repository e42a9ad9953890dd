"""A reader that encodes labelled images for a store, with a VAE or a pixel codec, and with mirror images when asked."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import Codec
from nas.data.header import Header
from nas.data.store import latent_shape
from nas.data.vae import Vae

Pixels = NDArray[np.uint8]


class Images(Protocol):
    """Labelled images of one size, addressed by number."""

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    digest: str
    size: int

    def __len__(self) -> int: ...

    def read(self, first: int, end: int) -> Pixels:
        """Images first … end - 1, (n, 3, size, size) uint8."""


def _encoding_facts(codec: Codec) -> str:
    """A VAE's precision and weights, which moments depend on: a preparation resumes only when both are unchanged."""
    return f", {codec.precision}, VAE {codec.digest[:8]}" if isinstance(codec, Vae) else ""


class EncodedImages:
    """The reader that encodes images, to a VAE's moments (mean, log-variance) or to pixels in a pixel codec's layout.

    With `mirrored`, each image is followed by its mirror image, which training needs for flips: a VAE's latents of a mirrored
    image differ from its mirrored latents. The next images are decoded in a thread while the present ones are encoded.
    """

    def __init__(self, images: Images, codec: Codec, source: str, mirrored: bool = False, dtype: str = "float32") -> None:
        self._images, self._codec, self._mirrored = images, codec, mirrored
        shape = latent_shape(codec, np.empty((1, 3, images.size, images.size), np.uint8))
        moments = isinstance(codec, Vae)
        self.plan = Header.model_validate(
            {
                "samples": len(images),
                "shape": shape,
                "content": "moments" if moments else "pixels",
                "dtype": dtype if moments else "uint8",
                "codec": codec.name,
                "scale": codec.scale if isinstance(codec, Vae) else 1.0,
                "views": 2 if mirrored else 1,
                "class_names": (),
                "source": f"{source} ({images.digest[:16]}{_encoding_facts(codec)})",
            }
        )
        self._pool = ThreadPoolExecutor(1)
        self._coming: tuple[int, int, Future[Pixels]] | None = None

    def read(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encoded rows and labels of the images first … end - 1."""
        pixels = self._decoded(first, end)
        if self._mirrored:
            pixels = np.stack([pixels, pixels[..., ::-1]], axis=1).reshape(-1, *pixels.shape[1:])
        if isinstance(self._codec, Vae):
            rows: NDArray[Any] = self._codec.moments(pixels).astype(self.plan.dtype)
        else:
            rows = self._codec.encode(pixels)
        return rows, self._images.labels[first:end]

    def _decoded(self, first: int, end: int) -> Pixels:
        coming, self._coming = self._coming, None
        pixels = coming[2].result() if coming and coming[:2] == (first, end) else self._images.read(first, end)
        following = min(2 * end - first, len(self._images))
        if following > end:
            self._coming = end, following, self._pool.submit(self._images.read, end, following)
        return pixels

    def class_names(self) -> tuple[str, ...]:
        """The class names of the images."""
        return self._images.class_names
