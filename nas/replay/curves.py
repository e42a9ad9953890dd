"""The full-length curves of a run: what its architectures reached at every rung; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
from scipy.stats import kendalltau

from nas.runs.records import State
from nas.runs.run import Run, TrialResult, objective_value
from nas.search.halving import Values
from nas.study.settings import SearchSettings
from nas.study.study import Study
from space.costs.points import Array
from space.domains.space import Params
from space.errors import RunError

LEAST = 8
"""Fewer curves than these say nothing about a ranking."""

RESAMPLES = 1000
"""Of the architectures with replacement, for the intervals."""


@dataclass(frozen=True)
class Curve:
    """One architecture as it was recorded. Of `values`, `macs` and `seconds` the first index is a replicate, the second a rung."""

    params: Params | None
    """None for an architecture from outside the space."""
    values: tuple[tuple[Values, ...], ...]
    """The objectives, as the study states them."""
    macs: tuple[tuple[int, ...], ...]
    """Training multiply-accumulates so far."""
    seconds: tuple[tuple[float, ...], ...]
    """Training time so far."""
    losses: tuple[float, ...]
    """The mean val_loss over the replicates at every rung."""


@dataclass(frozen=True)
class Agreement:
    """How a rung's order of the recorded architectures agrees with the last rung's: Kendall's τ-b of their val_losses.

    `low` and `high` are the interval over resampled architectures, by default the 2.5 % and 97.5 % quantiles. All are None where
    losses are all equal.
    """

    tau: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Recorded:
    """The full-length curves of a run, in the order in which they were begun.

    `left_out` counts the trials without one, `pruned` those among them that a rung stopped.
    """

    study: Study
    curves: tuple[Curve, ...]
    left_out: int = 0
    pruned: int = 0

    @property
    def search(self) -> SearchSettings:
        """What was searched."""
        assert self.study.search is not None, "only searches are replayed"
        return self.study.search

    @property
    def best(self) -> float:
        """The lowest final val_loss."""
        return min(curve.losses[-1] for curve in self.curves)

    @property
    def full_macs(self) -> int:
        """What training all of it took, in multiply-accumulates."""
        return sum(macs[-1] for curve in self.curves for macs in curve.macs)

    @cached_property
    def agreements(self) -> tuple[Agreement, ...]:
        """One a recorded rung; the same every time."""
        losses = np.array([curve.losses for curve in self.curves])
        drawn = resampled(len(losses))
        return tuple(agreement(losses[:, rung], losses[:, -1], drawn) for rung in range(losses.shape[1]))

    def top_regret(self, rung: int, top: int) -> float:
        """By how much the last val_loss of the best among a rung's `top` lies above the best recorded."""
        ranked = sorted(self.curves, key=lambda curve: curve.losses[rung])
        return min(curve.losses[-1] for curve in ranked[:top]) - self.best


def recorded(run: Run) -> Recorded:
    """The full-length curves of a run; an architecture counts when all its replicates reported at every rung.

    Reports of a finish are left out. Raises RunError when there are fewer than `LEAST`.
    """
    study = run.study
    assert study is not None, "read_run refuses a ledger without a study"
    if study.search is None:
        raise RunError(f"run {study.name} is an ablation, which prunes nothing; a replay is of a search")
    variants: dict[int, list[TrialResult]] = {}
    for trial in run.trials.values():
        variants.setdefault(trial.variant, []).append(trial)
    full = [
        trials
        for trials in variants.values()
        if len(trials) == study.replicates and all(len(trial.search_reports) == study.budget.rungs for trial in trials)
    ]
    if len(full) < LEAST:
        raise RunError(
            f"run {study.name} has {len(full)} architectures with reports at every rung, and a replay takes at least {LEAST}; "
            "record them with budget.mode: none"
        )
    known = {trial.number for trials in full for trial in trials}
    others = [trial for number, trial in run.trials.items() if number not in known]
    pruned = sum(trial.state is State.PRUNED for trial in others)
    return Recorded(study, tuple(_curve(study, trials) for trials in full), len(others), pruned)


def _curve(study: Study, trials: Sequence[TrialResult]) -> Curve:
    reports = [trial.search_reports for trial in trials]
    metrics = [objective.metric for objective in study.objectives]
    size = study.training.batch_size
    return Curve(
        params=trials[0].params,
        values=tuple(tuple(tuple(objective_value(t, r, m, size) for m in metrics) for r in t.search_reports) for t in trials),
        macs=tuple(tuple(report.macs for report in own) for own in reports),
        seconds=tuple(tuple(np.cumsum([report.seconds for report in own]).tolist()) for own in reports),
        losses=tuple(fmean(own[rung].val_loss for own in reports) for rung in range(study.budget.rungs)),
    )


def resampled(count: int) -> Array:
    """The rows of so many architectures, drawn `RESAMPLES` times with replacement; the same every time."""
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def agreement(losses: Array, last: Array, drawn: Array, level: float = 0.95) -> Agreement:
    """How the order of some architectures' losses agrees with that of their last ones; every row of `drawn` is one resampling."""
    taus = [float(kendalltau(losses[rows], last[rows], method="asymptotic").statistic) for rows in [np.arange(len(last)), *drawn]]
    if math.isnan(taus[0]):
        return Agreement(None, None, None)
    low, high = np.nanpercentile(taus[1:], [50 - 50 * level, 50 + 50 * level]).tolist()
    return Agreement(taus[0], low, high)
