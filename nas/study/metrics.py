"""The table of metrics: the better direction, unit, bounds and printed digits of each."""

from __future__ import annotations

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

SCORES = ("val_loss", "fid", "sfid", "inception_score", "precision", "recall", "kid")
"""The metrics that a trial can report at a rung, and that an ablation can compare."""


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
