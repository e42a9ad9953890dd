"""How far a run is: its trials by state, what was spent and what is still to come; needs neither torch, Ray nor Optuna.

What may train on from a rung is decided by the search, which notes it in `Run.allowed`. Here it is only counted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from nas.runs.events import Event, FinishFailed, Promoted, Reported, RunBegan, SpaceSpent, StudyChanged, TrialBegan, TrialEnded
from nas.runs.records import State
from nas.runs.run import Run, TrialResult
from space.costs.cost import cost

EVIDENCE_REPORTS = 3
"""An end is forecast after this many reports, and at least one for every running trial."""


@dataclass
class RungCounts:
    """Trials of a bracket at one rung: on their way there, that reported, that trained on, and that wait."""

    heading: int = 0
    reported: int = 0
    went_on: int = 0
    waiting: int = 0


@dataclass(eq=False)
class _Variant:
    """What is counted of an architecture, so that it can be taken back when it changes."""

    trials: list[TrialResult] = field(default_factory=list)
    counted: list[tuple[int, str]] = field(default_factory=list)
    """Rungs, and the fields of `RungCounts` there, to which its trials have added one."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Rungs and losses that its trials have added."""
    ended: list[State] = field(default_factory=list)
    ranked: tuple[int, float, int] | None = None
    """Its sort key among the complete: (−complete trials, mean loss, first trial number)."""


