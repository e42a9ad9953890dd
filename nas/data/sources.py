"""What a study's `data.source` names: data sets that the package carries, and prepared stores in folders."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import VAE_PREFIX, Codec, Shape
from nas.data.codecs import codec_named, placed
from nas.data.header import Header
from nas.data.idx import read_idx
from nas.data.settings import EMBEDDED_NAMES, DataSettings
from nas.data.store import Split, Store, open_store, pixel_store, read_header
from space.document import nearest
from space.errors import DataError


@dataclass(frozen=True)
class Embedded:
    """A data set that the package carries; `image_shape` is known before anything is read."""

    image_shape: Shape
    class_names: tuple[str, ...]
    read: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64]]]


@dataclass(frozen=True)
class DataSet:
    """What a study trains and validates on."""

    train: Split
    validation: Split

    @property
    def store(self) -> Store:
        """Where both come from."""
        return self.train.store


def is_absent(settings: DataSettings) -> bool:
    """Whether the source of a study is not on this machine."""
    return settings.source not in EMBEDDED and not Path(settings.source).is_dir()


def header_of(settings: DataSettings) -> Header:
    """What the source of a study holds, without reading its samples.

    Raises:
        DataError: When there is no such source and nothing is `expected` of it, or it holds something else than is expected or
            than its codec makes.
    """
    if settings.expected and is_absent(settings):
        header = settings.expected.header(settings.source)
    else:
        header = _header(settings.source, settings.codec)
        check_content(header, settings.source)
        if settings.expected:
            settings.expected.check(header, settings.source)
    if not header.codec.startswith(VAE_PREFIX):
        # A VAE's code takes long to import, so its latents are checked with the data.
        codec_named(header.codec).check_latents(header.shape)
    return header


def check_content(header: Header, source: str) -> None:
    """Raises DataError when a store holds what its codec does not make: pixels of a VAE, or moments of pixels."""
    if header.content == ("pixels" if header.codec.startswith(VAE_PREFIX) else "moments"):
        raise DataError(f"{source} holds {header.content}, which {header.codec} does not make; prepare the store again")


def open_data(settings: DataSettings) -> DataSet:
    """The data of a study, split; raises DataError when they are missing or damaged."""
    return load_data(settings.source, settings.codec, settings.held_out)


def _header(source: str, codec: str | None) -> Header:
    """What a source holds; raises DataError when there is none, or it has another codec."""
    if source in EMBEDDED:
        origin, coder = EMBEDDED[source], _chosen(source, codec)
        shape = coder.latent_shape(origin.image_shape)
        facts = {"samples": 0, "shape": shape, "content": "pixels", "dtype": "uint8", "source": source}
        return Header(**facts, codec=coder.name, class_names=origin.class_names)
    folder = Path(source)
    if not folder.is_dir():
        # A word without a slash was meant as a name; a name of the package comes near.
        raise DataError(f"no data source '{folder.name}'{nearest(folder.name, list(EMBEDDED))}, and no folder {folder}")
    header = read_header(folder)
    if codec is not None and codec.startswith(VAE_PREFIX) and header.codec.startswith(VAE_PREFIX):
        # The same VAE in another place: whether it is the same is checked, by its digest, when it is loaded.
        return header.model_copy(update={"codec": placed(codec)})
    if codec is not None and codec != header.codec:
        raise DataError(f"codec is {codec}, but the store {folder} holds {header.codec}; leave it out")
    return header


def load_store(source: str, codec: str | None) -> Store:
    """The store of a source; raises DataError when it is unknown, missing or damaged."""
    header = _header(source, codec)
    if source not in EMBEDDED:
        store = open_store(Path(source))
        return replace(store, header=store.header.model_copy(update={"codec": header.codec}))
    origin = EMBEDDED[source]
    images, labels = origin.read()
    if images.shape[1:] != origin.image_shape or set(np.unique(labels)) != set(range(len(origin.class_names))):
        raise DataError(
            f"{source} holds images {images.shape[1:]} with labels {np.unique(labels).tolist()}, but is declared in "
            f"nas/data/sources.py with {origin.image_shape} and {len(origin.class_names)} classes; correct what is declared"
        )
    return pixel_store(source, images, labels, codec_named(header.codec), header.class_names, source)


def load_data(source: str, codec: str | None, held_out: float = 0.1) -> DataSet:
    """A source, split.

    The split is fixed and stratified: of every class, each (1/held_out)-th sample in the source's order is held out (of shares
    that are no whole part, the nearest places). Raises DataError when the source is unknown, missing or damaged.
    """
    store = load_store(source, codec)
    out = _held_out(store.labels, held_out)
    return DataSet(train=Split(store, np.flatnonzero(~out)), validation=Split(store, np.flatnonzero(out)))


def _held_out(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """The mask (N,) of the samples with which the number held out of their class reaches the next whole one."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(first, counts)
    out = np.zeros(len(labels), dtype=bool)
    # The small number keeps 3 · 0.1 and its like from falling short of, or beyond, a whole number.
    reached, before = (np.floor(count * share + 1e-9) for count in (place + 1, place))
    out[order[reached > before]] = True
    return out


def share_for(labels: NDArray[np.int64], wanted: int) -> float | None:
    """The least share of every class, rounded up to four digits, that holds out `wanted` samples; None when 0.5 is too few."""
    counts = np.unique(labels, return_counts=True)[1]

    def enough(share: float) -> bool:
        return int(np.floor(counts * share + 1e-9).sum()) >= wanted

    shares = [number / 10_000 for number in range(1, 5_001)]
    place = bisect_left(shares, True, key=enough)
    return shares[place] if place < len(shares) else None


def _chosen(source: str, codec: str | None) -> Codec:
    if codec is None:
        raise DataError(f"{source} holds images; name a codec, such as pixel-unshuffle-2")
    return codec_named(codec)


def _fashion_mnist_10k() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 10,000 test images of Fashion-MNIST (Xiao et al., arXiv 1708.07747), padded from 28×28 to 32×32 with black."""
    folder = files("nas.data") / "fashion_mnist"
    pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    return np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None], labels.astype(np.int64)


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

EMBEDDED = {"fashion-mnist-10k": Embedded((1, 32, 32), CLOTHES, _fashion_mnist_10k)}

if EMBEDDED.keys() != set(EMBEDDED_NAMES):
    raise ImportError("EMBEDDED and nas.data.settings.EMBEDDED_NAMES name different data sets; add what one lacks")
