"""The full-length curves of a run: the values of its architectures at every rung; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from nas.runs.records import State
from nas.runs.run import Run, TrialResult, objective_value, objective_values
from nas.search.variants import Values
from nas.stats.ranks import LEAST, Agreement, agreement, agreement_across_seeds, resampled
from nas.study.settings import SearchSettings
from nas.study.study import Study
from space.domains.space import Params
from space.errors import RunError


@dataclass(frozen=True)
class Curve:
    """The recording of one architecture. `values`, `macs` and `seconds` are indexed by replicate, then by rung."""

    params: Params | None
    """None for an architecture from outside the space."""
    values: tuple[tuple[Values, ...], ...]
    """The objectives, in the study's order and with their own sign."""
    macs: tuple[tuple[int, ...], ...]
    """Training multiply-accumulates so far."""
    seconds: tuple[tuple[float, ...], ...]
    """Training time so far."""
    scores: tuple[tuple[float, ...], ...]
    """The study's metric, by replicate, then by rung."""

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """The mean of the study's metric over the replicates at every rung; less is better."""
        return tuple(map(fmean, zip(*self.scores, strict=True)))


@dataclass(frozen=True)
class Recorded:
    """The full-length curves of a run, in the order in which their architectures began.

    `left_out` is the number of trials without one, `pruned` the number of those that a rung stopped.
    """

    study: Study
    curves: tuple[Curve, ...]
    left_out: int = 0
    pruned: int = 0

    @property
    def search(self) -> SearchSettings:
        """The settings of the recorded search."""
        assert self.study.search is not None, "only searches are replayed"
        return self.study.search

    @property
    def best(self) -> float:
        """The lowest final score."""
        return min(curve.losses[-1] for curve in self.curves)

    @property
    def full_macs(self) -> int:
        """The multiply-accumulates of training everything recorded."""
        return sum(macs[-1] for curve in self.curves for macs in curve.macs)

    def macs_at(self, rung: int) -> list[int]:
        """The multiply-accumulates of every recorded training up to a rung."""
        return [macs[rung] for curve in self.curves for macs in curve.macs]

    @cached_property
    def agreements(self) -> tuple[Agreement, ...]:
        """The agreement of every recorded rung with the last one of the same trainings; deterministic."""
        losses = np.array([curve.losses for curve in self.curves])
        drawn = resampled(len(losses))
        return tuple(agreement(losses[:, rung], losses[:, -1], drawn) for rung in range(losses.shape[1]))

    @cached_property
    def agreements_across_seeds(self) -> tuple[Agreement, ...] | None:
        """The agreement of every recorded rung of one seed with the last one of another, None without replicates.

        The last one is the noise ceiling: what a full training foretells of one with another seed.
        """
        if self.study.replicates < 2:
            return None
        losses = np.array([curve.scores for curve in self.curves])
        return tuple(agreement_across_seeds(losses[:, :, rung], losses[:, :, -1])[0] for rung in range(losses.shape[2]))

    def top_regret(self, rung: int, top: int) -> float:
        """The lowest final score among the best `top` architectures of a rung, minus the best recorded."""
        ranked = sorted(self.curves, key=lambda curve: curve.losses[rung])
        return min(curve.losses[-1] for curve in ranked[:top]) - self.best


def recorded(run: Run) -> Recorded:
    """The full-length curves of a run. An architecture has one when all its replicates reported at every rung.

    Reports of a finish are left out.

    Raises:
        RunError: When the run is an ablation, or has fewer than `LEAST` full-length curves.
    """
    study = run.study
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
    return Curve(
        params=trials[0].params,
        values=tuple(tuple(objective_values(study, trial, report) for report in trial.search_reports) for trial in trials),
        macs=tuple(tuple(report.macs for report in replicate) for replicate in reports),
        seconds=tuple(tuple(np.cumsum([report.seconds for report in replicate]).tolist()) for replicate in reports),
        scores=tuple(
            tuple(objective_value(study, trial, report, study.metric) for report in trial.search_reports) for trial in trials
        ),
    )
