"""Trains the weights of the extractor `clothes`: `python -m nas.evaluation.train_clothes IDX_FOLDER [--out FILE]`.

IDX_FOLDER holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, the 60,000 training images of Fashion-MNIST. The
10,000 test images, which the package carries, are used once, at the end. With one thread (OMP_NUM_THREADS=1) on an AMD EPYC
core the training takes about 6 minutes, and on one machine a seed always gives the same result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nas.data.idx import read_idx
from nas.evaluation.clothes import BATCH, SIZE, ClothesNetwork
from nas.rng import stream
from space.errors import DataError, ToolkitError
from space.files import replace_file

EPOCHS = 14
BATCH_SIZE = 128
PEAK_RATE = 4e-3
WEIGHT_DECAY = 0.01
SHIFT = 2
"""The largest shift of an image in each direction, in pixels: the width of its black border."""


def train_clothes(arguments: Sequence[str] | None = None) -> None:
    """Train, print the test accuracy, and write the weights with the facts about the training."""
    parser = argparse.ArgumentParser(prog="python -m nas.evaluation.train_clothes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="IDX_FOLDER", help="holds the IDX files of the training images and labels")
    parser.add_argument("--out", type=Path, default=Path("clothes.safetensors"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        images, labels = read_pair(options.folder, "train")
        network = folded(trained(images, labels, options.epochs, options.seed))
        correct = accuracy(network, *read_pair(files("nas.data") / "fashion_mnist", "t10k"))
    except ToolkitError as error:
        parser.error(str(error))
    print(f"test accuracy {correct:.4f}")
    facts = {
        "accuracy": f"{correct:.4f}",
        "epochs": str(options.epochs),
        "seed": str(options.seed),
        "training_images": str(len(images)),
    }
    with replace_file(options.out) as file:
        file.write(save(network.state_dict(), metadata=facts))


def read_pair(folder: Traversable, part: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 1, 32, 32) and labels int64 (N,) of one part of Fashion-MNIST.

    Args:
        folder: The folder of the IDX files.
        part: `train` or `t10k`.

    Raises:
        DataError: A file is missing, damaged or of another shape.
    """
    pixels: NDArray[np.uint8] = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1] or labels.max(initial=0) > 9:
        raise DataError(
            f"{folder}: images {pixels.shape} and labels {labels.shape} are not those of Fashion-MNIST; fetch them again"
        )
    border = (SIZE - 28) // 2
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border)))
    return torch.from_numpy(padded)[:, None], torch.from_numpy(labels.astype(np.int64))


def trained(images: Tensor, labels: Tensor, epochs: int, seed: int) -> ClothesNetwork:
    """A network trained with AdamW, one cycle of the learning rate, and mirrored and shifted images; in eval mode."""
    torch.manual_seed(seed)
    network = ClothesNetwork(batch_norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps * epochs, pct_start=0.2)
    for epoch in range(epochs):
        began, total = time.monotonic(), 0.0
        for pixels, y in batches(images, labels, epoch, seed):
            loss = nn.functional.cross_entropy(network(pixels)[2], y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: training loss {total / steps:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    network.eval()
    return network


def batches(images: Tensor, labels: Tensor, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once per epoch, half of them mirrored, each shifted by at most `SHIFT` pixels."""
    draw = stream(seed, "clothes", epoch)
    for rows in torch.randperm(len(images), generator=draw).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
        pixels = images[rows]
        mirrored = torch.rand(len(rows), generator=draw) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        yield shifted(pixels, torch.randint(-SHIFT, SHIFT + 1, (len(rows), 2), generator=draw)), labels[rows]


def shifted(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Images (N, 1, H, W), each moved down and right by its offsets (N, 2); pixels that leave, here black, enter opposite."""
    height, width = pixels.shape[2:]
    rows = (torch.arange(height) - offsets[:, :1]) % height
    columns = (torch.arange(width) - offsets[:, 1:]) % width
    return pixels[torch.arange(len(pixels))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def folded(network: ClothesNetwork) -> ClothesNetwork:
    """The same function without batch normalisation, in eval mode."""
    plain = ClothesNetwork()
    for number, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        plain.convs[number] = fuse_conv_bn_eval(conv, norm)
    plain.classifier.load_state_dict(network.classifier.state_dict())
    plain.eval().requires_grad_(False)
    return plain


@torch.inference_mode()
def accuracy(network: ClothesNetwork, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is their label's."""
    predicted = torch.cat([network(pixels)[2].argmax(1) for pixels in images.split(BATCH)])  # type: ignore[no-untyped-call]
    return (predicted == labels).float().mean().item()


if __name__ == "__main__":
    train_clothes()
