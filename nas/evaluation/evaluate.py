"""Evaluation of generated images: all metrics over several sets of samples, with all facts that are needed to repeat it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.data.codec import Codec
from nas.diffusion.generate import sample
from nas.diffusion.prediction import Prediction
from nas.diffusion.samplers import sampler_named
from nas.evaluation.adm import write_samples_npz
from nas.evaluation.extractor import Dimensions, Extractor
from nas.evaluation.extrapolation import fid_infinity
from nas.evaluation.images import Pixels, to_pixels
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from nas.evaluation.reference import Collector, ImageFeatures, Reference
from nas.study.metrics import EXTRAPOLATED_FROM, biased_order
from nas.study.settings import FidSettings
from space.errors import DataError
from space.model.network import Network

BATCH = 128


class Judged(NamedTuple):
    """The metrics of one set of images, and the standard errors over such sets of those that have one."""

    values: dict[str, float]
    standard_errors: dict[str, float]


def judge(
    generated: ImageFeatures,
    reference: ImageFeatures,
    classes: NDArray[np.int64] | None = None,
    bar: Callable[[int], None] = lambda count: None,
) -> Judged:
    """All metrics that two sets of features allow: bare statistics have no precision, recall and KID, few images no FID∞.

    Args:
        generated: The generated images' features.
        reference: The real images' features.
        classes: The classes of the generated images (N,), where their numbers were given beforehand; None for independent images.
        bar: Called with 0 after each metric, as those of 50,000 images take minutes.
    """
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    assert generated.pool is not None
    assert generated.logits is not None
    assert generated.rows is not None
    if reference.pool is not None:
        values["fid"] = fid(generated.pool, reference.pool)
        bar(0)
        if len(generated.rows) >= EXTRAPOLATED_FROM * generated.rows.shape[1]:
            values["fid_infinity"], errors["fid_infinity"] = fid_infinity(generated.rows, reference.pool, classes)
            bar(0)
    if reference.spatial is not None and generated.spatial is not None:
        values["sfid"] = fid(generated.spatial, reference.spatial)
        bar(0)
    values["inception_score"] = inception_score(generated.logits)
    if reference.rows is not None:
        values["precision"], values["recall"] = precision_recall(reference.rows, generated.rows)
        bar(0)
        values["kid"] = kid(reference.rows, generated.rows, classes)
    return Judged(values, errors)


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
        bar: Called after each batch with the number of its images, and after each metric with 0.

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
    sets, classes = [], np.arange(settings.samples) % model.spec.num_classes
    for seed in settings.seeds:
        path = samples_folder / f"seed-{seed}.npz" if samples_folder is not None else None
        batches = drawn(model, codec, prediction, settings, seed, bar)
        sets.append(judge(collected(batches, extractor, path), reference.features, classes, bar))
    sampling = {"sampler": name, "steps": settings.steps, "guidance": settings.guidance, "seeds": list(settings.seeds)}
    over = f"{len(sets)} sampling seeds of one training, not over trainings"
    return {"sampling": sampling, **metrics_report(sets, settings.samples, extractor, reference, over)}


def metrics_report(sets: list[Judged], samples: int, extractor: Extractor, reference: Reference, over: str = "") -> dict[str, Any]:
    """The report of an evaluation.

    Args:
        sets: The metrics of each set of samples.
        samples: Images per set.
        extractor: The feature extractor.
        reference: The real images' features.
        over: What several sets differ in, over which their standard deviation is.

    Returns:
        Each metric's mean, standard deviation (n - 1; None for one set), values, and standard errors where it has them; what the
        standard deviation is over (None for one set); notes on what the numbers do not say; the extractor and the reference.
    """
    summaries: dict[str, dict[str, Any]] = {}
    for name in sets[0].values:
        values = [found.values[name] for found in sets]
        sd = statistics.stdev(values) if len(values) > 1 else None
        summaries[name] = {"mean": statistics.fmean(values), "sd": sd, "values": values}
        if name in sets[0].standard_errors:
            summaries[name]["standard_errors"] = [found.standard_errors[name] for found in sets]
    return {
        "samples": samples,
        "metrics": summaries,
        "sd_over": over if len(sets) > 1 else None,
        "notes": _notes(samples, extractor.dimensions, reference.features, summaries),
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "reference": {"source": reference.source, "images": reference.features.images, "digest": reference.digest},
    }


def _notes(samples: int, dimensions: Dimensions, reference: ImageFeatures, measured: Container[str]) -> list[str]:
    """What few samples or few real images do to Fréchet distances; nothing where they are enough."""
    counts = {"fid": dimensions.pool, "sfid": dimensions.spatial}
    features = {name: count for name, count in counts.items() if name in measured}
    notes = [biased_order(samples, features)]
    if reference.pool is not None and reference.pool.count is not None:
        notes.append(biased_order(reference.pool.count, features, "real images"))
    if "fid" in measured and "fid_infinity" not in measured:
        notes.append(f"fid_infinity is not measured: it needs at least {EXTRAPOLATED_FROM * dimensions.pool:,} samples")
    return [note for note in notes if note]
