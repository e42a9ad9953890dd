"""The features of real images, with which generated images are compared, and the cache that keeps them between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nas.data.codec import VAE_PREFIX
from nas.data.feed import Feed
from nas.data.store import Split
from nas.evaluation.adm import count_images, read_reference_npz, stream_images
from nas.evaluation.extractor import Extractor
from nas.evaluation.images import Pixels, to_pixels
from nas.evaluation.statistics import FeatureStatistics, Moments
from space.errors import DataError, ToolkitError
from space.files import cache_folder, replace_file

MANIFOLD_IMAGES = 10_000
"""Precision and recall use at most this many real images, the number in the ADM suite's reference batches."""

BATCH = 256


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of a set of images: statistics of pooled and spatial features, and per image the pooled features and the logits.

    A field is None when its source, such as a file of bare statistics, does not have it.
    """

    pool: Moments | None
    spatial: Moments | None
    rows: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    images: int | None


@dataclass(frozen=True, eq=False)
class Reference:
    """The features of real images and their source; equal digests mean equal numbers."""

    features: ImageFeatures
    source: str
    digest: str
    kept: bool
    """Whether the features were found in the cache."""


class Collector:
    """Computes features of images batch by batch, without keeping the images.

    Args:
        extractor: The feature extractor.
        every: With `every=k`, as for a reference, keep the pooled features of every k-th image only, and no logits.
    """

    def __init__(self, extractor: Extractor, every: int | None = None) -> None:
        self.extractor, self.every = extractor, every
        self._pool, self._spatial = FeatureStatistics(), FeatureStatistics()
        self._rows: list[NDArray[np.float32]] = []
        self._logits: list[NDArray[np.float32]] = []

    def add(self, batch: Pixels) -> None:
        """Add images (n, C, H, W) uint8."""
        features, seen = self.extractor(batch), self._pool.count
        self._pool.update(features.pool)
        self._spatial.update(features.spatial)
        if self.every is None:
            self._rows.append(features.pool)
            self._logits.append(features.logits)
        else:
            self._rows.append(features.pool[-seen % self.every :: self.every])

    def features(self) -> ImageFeatures:
        """The features of all images so far; raises DataError when there are none."""
        if not self._pool.count:
            raise DataError("there are no images to take features of")
        pool, spatial = (Moments(s.mean, s.covariance, s.count) for s in (self._pool, self._spatial))
        logits = np.concatenate(self._logits) if self.every is None else None
        return ImageFeatures(pool, spatial, np.concatenate(self._rows), logits, pool.count)


def features_of(batches: Iterable[Pixels], extractor: Extractor, every: int | None = None) -> ImageFeatures:
    """Features of images (n, C, H, W) uint8 that arrive in batches; `every` as in `Collector`."""
    collector = Collector(extractor, every)
    for batch in batches:
        collector.add(batch)
    return collector.features()


def _thinned(images: int) -> int:
    """The k for which every k-th of the images makes at most `MANIFOLD_IMAGES`."""
    return -(-images // MANIFOLD_IMAGES)


def images_of(split: Split, device: torch.device) -> Iterator[Pixels]:
    """The images of a split, in its order; a pixel codec gives them exactly, a VAE as it decodes the mean of their latents."""
    feed, codec = Feed(split, device, resident=False), split.store.codec
    for first in range(0, len(feed), BATCH):
        latents = feed.latents(torch.arange(first, min(first + BATCH, len(feed))))
        yield to_pixels(codec.decode(latents.cpu().numpy()))


def reference_of_split(
    split: Split, which: str, extractor: Extractor, device: torch.device, cache: Path | None = None
) -> Reference:
    """The features of a split's images, from the cache if they are there.

    Args:
        split: The real images.
        which: The name of the split, for the report.
        extractor: The feature extractor.
        device: The device on which latents are gathered.
        cache: The folder of the cache; by default `reference` in the user's cache folder.
    """
    samples = hashlib.sha256(split.samples.tobytes()).hexdigest()
    header = split.store.header
    # Images of a VAE's latents depend on the VAE that decodes them, wherever the latents lie.
    decoding = (header.decoding.model_dump_json(),) if header.codec.startswith(VAE_PREFIX) else ()
    digest = _digest(extractor, header.checksum, samples, *decoding)
    source = f"{split.store.name}, {which}"
    return _kept(digest, source, cache, lambda: features_of(images_of(split, device), extractor, _thinned(len(split))))


def reference_of_file(path: Path, extractor: Extractor, cache: Path | None = None) -> Reference:
    """The statistics in a reference batch of the ADM suite, or the features of its images.

    Statistics in the file are of the suite's Inception network, so no other extractor can use them.

    Args:
        path: The .npz file.
        extractor: The feature extractor.
        cache: The folder of the cache; by default `reference` in the user's cache folder.

    Raises:
        DataError: The file is missing or damaged, or its statistics are another extractor's.
    """
    statistics = read_reference_npz(path, images=False)
    with path.open("rb") as file:
        digest = _digest(extractor, hashlib.file_digest(file, "sha256").hexdigest())

    def compute() -> ImageFeatures:
        return features_of(images_in(path), extractor, _thinned(count_images(path)))

    if statistics.pooled is None:
        return _kept(digest, str(path), cache, compute)
    if extractor.name != "inception":
        raise DataError(f"{path} holds statistics of Inception's features, which {extractor.name}'s cannot be compared with")
    rows = images = None
    if count_images(path):
        features = _kept(digest, str(path), cache, compute).features
        rows, images = features.rows, features.images
    return Reference(ImageFeatures(statistics.pooled, statistics.spatial, rows, None, images), str(path), digest, kept=False)


def images_in(path: Path) -> Iterator[Pixels]:
    """The images of a file in the ADM suite's format as (n, 3, H, W); raises DataError when it holds none."""
    for batch in stream_images(path, BATCH):
        yield np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def _digest(extractor: Extractor, *parts: str) -> str:
    return hashlib.sha256("/".join(("2", extractor.digest, *parts)).encode()).hexdigest()


def _kept(digest: str, source: str, cache: Path | None, compute: Callable[[], ImageFeatures]) -> Reference:
    """The reference from the cache, or computed and put there; without a usable cache it is computed every time."""
    try:
        path = (cache or cache_folder("reference")) / f"{digest}.safetensors"
    except ToolkitError:
        return Reference(compute(), source, digest, kept=False)
    try:
        tensors = load_file(path)
        return Reference(_unpacked(tensors), source, digest, kept=True)
    except (OSError, SafetensorError, KeyError):
        features = compute()
    with suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(save(_packed(features)))
    return Reference(features, source, digest, kept=False)


def _packed(features: ImageFeatures) -> dict[str, NDArray[Any]]:
    assert features.pool is not None
    assert features.spatial is not None
    assert features.rows is not None
    return {
        "mu": features.pool.mean,
        "sigma": features.pool.covariance,
        "mu_s": features.spatial.mean,
        "sigma_s": features.spatial.covariance,
        "rows": features.rows,
        "images": np.array(features.images),
    }


def _unpacked(tensors: dict[str, NDArray[Any]]) -> ImageFeatures:
    images = int(tensors["images"])
    pool, spatial = (
        Moments(tensors[mean], tensors[covariance], images) for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s"))
    )
    return ImageFeatures(pool, spatial, tensors["rows"], None, images)
