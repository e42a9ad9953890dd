"""How far paired differences scatter, from runs that are there already: what a plan's smallest visible difference follows from."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.runs.layout import LEDGER
from nas.runs.run import Run, final_value, read_run
from nas.study.study import Study
from space.errors import ToolkitError


@dataclass(frozen=True)
class PooledSd:
    """Standard deviation of the paired differences between architectures of a run."""

    sd: float
    run: str
    pairs: int
    """Degrees of freedom: pairs, less one for each architecture compared."""


def pooled_sd(root: Path, study: Study) -> PooledSd | None:
    """The spread in the run under a run root that has the most pairs, of those trained as the study; None without any.

    Data, codec, objective, batch size and budget must be the same: a short training scatters otherwise than a long one. Every
    architecture is compared with the run's first one seed by seed, at the last rung; their variances are pooled.
    """
    found: list[PooledSd] = []
    checksum, metric = study.header.checksum, study.ablation.metric if study.ablation else "val_loss"
    for ledger in sorted(root.glob(f"*/{LEDGER}")) if root.is_dir() else []:
        with suppress(ToolkitError, OSError, ValueError, KeyError):
            run = read_run(ledger.parent)
            if run.data is not None and run.data.checksum == checksum and _way(run.study) == _way(study):
                spread = _spread(run, metric, ledger.parent.name)
                if spread is not None:
                    found.append(spread)
    return max(found, key=lambda spread: spread.pairs, default=None)


def _way(study: Study) -> tuple[object, ...]:
    training, budget = study.training, study.budget
    return study.data.codec, training.prediction, training.batch_size, budget.max is None, budget.full


def _spread(run: Run, metric: str, name: str) -> PooledSd | None:
    values: dict[str, dict[int, float]] = {}
    for trial in run.trials.values():
        value = final_value(trial, metric)
        if math.isfinite(value):
            values.setdefault(trial.digest, {})[trial.seed] = value
    if len(values) < 2:
        return None
    first, *others = values.values()
    squares, freedom = 0.0, 0
    for other in others:
        differences = np.array([other[seed] - first[seed] for seed in other if seed in first])
        # What is no difference at all, as of a choice without effect, is no spread either.
        if len(differences) > 1 and differences.any():
            squares += float(((differences - differences.mean()) ** 2).sum())
            freedom += len(differences) - 1
    return PooledSd(math.sqrt(squares / freedom), name, freedom) if freedom else None
