"""The progress of a run: trials by state, compute spent and compute to come; needs neither torch, Ray nor Optuna.

The search decides which trials train on from a rung and notes it in `Run.allowed`. This module only counts those decisions.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from nas.runs.events import Event, FinishFailed, Promoted, Reported, RunBegan, SpaceSpent, StudyChanged, TrialBegan, TrialEnded
from nas.runs.records import State
from nas.runs.run import Run, TrialResult, final_value
from nas.runs.winners import leading
from nas.study.rows import names_of

EVIDENCE_REPORTS = 3
"""Least reports before the end is forecast; there must also be at least one per running trial."""


@dataclass
class RungCounts:
    """Numbers of trials of a bracket at one rung: heading for it, reported at it, trained on from it, waiting at it.

    `heading_step_macs` is the sum over those heading for it of the multiply-accumulates of a training step.
    """

    heading: int = 0
    heading_step_macs: int = 0
    reported: int = 0
    went_on: int = 0
    waiting: int = 0


@dataclass(eq=False)
class _Variant:
    """An architecture's part of all counts, kept so that it can be subtracted when the architecture changes."""

    trials: list[TrialResult] = field(default_factory=list)
    counted: list[tuple[int, str, int]] = field(default_factory=list)
    """A rung, the field of `RungCounts` to which one of its trials added, and how much."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Pairs of a rung and a loss that its trials added."""
    ended: list[State] = field(default_factory=list)
    ranked: tuple[int, float, int] | None = None
    """Sort key among complete architectures: (−complete trials, mean of the metric, first trial number)."""


