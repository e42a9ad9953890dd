"""The contract of a feature extractor, and the helpers that all extractors share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from space.errors import DataError
from space.files import first_line

PixelInput = NDArray[np.uint8] | Tensor
"""Images uint8 (N, C, H, W), 0 to 255, with C = 3, or 1 for grey."""


class Features(NamedTuple):
    """The outputs that the metrics need of N images, float32."""

    pool: NDArray[np.float32]
    """(N, D): averaged over positions, for FID, KID, precision and recall."""
    spatial: NDArray[np.float32]
    """(N, S): an earlier layer with its positions kept, channels last, for sFID."""
    logits: NDArray[np.float32]
    """(N, K): the classes' scores before the softmax, for the inception score."""


class Dimensions(NamedTuple):
    """The numbers D, S and K of `Features`."""

    pool: int
    spatial: int
    logits: int


class Extractor(Protocol):
    """A frozen network that maps images to features."""

    @property
    def name(self) -> str:
        """The name that a study uses."""

    @property
    def digest(self) -> str:
        """SHA-256 of name, preprocessing and weights; features are comparable only when their extractors' digests are equal."""

    @property
    def dimensions(self) -> Dimensions:
        """The numbers of features per image."""

    def __call__(self, images: PixelInput) -> Features:
        """The features of images uint8 (N, C, H, W), any N; raises DataError for images that it does not accept."""


def usable(device: str | torch.device) -> torch.device:
    """The device of a name; raises DataError when this machine or this build of torch does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise DataError(f"device '{device}' cannot be used ({reason}); take cpu, or cuda where there is a GPU") from None


def checked_pixels(images: PixelInput) -> Tensor:
    """The images as a tensor; raises DataError unless they are uint8 (N, 1 or 3, H, W)."""
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8" or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"images to take features of must be uint8 (N, 1 or 3, H, W), 0 to 255, not {dtype} {tuple(images.shape)}")
    # torch cannot share the memory of a mirrored or a read-only array; such arrays are copied.
    return torch.from_numpy(np.require(images, requirements=["C", "W"])) if isinstance(images, np.ndarray) else images


@torch.inference_mode()
def in_batches(
    network: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    pixels: Tensor,
    batch_size: int,
    device: torch.device,
    dimensions: Dimensions,
) -> Features:
    """The features of uint8 pixels (N, C, H, W), computed batch by batch in float32.

    Args:
        network: Maps pixels to pool, spatial and logits; in eval mode.
        pixels: The images, on any device.
        batch_size: Images per batch.
        device: The network's device.
        dimensions: The numbers of features per image.
    """
    outputs = [np.empty((len(pixels), count), dtype=np.float32) for count in dimensions]
    # The caller may use reduced precision, on which a metric must not depend.
    with _exact_convolutions(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            for output, values in zip(outputs, network(pixels[part].to(device)), strict=True):
                output[part] = values.float().cpu().numpy()
    return Features(*outputs)


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Convolutions without TF32, torch's default on a GPU, which keeps only 10 bits of the fraction."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def digest_of(name: str, preprocessing: int, weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of an extractor's name, version of its preprocessing, and named weights in any order."""
    digest = hashlib.sha256(f"{name}/{preprocessing}".encode())
    for key, value in sorted(weights.items()):
        digest.update(f"/{key}/{value.dtype}/{tuple(value.shape)}/".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
