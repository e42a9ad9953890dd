"""A small classifier of Fashion-MNIST, whose features judge generated clothes better than ImageNet's would.

Its 64 pooled features need only a few hundred images for a covariance. The shipped weights, trained by
`nas.evaluation.train_clothes`, classify 92.21 % of the 10,000 test images correctly.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nas.evaluation.extractor import Dimensions, Features, PixelInput, checked_pixels, digest_of, in_batches
from space.errors import DataError

SIZE = 32
"""28×28 pixels, padded by 2 black pixels on each side, as in the embedded data."""

CLASSES = 10
SPATIAL_CHANNELS = 8
"""The first few channels, as in ADM's sFID: 8 channels on 4×4 positions, far fewer numbers than samples."""

PREPROCESSING = 1
"""Increases when the treatment of pixels changes, so that cached statistics are not compared with new ones."""

BATCH = 500
DIMENSIONS = Dimensions(pool=64, spatial=SPATIAL_CHANNELS * 4 * 4, logits=CLASSES)
_WIDTHS = ((1, 32, 2), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 64, 1))
"""Channels in, channels out and stride of the 3×3 convolutions: 32×32 → 16×16 → 8×8 → 8×8 → 4×4 → 4×4."""

_SPATIAL_BLOCK = 3


class ClothesNetwork(nn.Module):
    """Five convolutions with SiLU, which leaves no feature dead, and a linear classifier.

    With `batch_norm`, batch normalisation follows each convolution, for training; the shipped weights have it folded in.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1, bias=not batch_norm) for i, o, stride in _WIDTHS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if batch_norm else nn.Identity() for _, o, _ in _WIDTHS)
        self.classifier = nn.Linear(DIMENSIONS.pool, CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pool (N, 64), spatial (N, 128) and logits (N, 10) of pixels (N, 1, 32, 32) in 0..255."""
        x, spatial = pixels.float() / 127.5 - 1, None
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = nn.functional.silu(norm(conv(x)))
            if number == _SPATIAL_BLOCK:
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        assert spatial is not None
        pool = x.mean(dim=(2, 3))
        return pool, spatial, self.classifier(pool)


class Clothes:
    """The extractor `clothes`, for grey images of 32×32, also when stored as colour images.

    Args:
        weights: A safetensors file in place of the shipped weights.
        device: The device to run on; the CPU by default.

    Raises:
        DataError: The file of weights is missing, damaged or of other shapes.
    """

    name = "clothes"
    dimensions = DIMENSIONS

    def __init__(self, weights: Path | None = None, device: torch.device | None = None) -> None:
        self.network = ClothesNetwork().eval().requires_grad_(False)
        if weights is None:
            with as_file(files("nas.evaluation") / "clothes.safetensors") as shipped:
                _load(self.network, shipped)
        else:
            _load(self.network, Path(weights))
        self.digest = digest_of(self.name, PREPROCESSING, self.network.state_dict())
        self._device = device or torch.device("cpu")
        self.network.to(self._device)

    def __call__(self, images: PixelInput) -> Features:
        """Features of images uint8 (N, 1, 32, 32), or (N, 3, 32, 32) with equal channels; raises DataError for others."""
        pixels = checked_pixels(images)
        height, width = pixels.shape[2:]
        if (height, width) != (SIZE, SIZE):
            raise DataError(
                f"extractor 'clothes' takes images of {SIZE}×{SIZE} pixels, not {height}×{width}; use 'inception' for others"
            )
        grey = pixels[:, :1]
        if not bool((pixels == grey).all()):
            raise DataError("extractor 'clothes' takes grey images, but these have colours; use 'inception' for them")
        return in_batches(self.network, grey, BATCH, self._device, self.dimensions)


def _load(network: ClothesNetwork, path: Path) -> None:
    remedy = "give a file that `python -m nas.evaluation.train_clothes` wrote"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} is not there; {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({error}); {remedy}") from None
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if given != expected:
        name = next(name for name in sorted(expected.keys() | given.keys()) if given.get(name) != expected.get(name))
        shape, wanted = given.get(name, "missing"), expected.get(name, "expected")
        raise DataError(f"{path} does not fit: {name} is {shape}, not {wanted}; {remedy}")
    network.load_state_dict(tensors)
