"""Sample metrics of a trial in training: FID and the others, of its averaged weights, with `evaluation.fid` as settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from nas.data.codecs import codec_of
from nas.data.feed import Feed
from nas.data.settings import DataSettings
from nas.data.sources import open_data
from nas.diffusion.prediction import Prediction
from nas.evaluation.evaluate import evaluate_model
from nas.evaluation.extractor import Extractor
from nas.evaluation.extractors import extractor_named
from nas.evaluation.reference import Reference, reference_of_split
from nas.study.study import Study
from space.model.network import Network


def scores(model: Network, study: Study, train: Feed, prediction: Prediction, bar: Callable[[int], None]) -> dict[str, float]:
    """Score a model's samples.

    Args:
        model: The averaged weights, in folded form.
        study: The study, with `evaluation.fid`.
        train: The training data.
        prediction: The model's prediction.
        bar: Called with the size of every batch of samples.

    Returns:
        The mean of every metric over the seeds of `evaluation.fid`.

    Raises:
        DataError: If there are too few samples, or the extractor is missing.
    """
    settings = study.evaluation.fid
    assert settings is not None
    extractor, reference = _judge(study.data, settings.extractor, train.device)
    # A codec of its own, so that a VAE is on the GPU no longer than it is needed.
    codec = codec_of(train.store.header.decoding)
    report = evaluate_model(model, codec, prediction, extractor, reference, settings, bar=bar)
    return {name: statistics["mean"] for name, statistics in report["metrics"].items()}


@lru_cache(maxsize=1)
def check_judge(data: DataSettings, name: str, device: torch.device) -> Extractor:
    """The extractor, kept for the next trial in the same process, after a check that samples can be decoded here.

    Raises:
        DataError: If the extractor or the VAE is missing or damaged on this machine.
    """
    store = open_data(data).train.store
    store.codec.decode(np.zeros((1, *store.header.shape), dtype=np.float32))
    return extractor_named(name, device=device)


@lru_cache(maxsize=1)
def _judge(data: DataSettings, name: str, device: torch.device) -> tuple[Extractor, Reference]:
    """The extractor and the reference of the training images, kept for the next trial in the same process."""
    extractor = check_judge(data, name, device)
    return extractor, reference_of_split(open_data(data).train, "train", extractor, device)
