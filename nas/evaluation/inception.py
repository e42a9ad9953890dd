"""InceptionV3 with the weights of FID, from the optional package torch-fidelity, in the conventions of the ADM suite.

The suite (Dhariwal & Nichol 2021, `evaluations/evaluator.py` of openai/guided-diffusion) runs TensorFlow's graph of 2015-12-05:
images are resized to 299×299 as TensorFlow 1 did and scaled by (x - 128) / 128; torch-fidelity does the same. A weights file is
never unpickled, whatever its source.
"""

from __future__ import annotations

import importlib
import pickle
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.evaluation.extractor import Dimensions, Features, PixelInput, checked_pixels, digest_of, in_batches
from space.errors import DataError, RunError
from space.files import first_line
from space.official.checkpoints import read

SPATIAL_CHANNELS = 7
"""The suite keeps the first 7 of 192 channels, whose 7·17·17 = 2,023 numbers are about as many as the 2,048 pooled ones."""

PREPROCESSING = 1
"""Increases when the treatment of pixels changes, so that cached statistics are not compared with new ones."""

BATCH = 32
DIMENSIONS = Dimensions(pool=2048, spatial=SPATIAL_CHANNELS * 17 * 17, logits=1008)

# torch-fidelity's names. `logits_unbiased` is pool · fc.weightᵀ: the suite multiplies the pooled features by the input of
# `softmax/logits/MatMul`, never adds softmax/biases, and takes the softmax over all 1,008 columns, also those of no
# ImageNet class.
_OUTPUTS = ["2048", "logits_unbiased"]
_WANTED = "give torch-fidelity's weights-inception-2015-12-05-6726825d.pth or a safetensors file of the same tensors"


class Inception:
    """The extractor `inception`, for images of any size; grey images are repeated to three channels.

    Args:
        weights: A local file of weights. Without it, torch-fidelity's published file is downloaded once, into torch.hub's folder.
        device: The device to run on; the CPU by default.

    Raises:
        DataError: The package is not installed, the download fails, or the file is missing, damaged, pickled or of other shapes.
    """

    name = "inception"
    dimensions = DIMENSIONS

    def __init__(self, weights: Path | None = None, device: torch.device | None = None) -> None:
        module = _torch_fidelity()
        tensors = _downloaded(module.URL_INCEPTION_V3) if weights is None else _read(Path(weights))
        source = "the downloaded file" if weights is None else str(weights)
        self.network = _network(module.FeatureExtractorInceptionV3, tensors, source)
        # Only some files have batch counters, and these do not affect the features.
        parameters = {name: value for name, value in self.network.state_dict().items() if value.is_floating_point()}
        self.digest = digest_of(self.name, PREPROCESSING, parameters)
        self._device = device or torch.device("cpu")
        self.network.to(self._device)

    def __call__(self, images: PixelInput) -> Features:
        """Features of images uint8 (N, 1 or 3, H, W); raises DataError for others."""
        pixels = checked_pixels(images)
        if 0 in pixels.shape[2:]:
            raise DataError(f"images to take features of have {pixels.shape[2]}×{pixels.shape[3]} pixels; give at least 1×1")
        return in_batches(self._forward, pixels, BATCH, self._device, self.dimensions)

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pool (N, 2048), spatial (N, 2023) and logits (N, 1008)."""
        maps: list[Tensor] = []
        # This is the suite's `mixed_6/conv:0`. TensorFlow numbers the blocks mixed, mixed_1 … where torch-fidelity has Mixed_5b,
        # Mixed_5c …, so mixed_6 is Mixed_6d, and the `conv` directly in it, not in a `tower`, is the branch of one 1×1
        # convolution. The graph's nodes run conv/Conv2D, conv/batchnorm, conv/CheckNumerics, conv/control_dependency,
        # conv: the plain name is the last of them and the next layer's input, which is the output of the ReLU. BasicConv2d
        # returns the same, after batch norm and ReLU; the convolution alone would be `mixed_6/conv/Conv2D:0`.
        # (Blocks: torch-fidelity's util_convert_inception_weights and guided-diffusion issue 109.)
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, output: maps.append(output))
        try:
            pool, logits = self.network(pixels.expand(-1, 3, -1, -1))
        finally:
            hook.remove()
        # TensorFlow's maps are (N, H, W, C), and the suite flattens them in that order.
        return pool, maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1), logits


def _torch_fidelity() -> Any:
    """The module of the network. Its package imports torchvision for other extractors, so torchvision is needed too."""
    try:
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise DataError(
            f"extractor 'inception' needs torch-fidelity and torchvision ({first_line(error)}); "
            "install the extra: pip install 'udit-nas[inception]'"
        ) from None


def _downloaded(url: str) -> Mapping[str, Tensor]:
    try:
        return _tensors(torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True), url)
    except DataError:
        raise
    except pickle.UnpicklingError:
        raise DataError(f"the weights kept in {torch.hub.get_dir()} are no plain tensors; delete the file and try again") from None
    except Exception as error:  # no network, a full disk, another hash, or a damaged file from an earlier time
        raise DataError(
            f"the weights of InceptionV3 cannot be had from {url} ({first_line(error)}); download the file elsewhere and name it"
        ) from None


def _read(path: Path) -> Mapping[str, Tensor]:
    """The named tensors in a file of torch.save or safetensors, read without unpickling objects."""
    if not path.is_file():
        raise DataError(f"{path} is not there; {_WANTED}")
    try:
        return _tensors(read(path), str(path))
    except RunError as error:
        raise DataError(f"{error}; {_WANTED}") from None


def _tensors(loaded: object, source: str) -> Mapping[str, Tensor]:
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{source} holds no mapping of names to tensors; {_WANTED}")
    return {str(name): value.detach().clone() for name, value in loaded.items()}


def _network(network_class: Any, tensors: Mapping[str, Tensor], source: str) -> Any:
    """The network with these weights, in eval mode."""
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity unpickles its file, so it is given a file of plain tensors that is written here.
        plain = Path(folder) / "weights.pth"
        try:
            torch.save(dict(tensors), plain)
        except (OSError, RuntimeError) as error:
            reason = first_line(error)
            raise DataError(f"the weights of InceptionV3 cannot be written to {folder} ({reason}); free some space") from None
        try:
            return network_class(Inception.name, list(_OUTPUTS), feature_extractor_weights_path=str(plain))
        except RuntimeError as error:
            # The second line of the message is the first mismatch; it may name hundreds of tensors.
            mismatch = str(error).strip().splitlines()[1:2] or [str(error)]
            reason = textwrap.shorten(mismatch[0], 150, placeholder=" …")
            raise DataError(f"{source} does not fit InceptionV3 ({reason}); {_WANTED}") from None
