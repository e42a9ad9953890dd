"""A run's study, trials and reports, built event by event; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nas.data.header import Header
from nas.runs.events import (
    CandidatesChosen,
    Confirmed,
    Event,
    Exported,
    FinishFailed,
    Reported,
    RunBegan,
    SpaceSpent,
    StudyChanged,
    TrialBegan,
    TrialEnded,
)
from nas.runs.layout import trial_name
from nas.runs.ledger import apply_events, read_events
from nas.runs.records import Rejected, Report, State
from nas.stats.pareto import fronts
from nas.study.metrics import SCORES, lower_is_better
from nas.study.nuisance import candidate_key
from nas.study.objectives import of_samples, scores_first
from nas.study.study import Study
from space.costs.cost import Cost, cost
from space.errors import RunError
from space.spec import ModelSpec


@dataclass
class TrialResult:
    """One trial as the ledger records it."""

    number: int
    spec: ModelSpec
    digest: str
    seed: int
    variant: int
    """The architecture's number; its replicates share it."""
    params: dict[str, Any] | None
    """The values of the space's parameters; None for an architecture that was enqueued from outside the space."""
    rejected: tuple[Rejected, ...]
    """The proposals that were refused on the way to this one."""
    rungs: int
    attrs: dict[str, Any] = field(default_factory=dict)
    """The sampler's notes."""
    training: dict[str, Any] = field(default_factory=dict)
    """The training settings in which it differs from the study, by dotted path; see `Study.training_of`."""
    state: State = State.RUNNING
    reports: list[Report] = field(default_factory=list)
    """One per milestone; those beyond `rungs` belong to the finish."""
    reused: list[int] = field(default_factory=list)
    """The rungs whose reports were reused from another run."""
    reason: str = ""
    finish_failure: str = ""
    """Why the finish cannot be resumed; the trial itself stays COMPLETE."""
    export: Exported | None = None
    """The last export."""

    @property
    def name(self) -> str:
        """The trial's directory below `trials/`."""
        return trial_name(self.number, self.digest)

    @property
    def candidate(self) -> str:
        """What it is known by, apart from its seed: its architecture, with its own training settings."""
        return candidate_key(self.digest, self.training)

    @property
    def cost(self) -> Cost:
        """The cost of the spec."""
        return cost(self.spec)

    @property
    def search_reports(self) -> list[Report]:
        """The reports at rungs, without those of the finish."""
        return self.reports[: self.rungs]

    @property
    def val_loss(self) -> float | None:
        """The last loss at a rung; it is a final value only when the trial is COMPLETE."""
        reports = self.search_reports
        return reports[-1].val_loss if reports else None


def objective_value(study: Study, trial: TrialResult, report: Report, metric: str) -> float:
    """The value of an objective's metric for a trial at a report; infinite when it was not measured."""
    if metric in SCORES:
        score = report.value(metric)
        return math.inf if score is None else score
    if metric == "step_seconds":
        return study.training_of(trial).batch_size / report.images_per_s if report.images_per_s else math.inf
    return float(getattr(trial.cost, metric))


def objective_values(study: Study, trial: TrialResult, report: Report) -> tuple[float, ...]:
    """The values of a study's objectives for a trial at a report, in the study's order and with their own sign."""
    return tuple(objective_value(study, trial, report, objective.metric) for objective in study.objectives)


def final_value(trial: TrialResult, metric: str) -> float | None:
    """The value of a metric at a COMPLETE trial's last rung; None in another state, or where the metric was not measured."""
    return trial.search_reports[-1].value(metric) if trial.state is State.COMPLETE else None


def values_by_seed(run: Run, metric: str) -> dict[str, dict[int, float]]:
    """The final value of a metric by architecture (digest) and seed; NaN of a trial that FAILED, absent where none has ended."""
    values: dict[str, dict[int, float]] = {}
    for trial in run.trials.values():
        value, by_seed = final_value(trial, metric), values.setdefault(trial.digest, {})
        if value is not None or trial.state is State.FAILED:
            by_seed[trial.seed] = math.nan if value is None else value
    return values


