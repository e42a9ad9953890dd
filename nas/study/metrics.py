"""The table of metrics: the better direction, unit, bounds and printed digits of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from space.errors import ToolkitError


@dataclass(frozen=True)
class Metric:
    """A number by which trials, samples or architectures are judged.

    `low` and `high` are its bounds; `digits` is the number of decimals in a table.
    """

    name: str
    better: Literal["lower", "higher"] | None
    """None for a cost: whether less of it is better is for its user to say."""
    unit: str = ""
    low: float = 0.0
    high: float = inf
    digits: int = 4


_ALL = (
    Metric("val_loss", "lower"),
    Metric("train_loss", "lower"),
    Metric("fid", "lower", digits=2),
    # Extrapolated, so it can be below 0.
    Metric("fid_infinity", "lower", low=-inf, digits=2),
    Metric("sfid", "lower", digits=2),
    # The estimate is unbiased, so it can be below 0.
    Metric("kid", "lower", low=-inf),
    Metric("precision", "higher", high=1.0),
    Metric("recall", "higher", high=1.0),
    Metric("inception_score", "higher", low=1.0, digits=2),
    Metric("is", "higher", low=1.0, digits=2),
    Metric("step_seconds", "lower", "s"),
    Metric("images_per_s", "higher", "images/s", digits=0),
    Metric("gflops", None, "multiply-accumulates / 1e9, folded, batch 1"),
    Metric("train_gflops", None, "multiply-accumulates / 1e9, one training sample"),
    Metric("params_m", None, "million parameters, folded", digits=3),
    Metric("peak_memory_mib", None, "MiB", digits=0),
)
METRICS = {metric.name: metric for metric in _ALL}

SCORES = ("val_loss", "fid", "fid_infinity", "sfid", "inception_score", "precision", "recall", "kid")
"""The metrics that a trial can report at a rung, and that an ablation can compare; `Objective` has those that a search can."""

ORDERED_FROM, EXTRAPOLATED_FROM = 20, 4
"""Samples per feature, by rules of thumb: fewer do not order models by FID, and from fewer FID∞ is not extrapolated."""


def biased_order(count: int, features: Mapping[str, int], what: str = "samples") -> str:
    """A warning where images are too few to order models by a Fréchet distance; empty where they are enough.

    The distance is too high by about c/N at N samples, and c grows with the spread of the model's own samples, so that equal
    numbers of samples favour a model with too little spread.

    Args:
        count: The number of images N.
        features: The number of features of each distance.
        what: The images.

    >>> biased_order(1000, {"fid": 64})[:44]
    '1,000 samples are too few to order models by'
    >>> biased_order(1280, {"fid": 64})
    ''
    """
    few = {metric: ORDERED_FROM * each for metric, each in features.items() if count < ORDERED_FROM * each}
    if not few:
        return ""
    enough = " and ".join(f"{metric} (at least {needed:,})" for metric, needed in few.items())
    return (
        f"{count:,} {what} are too few to order models by {enough}: below {ORDERED_FROM} a feature the bias differs "
        "between models, so that an order may be wrong at equal numbers too; compare by kid, which is unbiased"
    )


def metric_named(name: str) -> Metric | None:
    """The metric of a name, which the loss of a bin of timesteps such as `val_loss_bin_0` shares; None for an unknown one."""
    return next((METRICS[known] for known in ("val_loss", "train_loss") if name.startswith(known)), METRICS.get(name))


def lower_is_better(name: str) -> bool:
    """Whether lower values of a metric are better; raises ToolkitError for an unknown metric.

    >>> lower_is_better("val_loss"), lower_is_better("precision")
    (True, False)
    """
    metric = metric_named(name)
    if metric is None or metric.better is None:
        lower, higher = (", ".join(known.name for known in _ALL if known.better == way) for way in ("lower", "higher"))
        raise ToolkitError(
            f"whether less of '{name}' is better is not known; less is better of {lower}, more is better of {higher}"
        )
    return metric.better == "lower"
