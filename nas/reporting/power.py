"""Pooled SD of paired differences from earlier runs, for power estimates."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.runs.layout import LEDGER
from nas.runs.run import Run, final_value, read_run
from nas.stats.pairing import SeedCorrelation, seed_correlation
from nas.study.study import Study
from space.errors import ToolkitError


@dataclass(frozen=True)
class PooledSd:
    """The pooled standard deviation of the paired differences between architectures of a run."""

    sd: float
    run: str
    pairs: int
    """Degrees of freedom: the number of pairs, minus one per compared architecture."""
    seeds: SeedCorrelation | None = None
    """What the run's architectures have in common at a seed; None where no two have two seeds in common."""


def pooled_sd(root: Path, study: Study) -> PooledSd | None:
    """The pooled SD of paired differences, from the run under a run root that has the most pairs.

    Only runs with the same data, codec, prediction, batch size and budget as the study count: the SD depends on them. Every
    architecture is compared with the run's first one, seed by seed, at the last rung. The variances of the differences are pooled.

    Args:
        root: The run root, a folder of run directories.
        study: The study to plan.

    Returns:
        The pooled SD; None when no run qualifies.
    """
    candidates: list[PooledSd] = []
    checksum, metric = study.header.checksum, study.metric
    # Calibrations and confirmations have runs in their folders.
    ledgers = [*root.glob(f"*/{LEDGER}"), *root.glob(f"*/*/{LEDGER}")] if root.is_dir() else []
    for ledger in sorted(ledgers):
        with suppress(ToolkitError, OSError, ValueError, KeyError):
            run = read_run(ledger.parent)
            if run.data is not None and run.data.checksum == checksum and _comparable(run.study) == _comparable(study):
                pooled = _pooled(run, metric, ledger.parent.relative_to(root).as_posix())
                if pooled is not None:
                    candidates.append(pooled)
    return max(candidates, key=lambda pooled: pooled.pairs, default=None)


def _comparable(study: Study) -> tuple[object, ...]:
    """The settings on which the SD depends, besides the data."""
    training, budget = study.training, study.budget
    return study.data.codec, training.prediction, training.batch_size, budget.unit, budget.full


def _pooled(run: Run, metric: str, name: str) -> PooledSd | None:
    values: dict[str, dict[int, float]] = {}
    for trial in run.trials.values():
        value = final_value(trial, metric)
        if value is not None and run.study.training_of(trial).batch_size == run.study.training.batch_size:
            values.setdefault(trial.candidate, {})[trial.seed] = value
    if len(values) < 2:
        return None
    first, *others = values.values()
    squares, freedom = 0.0, 0
    for other in others:
        differences = np.array([other[seed] - first[seed] for seed in other if seed in first])
        # Differences that are all 0 come from a choice without effect and say nothing about the SD.
        if len(differences) > 1 and differences.any():
            squares += float(((differences - differences.mean()) ** 2).sum())
            freedom += len(differences) - 1
    if not freedom:
        return None
    seeds = sorted(set().union(*values.values()))
    table = np.array([[of.get(seed, math.nan) for seed in seeds] for of in values.values()])
    return PooledSd(math.sqrt(squares / freedom), name, freedom, seed_correlation(table))