def lacks_metric(study: Study, report: Report) -> str:
    """In words, the metric that a report should have and has not, and what would mend it; empty otherwise."""
    wanted = (study.ablation.metric,) if study.ablation else of_samples(study.objectives)
    lacking = [metric for metric in wanted if report.value(metric) is None]
    if not lacking or not study.scored_at(report.rung):
        return ""
    measured = ", ".join(("val_loss", *report.scores))
    who, key = ("the ablation", "as ablation.metric") if study.ablation else ("the search", "in search.objectives")
    return f"has no {lacking[0]}, by which {who} compares: it was scored with {measured}; name one of those {key}"


@dataclass(frozen=True)
class Standing:
    """An architecture among those of its run."""

    trial: TrialResult
    """Its first complete trial."""
    mean: float
    """The mean of the run's metric over its seeds."""
    seeds: int
    whole: bool
    """Whether it has a value at every seed that counts; the means of those that have are over the same seeds in an ablation."""
    trials: tuple[TrialResult, ...] = ()
    """Its complete trials at these seeds."""


@dataclass(frozen=True)
class Axis:
    """A metric that a front is of."""

    metric: str
    falls: bool
    """Whether less of it is better."""


class Run:
    """A run's study and trials, built event by event."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._study: Study | None = None
        self.data: Header | None = None
        """The header of the data that the run began with."""
        self.trials: dict[int, TrialResult] = {}
        self.allowed: dict[int, int] = {}
        """Per variant: the number of rungs at which its trials may report. Filled in by `nas.search.state`, otherwise empty."""
        self.spent = False
        """Whether no new architecture was left in the space of a search."""
        self.candidates: tuple[int, ...] = ()
        """The trials of a search that are confirmed, best first; empty before they are chosen."""
        self.confirmed: Confirmed | None = None
        """What the fresh seeds said; None before they have ended, and again once seeds are added."""
        self.replanned = False
        """Whether an ablation was changed after the first report, which no statistical test allows for."""
        for event in events:
            self.apply(event)

    @property
    def begun(self) -> bool:
        """Whether the first event was applied."""
        return self._study is not None

    @property
    def study(self) -> Study:
        """The study at the last event; raises RunError before the first."""
        if self._study is None:
            raise RunError("the ledger does not begin with a study; move the directory away to start anew")
        return self._study

    def apply(self, event: Event) -> None:
        """Apply one event of the ledger."""
        match event:
            case RunBegan() | StudyChanged():
                self._take_study(event.study, event.data if isinstance(event, RunBegan) else self.data)
            case TrialBegan():
                self.trials[event.trial] = TrialResult(
                    number=event.trial,
                    spec=event.spec,
                    digest=event.digest,
                    seed=event.seed,
                    variant=event.variant,
                    params=event.params,
                    rejected=event.rejected,
                    rungs=event.rungs,
                    attrs=event.attrs,
                    training=event.training,
                )
            case Reported():
                trial = self._begun(event.trial)
                if event.reused is not None:
                    trial.reused.append(len(trial.reports))
                trial.reports.append(event.report)
                trial.finish_failure = ""
            case TrialEnded():
                trial = self._begun(event.trial)
                trial.state, trial.reason = event.state, event.reason
            case Exported():
                self._begun(event.trial).export = event
            case SpaceSpent():
                self.spent = True
            case CandidatesChosen():
                self.candidates = tuple(self._begun(number).number for number in event.trials)
            case Confirmed():
                self._begun(event.chosen)
                self.confirmed = event
            case FinishFailed():
                self._begun(event.trial).finish_failure = event.reason

    def _begun(self, number: int) -> TrialResult:
        if number not in self.trials:
            raise LookupError(f"trial {number} has not begun")
        return self.trials[number]

    def _take_study(self, study: Study, data: Header | None) -> None:
        before, self._study, self.data = self._study, study, data
        if before and before.confirm != study.confirm and study.confirm is not None:
            self.confirmed = None
        if before and before.ablation and before.ablation != study.ablation:
            self.replanned |= any(trial.reports for trial in self.trials.values())
        self._extend(study.budget.rungs)

    def _extend(self, rungs: int) -> None:
        """Add the rungs of a larger budget, under which no trial is complete yet."""
        for trial in self.trials.values():
            if rungs > trial.rungs:
                trial.rungs = rungs
                if trial.state is State.COMPLETE:
                    trial.state = State.RUNNING

    def in_state(self, state: State) -> list[TrialResult]:
        """The trials in a state, by number."""
        return [trial for trial in self.trials.values() if trial.state is state]

    def front(self) -> list[TrialResult]:
        """The Pareto front of the complete architectures in the means of `front_axes`, the best by `metric` first."""
        standings = self.standings()
        if not standings:
            return []
        values = np.array([[self._mean(standing, axis) for axis in self.front_axes] for standing in standings])
        return [standings[index].trial for index in fronts(values)[0]]

    @property
    def front_axes(self) -> tuple[Axis, ...]:
        """What a front is of: a search's objectives, scores first; with one alone, and in an ablation, `metric` and GFLOPs."""
        search = self.study.search
        if search and len(search.objectives) > 1:
            return tuple(Axis(one.metric, one.direction == "minimize") for one in scores_first(search.objectives))
        return Axis(self.metric, lower_is_better(self.metric)), Axis("gflops", True)

    def _mean(self, standing: Standing, axis: Axis) -> float:
        """The mean of a metric over an architecture's complete trials, to be minimised."""
        mean = fmean(objective_value(self.study, trial, trial.search_reports[-1], axis.metric) for trial in standing.trials)
        return mean if axis.falls else -mean

    def best(self, count: int = 1) -> list[TrialResult]:
        """The complete architectures by their means, best first, each represented by its first trial (see `standings`)."""
        return [standing.trial for standing in self.standings()[:count]]

    @property
    def metric(self) -> str:
        """The metric by which architectures are ranked."""
        return self.study.metric

    def standings(self) -> list[Standing]:
        """The complete architectures, best mean of `metric` first; with other training settings, one is another candidate.

        Architectures with a value at more seeds come first, because means over fewer seeds are not comparable. In an ablation, the
        seeds are those that were planned for every row and have ended in every row.
        """
        architectures: dict[str, list[TrialResult]] = {}
        for trial in self.trials.values():
            architectures.setdefault(trial.candidate, []).append(trial)
        shared: set[int] | None = None
        if self.study.ablation:
            architectures = {row.spec.digest: architectures.get(row.spec.digest, []) for row in self.study.rows}
            planned = self.study.training.seed + self.study.ablation.seeds.min
            ended = [{t.seed for t in trials if t.state is not State.RUNNING} for trials in architectures.values()]
            shared = {seed for seed in set.intersection(*ended) if seed < planned}
        found = []
        for trials in architectures.values():
            counted = trials if shared is None else [trial for trial in trials if trial.seed in shared]
            values = [(trial, final_value(trial, self.metric)) for trial in counted]
            known = [(trial, value) for trial, value in values if value is not None]
            if known:
                mean, those = fmean(value for _, value in known), tuple(trial for trial, _ in known)
                found.append(Standing(those[0], mean, len(known), len(known) == len(counted), those))
        sign = 1 if lower_is_better(self.metric) else -1
        return sorted(found, key=lambda standing: (-standing.seeds, sign * standing.mean))


def read_run(folder: str | Path) -> Run:
    """The run in a directory; raises RunError when the directory is no run or is damaged."""
    collects = gc.isenabled()
    # Nothing read here becomes garbage, and garbage collection would take half of the time.
    gc.disable()
    try:
        run = Run()
        apply_events(Path(folder), read_events(Path(folder)), run.apply)
    finally:
        if collects:
            gc.enable()
    if not run.begun:
        raise RunError(f"{folder} holds no study; its ledger is empty")
    return run