class Progress:
    """The progress of a run, counted event by event; the cost of an event does not grow with the number of trials.

    A trial waits when it is running and has reported at every rung that it may reach so far: in mode promote until it is promoted,
    in mode stop until the other replicates of its architecture have reported too.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.study = run, run.study
        self.trials: dict[int, TrialResult] = {}
        self.ended = dict.fromkeys((State.COMPLETE, State.PRUNED, State.FAILED), 0)
        self.complete: list[tuple[int, float, int]] = []
        """The sort keys of all architectures with complete trials, best first, in the order of `Run.best`."""
        self.spent_macs = self.reports = 0
        """Multiply-accumulates and reports of trials that this run trained, without reports reused from other runs."""
        self._variants: dict[int, _Variant] = {}
        self._proposed: list[int] = []
        self._space_is_spent = False
        self._start: tuple[float, int, int] | None = None
        self._before_finish: tuple[float, int, int] | None = None
        """What `_start` would be, had it been taken at the search's last event."""
        self._finishing = False
        self._take_study()

    @classmethod
    def of(cls, run: Run, events: Iterable[Event]) -> Progress:
        """The progress of a run to which all of these events have been applied."""
        progress = cls(run)
        for event in events:
            progress.take(event)
        return progress

    def _take_study(self) -> None:
        """Restart the counts for the present study: with a grown budget no trial is complete any more."""
        self.study = self.run.study
        self.budget = self.study.budget
        self.names = names_of(self.study.rows)
        """The variant's name for every architecture of an ablation, by digest."""
        rungs, brackets = self.budget.rungs, self.budget.brackets
        self.metric = self.study.metric if self.study.search else "val_loss"
        """What is shown of the rungs; an ablation's own metric may be measured at the last one alone."""
        self.losses: list[list[float]] = [[] for _ in range(rungs)]
        """The values of `metric` at every rung, in rising order."""
        self.counts = [[RungCounts() for _ in range(rungs)] for _ in range(brackets)]
        """Indexed by bracket and rung."""
        self.ended = dict.fromkeys(self.ended, 0)
        self.complete.clear()
        self._proposed = [0] * brackets
        self._full_macs = {row.spec.digest: self.study.milestones_of(row.spec)[-1] for row in self.study.rows}
        self._left = dict.fromkeys(self._full_macs, self.study.ablation.seeds.min if self.study.ablation else 0)
        """Per architecture of an ablation: compute of a full trial (`_full_macs`), and planned trials that have not begun."""
        self._begun_step_macs = 0
        known, self._variants = self._variants, {}
        for number, variant in known.items():
            for trial in variant.trials:
                self._begin(number, trial)
            self._count(number)

    @property
    def running(self) -> int:
        """Number of trials on their way to a rung."""
        return sum(counts.heading for bracket in self.counts for counts in bracket)

    @property
    def waiting(self) -> int:
        """Number of trials that wait at a rung."""
        return sum(counts.waiting for bracket in self.counts for counts in bracket)

    def went_on(self, rung: int) -> int:
        """Number of trials that trained on from a rung."""
        return sum(bracket[rung].went_on for bracket in self.counts)

    def waits(self, trial: TrialResult) -> bool:
        """Whether a trial waits at a rung for permission to train on."""
        return trial.state is State.RUNNING and len(trial.search_reports) >= self.run.allowed[trial.variant]

    def start(self, now: float) -> None:
        """Measure the throughput of this process from `now`, in seconds of `time.monotonic`; anew when the finish begins."""
        self._start = self._before_finish = now, self.spent_macs, self.reports

    def seconds_left(self, now: float) -> float | None:
        """Forecast seconds to the end at the throughput since `start`; None while there are too few reports."""
        if self._start is None:
            return None
        began, macs, reports = self._start
        if self.reports - reports < max(EVIDENCE_REPORTS, self.running) or now <= began:
            return None
        return self.remaining_macs * (now - began) / (self.spent_macs - macs)

    @property
    def remaining_macs(self) -> float:
        """The expected multiply-accumulates still to be trained, the finish included.

        From a rung where trials are judged, 1 in `kept_one_in` of the trials that wait there or are yet to arrive is expected to
        train on. Where trials wait for promotion, it is 1 in `kept_one_in` of all that will have arrived, minus those that already
        trained on. Training since a trial's last report still counts as to come. In an ablation all planned seeds are to come; of
        sequential seeds, the first `min`.
        """
        if self.study.ablation:
            running = [trial for trial in self.trials.values() if trial.state is State.RUNNING]
            begun = sum(max(0, self._full_macs.get(trial.digest, 0) - _macs(trial)) for trial in running)
            return float(begun + sum(self._full_macs[digest] * left for digest, left in self._left.items() if left > 0))
        total, open_trials, mean = 0.0, self.running + self.waiting, self._mean_macs_of_one()
        in_compute = self.budget.unit == "compute"
        replicates, architectures = self.study.replicates, self.study.most_trials // self.study.replicates
        for bracket, at in enumerate(self.counts):
            planned = replicates * self.budget.in_bracket(architectures, bracket)
            fresh = 0 if self._space_is_spent else max(0, planned - self._proposed[bracket])
            open_trials += fresh
            coming = float(fresh)
            for rung, macs in enumerate(self.budget.increments):
                heading = at[rung].heading_step_macs
                total += (coming * mean + (at[rung].heading if in_compute else self.study.macs_of_one(heading))) * macs
                coming += at[rung].heading
                share = self.budget.share_promoted(rung, bracket)
                arrived, undecided = at[rung].reported + coming, at[rung].waiting + coming
                coming = undecided * share
                if self.budget.waits and 0 < share < 1:
                    coming = min(undecided, max(0.0, arrived * share - at[rung].went_on))
        return total + self._finish_macs(open_trials, mean)

    def _step_macs(self, trial: TrialResult) -> int:
        return trial.cost.step_macs(self._batch_size(trial))

    def _mean_macs_of_one(self) -> float:
        """The multiply-accumulates of one unit of the budget: the mean over the trials begun, or else over the feasible part."""
        if self.budget.unit == "compute":
            return 1.0
        step_macs = self._begun_step_macs / len(self.trials) if self.trials else self.study.census.mean_step_macs
        return self.study.macs_of_one(step_macs)

    def _finish_macs(self, open_trials: int, mean: float) -> float:
        """The compute left in the finish: for the best so far, and for further trials that may still become complete."""
        finish = self.study.finish
        if finish is None:
            return 0.0
        if self.run.confirmed is not None:
            chosen = leading(self.run, finish.best)
        else:
            chosen = [self.trials[number] for *_, number in self.complete[: finish.best]]
        left = sum(
            max(0, self.study.finish_macs_of(trial.spec, self._batch_size(trial)) - _macs(trial))
            for trial in chosen
            if not trial.finish_failure
        )
        return left + min(finish.best - len(chosen), open_trials) * (finish.full - self.budget.full) * mean

    def take(self, event: Event, now: float | None = None) -> None:
        """Count an event, which must have been applied to the run already; `now` is its time, in seconds of `time.monotonic`."""
        if self._start is not None and now is not None:
            if not (isinstance(event, Reported) and event.rung >= self.budget.rungs):
                self._before_finish = now, self.spent_macs, self.reports
            elif not self._finishing:
                # The finish has fewer trials at once, so the search's throughput says nothing of it.
                self._finishing, self._start = True, self._before_finish
        match event:
            case RunBegan() | StudyChanged():
                self._take_study()
            case SpaceSpent():
                self._space_is_spent = True
            case TrialBegan():
                self._begin(event.variant, self.run.trials[event.trial])
                self._count(event.variant)
            case Reported():
                trial = self.run.trials[event.trial]
                if event.reused is None:
                    before = next((report.macs for report in reversed(trial.reports) if report.rung < event.rung), 0)
                    self.spent_macs += event.macs - before
                    self.reports += 1
                self._count(trial.variant)
            case TrialEnded() | FinishFailed():
                self._count(self.run.trials[event.trial].variant)
            case Promoted():
                self._count(event.variant)

    def _batch_size(self, trial: TrialResult) -> int:
        return self.study.training_of(trial).batch_size

    def _begin(self, number: int, trial: TrialResult) -> None:
        self._variants.setdefault(number, _Variant()).trials.append(trial)
        self.trials[trial.number] = trial
        self._begun_step_macs += self._step_macs(trial)
        if trial.digest in self._left:
            self._left[trial.digest] -= 1
        self._proposed[self.budget.bracket_of(number)] += 1

    def _count(self, number: int) -> None:
        """Replace an architecture's part of the counts by its present state."""
        variant, at = self._variants[number], self.counts[self.budget.bracket_of(number)]
        for rung, name, amount in variant.counted:
            setattr(at[rung], name, getattr(at[rung], name) - amount)
        for rung, loss in variant.losses:
            del self.losses[rung][bisect_left(self.losses[rung], loss)]
        for state in variant.ended:
            self.ended[state] -= 1
        if variant.ranked is not None:
            del self.complete[bisect_left(self.complete, variant.ranked)]
        variant.counted = [entry for trial in variant.trials for entry in self._entries(trial)]
        reports = [report for trial in variant.trials for report in trial.search_reports]
        values = [(report.rung, report.value(self.metric)) for report in reports]
        variant.losses = [(rung, value) for rung, value in values if value is not None]
        variant.ended = [trial.state for trial in variant.trials if trial.state is not State.RUNNING]
        complete = [trial for trial in variant.trials if trial.state is State.COMPLETE]
        finals = [value for trial in complete if (value := final_value(trial, self.metric)) is not None]
        variant.ranked = (-len(complete), fmean(finals), complete[0].number) if finals else None
        for rung, name, amount in variant.counted:
            setattr(at[rung], name, getattr(at[rung], name) + amount)
        for rung, loss in variant.losses:
            insort(self.losses[rung], loss)
        for state in variant.ended:
            self.ended[state] += 1
        if variant.ranked is not None:
            insort(self.complete, variant.ranked)

    def _entries(self, trial: TrialResult) -> list[tuple[int, str, int]]:
        """The rungs and fields of `RungCounts` to which a trial adds, and how much."""
        reports, allowed = len(trial.search_reports), self.run.allowed[trial.variant]
        entries: list[tuple[int, str, int]] = [(rung, "reported", 1) for rung in range(reports)]
        entries += [(rung, "went_on", 1) for rung in range(reports) if allowed > rung + 1]
        if trial.state is not State.RUNNING:
            return entries
        if reports >= allowed:
            return [*entries, (reports - 1, "waiting", 1)]
        return [*entries, (reports, "heading", 1), (reports, "heading_step_macs", self._step_macs(trial))]


def _macs(trial: TrialResult) -> int:
    """The multiply-accumulates that a trial has trained up to its last report."""
    return trial.reports[-1].macs if trial.reports else 0