class Progress:
    """How far a run is, counted event by event, each at a small cost that does not grow with the trials.

    A trial waits when it is running and has reported at every rung that it is allowed: in mode promote until it is promoted, in
    mode stop until the other replicates of its architecture are there too.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.study = run, run.study
        self.trials: dict[int, TrialResult] = {}
        self.ended = dict.fromkeys((State.COMPLETE, State.PRUNED, State.FAILED), 0)
        self.complete: list[tuple[int, float, int]] = []
        """The sort keys of all architectures with complete trials, best first, as `Run.best` has them."""
        self.spent_macs = self.reports = 0
        """What was trained for this run, without the reports taken over from another; and how many reports it gave."""
        self._variants: dict[int, _Variant] = {}
        self._proposed: list[int] = []
        self._space_is_spent = False
        self._start: tuple[float, int, int] | None = None
        self._take_study()

    @classmethod
    def of(cls, run: Run, events: Iterable[Event]) -> Progress:
        """The progress of a run that has taken in all of these events."""
        progress = cls(run)
        for event in events:
            progress.take(event)
        return progress

    def _take_study(self) -> None:
        """Count anew: the budget may have grown, for which no trial is complete yet."""
        self.study = self.run.study
        self.budget = self.study.budget
        rungs, brackets = self.budget.rungs, self.budget.brackets
        self.losses: list[list[float]] = [[] for _ in range(rungs)]
        """The losses at every rung, rising."""
        self.counts = [[RungCounts() for _ in range(rungs)] for _ in range(brackets)]
        """By bracket and rung."""
        self.ended = dict.fromkeys(self.ended, 0)
        self.complete.clear()
        self._proposed = [0] * brackets
        steps = {row.spec.digest: cost(row.spec).step_macs(self.study.training.batch_size) for row in self.study.rows}
        self._full_macs = {digest: self.budget.milestones_of(step_macs)[-1] for digest, step_macs in steps.items()}
        self._left = dict.fromkeys(steps, self.study.ablation.seeds.min if self.study.ablation else 0)
        """By architecture of an ablation: what a trial of it trains, and how many planned ones have not begun."""
        known, self._variants = self._variants, {}
        for number, variant in known.items():
            for trial in variant.trials:
                self._begin(number, trial)
            self._count(number)

    @property
    def running(self) -> int:
        """Trials on their way to a rung."""
        return sum(counts.heading for bracket in self.counts for counts in bracket)

    @property
    def waiting(self) -> int:
        """Trials that wait at a rung."""
        return sum(counts.waiting for bracket in self.counts for counts in bracket)

    def went_on(self, rung: int) -> int:
        """How many trials trained on from a rung."""
        return sum(bracket[rung].went_on for bracket in self.counts)

    def waits(self, trial: TrialResult) -> bool:
        """Whether a trial is at a rung and may not train on yet."""
        return trial.state is State.RUNNING and len(trial.search_reports) >= self.run.allowed[trial.variant]

    def start(self, now: float) -> None:
        """What comes from now on, in seconds of `time.monotonic`, is this process's work."""
        self._start = now, self.spent_macs, self.reports

    def seconds_left(self, now: float) -> float | None:
        """How long the rest will take at the rate since the start; None as long as there is too little evidence."""
        if self._start is None:
            return None
        began, macs, reports = self._start
        if self.reports - reports < max(EVIDENCE_REPORTS, self.running) or now <= began:
            return None
        return self.remaining_macs * (now - began) / (self.spent_macs - macs)

    @property
    def remaining_macs(self) -> float:
        """What is still to be trained in expectation, the finish included.

        From every rung where trials are judged, 1 in `reduction_factor` trains on of those that are yet to arrive, or that wait; in
        mode promote of all that will have arrived, less those that trained on already. What a running trial has trained since its
        last report counts as still to be trained. In an ablation, all planned seeds are to be trained, and of sequential ones the
        least.
        """
        if self.study.ablation:
            running = [trial for trial in self.trials.values() if trial.state is State.RUNNING]
            begun = sum(max(0, self._full_macs.get(trial.digest, 0) - _macs(trial)) for trial in running)
            return float(begun + sum(self._full_macs[digest] * left for digest, left in self._left.items() if left > 0))
        total, open_trials = 0.0, self.running + self.waiting
        replicates, architectures = self.study.replicates, self.study.most_trials // self.study.replicates
        for bracket, at in enumerate(self.counts):
            planned = replicates * self.budget.in_bracket(architectures, bracket)
            fresh = 0 if self._space_is_spent else max(0, planned - self._proposed[bracket])
            open_trials += fresh
            coming = float(fresh)
            for rung, macs in enumerate(self.budget.increments):
                coming += at[rung].heading
                total += coming * macs
                share = self.budget.share_promoted(rung, bracket)
                arrived, undecided = at[rung].reported + coming, at[rung].waiting + coming
                coming = undecided * share
                if self.budget.mode == "promote" and 0 < share < 1:
                    coming = min(undecided, max(0.0, arrived * share - at[rung].went_on))
        return total + self._finish_macs(open_trials)

    def _finish_macs(self, open_trials: int) -> float:
        """What is left of the finish: of the best so far, and of as many more as may still be complete."""
        finish = self.study.finish
        if finish is None:
            return 0.0
        chosen = [self.trials[number] for *_, number in self.complete[: finish.best]]
        left = sum(max(0, finish.budget - _macs(trial)) for trial in chosen if not trial.finish_failure)
        return left + min(finish.best - len(chosen), open_trials) * (finish.budget - self.budget.full)

    def take(self, event: Event) -> None:
        """Take in an event that the run has taken in already."""
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

    def _begin(self, number: int, trial: TrialResult) -> None:
        self._variants.setdefault(number, _Variant()).trials.append(trial)
        self.trials[trial.number] = trial
        if trial.digest in self._left:
            self._left[trial.digest] -= 1
        self._proposed[self.budget.bracket_of(number)] += 1

    def _count(self, number: int) -> None:
        """Count an architecture as it is now, in place of what was counted of it before."""
        variant, at = self._variants[number], self.counts[self.budget.bracket_of(number)]
        for rung, name in variant.counted:
            setattr(at[rung], name, getattr(at[rung], name) - 1)
        for rung, loss in variant.losses:
            del self.losses[rung][bisect_left(self.losses[rung], loss)]
        for state in variant.ended:
            self.ended[state] -= 1
        if variant.ranked is not None:
            del self.complete[bisect_left(self.complete, variant.ranked)]
        variant.counted = [entry for trial in variant.trials for entry in self._places(trial)]
        variant.losses = [(report.rung, report.val_loss) for trial in variant.trials for report in trial.search_reports]
        variant.ended = [trial.state for trial in variant.trials if trial.state is not State.RUNNING]
        complete = [trial for trial in variant.trials if trial.state is State.COMPLETE]
        losses = [trial.val_loss for trial in complete if trial.val_loss is not None]
        variant.ranked = (-len(complete), fmean(losses), complete[0].number) if complete else None
        for rung, name in variant.counted:
            setattr(at[rung], name, getattr(at[rung], name) + 1)
        for rung, loss in variant.losses:
            insort(self.losses[rung], loss)
        for state in variant.ended:
            self.ended[state] += 1
        if variant.ranked is not None:
            insort(self.complete, variant.ranked)

    def _places(self, trial: TrialResult) -> list[tuple[int, str]]:
        """Where a trial counts: rungs that it reported at or trained on from, and the one where it waits or that it heads for."""
        reports, allowed = len(trial.search_reports), self.run.allowed[trial.variant]
        places = [(rung, "reported") for rung in range(reports)]
        places += [(rung, "went_on") for rung in range(reports) if allowed > rung + 1]
        if trial.state is State.RUNNING:
            places.append((reports - 1, "waiting") if reports >= allowed else (reports, "heading"))
        return places


def _macs(trial: TrialResult) -> int:
    """What a trial has trained so far."""
    return trial.reports[-1].macs if trial.reports else 0
