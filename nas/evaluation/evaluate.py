"""Evaluation of generated images: all metrics over several sets of samples, with all facts that are needed to repeat it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.codec import Codec
from nas.diffusion.generate import sample
from nas.diffusion.prediction import Prediction
from nas.diffusion.samplers import sampler_named
from nas.evaluation.adm import write_samples_npz
from nas.evaluation.extractor import Dimensions, Extractor
from nas.evaluation.images import Pixels, to_pixels
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from nas.evaluation.reference import Collector, ImageFeatures, Reference
from nas.study.settings import FidSettings
from space.errors import DataError
from space.model.network import Network

BATCH = 128


def judge(generated: ImageFeatures, reference: ImageFeatures) -> dict[str, float]:
    """All metrics that two sets of features allow: bare statistics have no precision, recall and KID.

    Args:
        generated: The generated images' features.
        reference: The real images' features.
    """
    values: dict[str, float] = {}
    assert generated.pool is not None
    assert generated.logits is not None
    assert generated.rows is not None
    if reference.pool is not None:
        values["fid"] = fid(generated.pool, reference.pool)
    if reference.spatial is not None and generated.spatial is not None:
        values["sfid"] = fid(generated.spatial, reference.spatial)
    values["inception_score"] = inception_score(generated.logits)
    if reference.rows is not None:
        values["precision"], values["recall"] = precision_recall(reference.rows, generated.rows)
        values["kid"] = kid(reference.rows, generated.rows)
    return values


def drawn(
    model: Network,
    codec: Codec,
    prediction: Prediction,
    settings: FidSettings,
    seed: int,
    bar: Callable[[int], None] = lambda count: None,
) -> Iterator[Pixels]:
    """Images (n, C, H, W) uint8 of a model in eval mode, batch by batch; sample i is of class i modulo the number of classes.

    Args:
        model: The model.
        codec: The codec of the model's latents.
        prediction: The prediction that the model was trained for.
        settings: The number of samples, and the sampler, its steps and its guidance.
        seed: The seed of the samples.
        bar: Called after each batch with the number of its images.
    """
    for first in range(0, settings.samples, BATCH):
        count = min(BATCH, settings.samples - first)
        latents = sample(
            model,
            [(first + i) % model.spec.num_classes for i in range(count)],
            prediction=prediction,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance,
            guided_channels=codec.guided_channels,
            bound=codec.bound,
            seed=seed,
            first=first,
            batch_size=BATCH,
        )
        yield to_pixels(codec.decode(latents.numpy()))
        bar(count)


def noise(shape: tuple[int, int, int], count: int, seed: int) -> Iterator[Pixels]:
    """Images of uniform noise, for the value that a metric has when nothing was learned."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, BATCH):
        yield rng.integers(0, 256, (min(BATCH, count - first), *shape)).astype(np.uint8)


def check_count(samples: int, dimensions: Dimensions) -> None:
    """Raise DataError, before anything is drawn, when the samples are too few for a covariance that is not singular."""
    need = max(dimensions.pool, dimensions.spatial) + 1
    if samples < need:
        raise DataError(f"{samples} samples are too few for a covariance of {need - 1} features; draw at least {need}")


def check(settings: FidSettings, prediction: Prediction, dimensions: Dimensions) -> None:
    """Raise ToolkitError for mistakes that would otherwise show after hours: too few samples, or a sampler that does not fit."""
    check_count(settings.samples, dimensions)
    sampler_named(settings.sampler, prediction)


def collected(batches: Iterable[Pixels], extractor: Extractor, path: Path | None) -> ImageFeatures:
    """Features of the batches, which are also written to a file in the ADM suite's format when `path` is given."""
    collector = Collector(extractor)

    def passed_on() -> Iterator[Pixels]:
        for batch in batches:
            collector.add(batch)
            yield batch.transpose(0, 2, 3, 1)

    if path is None:
        deque(passed_on(), maxlen=0)
    else:
        write_samples_npz(passed_on(), path)
    return collector.features()


def evaluate_model(
    model: Network,
    codec: Codec,
    prediction: Prediction,
    extractor: Extractor,
    reference: Reference,
    settings: FidSettings,
    samples_folder: Path | None = None,
    bar: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Draw samples with each seed and compute their metrics.

    Args:
        model: The model, in eval mode.
        codec: The codec of the model's latents.
        prediction: The prediction that the model was trained for.
        extractor: The feature extractor.
        reference: The real images' features.
        settings: The number of samples, the seeds, and the sampler with its steps and guidance.
        samples_folder: Receives the samples as `seed-N.npz` in the ADM suite's format; None keeps no samples.
        bar: Called after each batch with the number of its images.

    Returns:
        The report of `metrics_report`, with `sampling` for how the samples were drawn.

    Raises:
        DataError: There are too few samples.
        ToolkitError: The settings do not fit the model.
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
    """The report of an evaluation.

    Args:
        values: The metrics of each set of samples.
        samples: Images per set.
        extractor: The feature extractor.
        reference: The real images' features.

    Returns:
        Each metric's mean, standard deviation (n - 1; None for one set) and values, with the extractor and the reference.
    """
    summaries = {
        name: {
            "mean": statistics.fmean(metrics[name] for metrics in values),
            "sd": statistics.stdev(metrics[name] for metrics in values) if len(values) > 1 else None,
            "values": [metrics[name] for metrics in values],
        }
        for name in values[0]
    }
    return {
        "samples": samples,
        "metrics": summaries,
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "reference": {"source": reference.source, "images": reference.features.images, "digest": reference.digest},
    }
