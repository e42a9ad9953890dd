"""Judging generated images: every metric over several sets of samples, with all that is needed to repeat it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.codecs import codec_named
from nas.diffusion.generate import sample
from nas.diffusion.prediction import Prediction
from nas.diffusion.samplers import sampler_named
from nas.evaluation.adm import write_samples_npz
from nas.evaluation.extractor import Dimensions, Extractor
from nas.evaluation.images import to_pixels
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from nas.evaluation.reference import Collector, ImageFeatures, Reference
from nas.study.settings import FidSettings
from space.errors import DataError
from space.model.network import Network

BATCH = 128

Pixels = NDArray[np.uint8]


def judge(found: ImageFeatures, reference: ImageFeatures) -> dict[str, float]:
    """Every metric that two sets of features allow: a file of bare statistics has no precision, recall and KID."""
    values: dict[str, float] = {}
    assert found.pool is not None
    assert found.logits is not None
    assert found.rows is not None
    if reference.pool is not None:
        values["fid"] = fid(found.pool, reference.pool)
    if reference.spatial is not None and found.spatial is not None:
        values["sfid"] = fid(found.spatial, reference.spatial)
    values["inception_score"] = inception_score(found.logits)
    if reference.rows is not None:
        values["precision"], values["recall"] = precision_recall(reference.rows, found.rows)
        values["kid"] = kid(reference.rows, found.rows)
    return values


def drawn(
    model: Network,
    codec: str,
    prediction: Prediction,
    settings: FidSettings,
    seed: int,
    bar: Callable[[int], None] = lambda count: None,
) -> Iterator[Pixels]:
    """Images (n, C, H, W) uint8 of a model in eval mode, batch after batch; sample i is of class i modulo their number."""
    coder = codec_named(codec)
    for first in range(0, settings.samples, BATCH):
        count = min(BATCH, settings.samples - first)
        latents = sample(
            model,
            [(first + i) % model.spec.num_classes for i in range(count)],
            prediction=prediction,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance,
            guided_channels=coder.guided_channels,
            bound=coder.bound,
            seed=seed,
            first=first,
            batch_size=BATCH,
        )
        yield to_pixels(coder.decode(latents.numpy()))
        bar(count)


def noise(shape: tuple[int, int, int], count: int, seed: int) -> Iterator[Pixels]:
    """Images of uniform noise: what a metric gives when nothing was learned."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, BATCH):
        yield rng.integers(0, 256, (min(BATCH, count - first), *shape)).astype(np.uint8)


def check_count(samples: int, dimensions: Dimensions) -> None:
    """Raises DataError when so few samples would leave a covariance singular; told before anything is drawn."""
    need = max(dimensions.pool, dimensions.spatial) + 1
    if samples < need:
        raise DataError(f"{samples} samples are too few for a covariance of {need - 1} features; draw at least {need}")


def check(settings: FidSettings, prediction: Prediction, dimensions: Dimensions) -> None:
    """Raises ToolkitError for what would only be told after hours otherwise: too few samples, a sampler that does not fit."""
    check_count(settings.samples, dimensions)
    sampler_named(settings.sampler, prediction)


def collected(batches: Iterable[Pixels], extractor: Extractor, path: Path | None) -> ImageFeatures:
    """Features of the batches, which are written to a file in the ADM suite's format on their way when one is named."""
    collector = Collector(extractor)

    def passing() -> Iterator[Pixels]:
        for batch in batches:
            collector.add(batch)
            yield batch.transpose(0, 2, 3, 1)

    if path is None:
        deque(passing(), maxlen=0)
    else:
        write_samples_npz(passing(), path)
    return collector.features()


def evaluate_model(
    model: Network,
    codec: str,
    prediction: Prediction,
    extractor: Extractor,
    reference: Reference,
    settings: FidSettings,
    samples_folder: Path | None = None,
    bar: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Draw samples with every seed and judge them; a report as `metrics_report` gives it, with how they were drawn.

    `samples_folder` takes the samples as `seed-N.npz` in the ADM suite's format. Raises ToolkitError for settings that do not
    fit the model, and DataError for too few samples.
    """
    check(settings, prediction, extractor.dimensions)
    name, _ = sampler_named(settings.sampler, prediction)
    if samples_folder is not None:
        samples_folder.mkdir(parents=True, exist_ok=True)
    values = []
    for seed in settings.seeds:
        path = samples_folder / f"seed-{seed}.npz" if samples_folder is not None else None
        batches = drawn(model, codec, prediction, settings, seed, bar)
        values.append(judge(collected(batches, extractor, path), reference.features))
    sampling = {"sampler": name, "steps": settings.steps, "guidance": settings.guidance, "seeds": list(settings.seeds)}
    return {"sampling": sampling, **metrics_report(values, settings.samples, extractor, reference)}


def metrics_report(values: list[dict[str, float]], samples: int, extractor: Extractor, reference: Reference) -> dict[str, Any]:
    """Metrics with their mean, standard deviation (n - 1; null for one set) and single values, and what they were measured with."""
    metrics = {
        name: {
            "mean": statistics.fmean(one[name] for one in values),
            "sd": statistics.stdev(one[name] for one in values) if len(values) > 1 else None,
            "values": [one[name] for one in values],
        }
        for name in values[0]
    }
    return {
        "samples": samples,
        "metrics": metrics,
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "reference": {"source": reference.source, "images": reference.features.images, "digest": reference.digest},
    }
