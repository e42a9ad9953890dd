"""How far a run is: its trials by state, what was spent and what is still to come; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from statistics import fmean

from nas.reporting.estimate import in_bracket, rung_macs, share_that_goes_on
from nas.runs.events import Event
from nas.runs.records import State
from nas.study.study import Study
from space.costs.cost import cost

EVIDENCE_REPORTS = 3
"""An end is forecast after so many reports, and at least one for every running trial."""


@dataclass(eq=False)
class _Seen:
    """A trial so far: how many rungs it reported at, its compute and last loss there, and whether its finish was given up."""

    number: int
    variant: _Variant
    digest: str
    state: State = State.RUNNING
    reports: int = 0
    macs: int = 0
    val_loss: float = float("inf")
    gave_up: bool = False

    @property
    def waits(self) -> bool:
        """Whether it stands at a rung and may not go on yet."""
        return self.state is State.RUNNING and self.reports >= self.variant.allowed


@dataclass(eq=False)
class _Variant:
    """An architecture: its bracket, its trials (replicates), and at how many rungs they may report."""

    bracket: int
    allowed: int
    trials: list[_Seen] = field(default_factory=list)
    ranked: tuple[int, float, int] | None = None
    """Its place among the complete: how many of its trials are (negative), their mean loss, and the first one's number."""


class Progress:
    """How far a run is, counted event by event, each at a small cost that does not grow with the trials.

    It follows from the ledger's events alone. A trial waits when it stands at a rung where it is judged and has not gone on: in
    mode promote until it is promoted, in mode stop until the other replicates of its architecture stand there too.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.budget, self._rungs = study, study.budget, study.budget.rungs
        self.trials: dict[int, _Seen] = {}
        self.ended = dict.fromkeys((State.COMPLETE, State.PRUNED, State.FAILED), 0)
        self.complete: list[tuple[int, float, int]] = []
        """The places of all architectures with complete trials, best first, as `Run.best` has them."""
        self.spent_macs = self.reports = 0
        """What was trained for this run, without the reports taken over from another; and how many reports it gave."""
        brackets, rungs = self.budget.brackets, self.budget.rungs
        self.losses: list[list[float]] = [[] for _ in range(rungs)]
        """The losses at every rung, rising."""
        # By bracket and rung: trials on their way there, that reported, that went on, and that wait.
        self._heading, self._reported, self._went_on, self._waiting = ([[0] * rungs for _ in range(brackets)] for _ in range(4))
        self._proposed = [0] * brackets
        self._space_is_spent = False
        self._variants: dict[int, _Variant] = {}
        batch_size, specs = study.training.batch_size, {row.spec.digest: row.spec for row in study.rows}
        steps = {digest: cost(spec).step_macs(batch_size) for digest, spec in specs.items()}
        self._full_macs = {digest: self.budget.milestones_of(step_macs)[-1] for digest, step_macs in steps.items()}
        self._left = dict.fromkeys(specs, study.ablation.seeds.min if study.ablation else 0)
        """By architecture of an ablation: what a trial of it trains, and how many planned ones have not begun."""
        self._start: tuple[float, int, int] | None = None

    @property
    def running(self) -> int:
        """Trials on their way to a rung."""
        return sum(map(sum, self._heading))

    @property
    def waiting(self) -> int:
        """Trials that wait at a rung."""
        return sum(map(sum, self._waiting))

    def went_on(self, rung: int) -> int:
        """How many trials went on from a rung."""
        return sum(bracket[rung] for bracket in self._went_on)

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

        From every rung where trials are judged, 1 in `reduction_factor` goes on of those that are yet to arrive, or that wait;
        in mode promote of all that will have arrived, less those that went on already. What a running trial has trained since
        its last report counts as still to be trained. In an ablation, all planned seeds are to be trained, and of sequential
        ones the least.
        """
        if self.study.ablation:
            running = [trial for trial in self.trials.values() if trial.state is State.RUNNING]
            begun = sum(max(0, self._full_macs.get(trial.digest, 0) - trial.macs) for trial in running)
            return float(begun + sum(self._full_macs[digest] * left for digest, left in self._left.items() if left > 0))
        total, open_trials = 0.0, self.running + self.waiting
        for bracket, heading in enumerate(self._heading):
            fresh = 0 if self._space_is_spent else max(0, in_bracket(self.study, bracket) - self._proposed[bracket])
            open_trials += fresh
            coming = float(fresh)
            for rung, macs in enumerate(rung_macs(self.budget)):
                coming += heading[rung]
                total += coming * macs
                share = share_that_goes_on(self.budget, rung, bracket)
                arrived, undecided = self._reported[bracket][rung] + coming, self._waiting[bracket][rung] + coming
                coming = undecided * share
                if self.budget.mode == "promote" and 0 < share < 1:
                    coming = min(undecided, max(0.0, arrived * share - self._went_on[bracket][rung]))
        return total + self._finish_macs(open_trials)

    def _finish_macs(self, open_trials: int) -> float:
        """What is left of the finish: of the best so far, and of as many more as may still be complete."""
        finish = self.study.finish
        if finish is None:
            return 0.0
        chosen = [self.trials[number] for *_, number in self.complete[: finish.best]]
        left = sum(max(0, finish.budget - trial.macs) for trial in chosen if not trial.gave_up)
        return left + min(finish.best - len(chosen), open_trials) * (finish.budget - self.budget.full)

    def take(self, event: Event) -> None:
        """Take in the next event of the ledger."""
        kind = event["event"]
        if kind == "trial":
            self._begin(event["trial"], event["variant"], event["digest"])
        elif kind == "report":
            self._report(self.trials[event["trial"]], event)
        elif kind == "promote":
            promoted = self._variants[event["variant"]]
            self._let_on(promoted, promoted.allowed + 1)
        elif kind == "end":
            self._end(self.trials[event["trial"]], State(event["state"]))
        elif kind == "finish-failed":
            self.trials[event["trial"]].gave_up = True
        elif kind == "spent":
            self._space_is_spent = True
        elif kind in ("run", "study"):
            self._take_rungs(event["study"]["budget"]["rungs"])

    def _take_rungs(self, rungs: int) -> None:
        """A run begins with so many rungs, or goes on to more, for which no trial is complete yet."""
        grows, self._rungs = bool(self.trials) and rungs > self._rungs, rungs
        if not grows:
            return
        revived = [trial for trial in self.trials.values() if trial.state is State.COMPLETE]
        for trial in revived:
            trial.state = State.RUNNING
            self._waiting[trial.variant.bracket][trial.reports - 1] += 1
        self.ended[State.COMPLETE] = 0
        self.complete.clear()
        for variant in {id(trial.variant): trial.variant for trial in revived}.values():
            variant.ranked = None
            if self.budget.mode == "stop":
                self._judge(variant)
        if self.budget.mode == "none":
            for variant in self._variants.values():
                self._let_on(variant, rungs)

    def _begin(self, number: int, variant_number: int, digest: str) -> None:
        bracket = variant_number % self.budget.brackets
        if variant_number not in self._variants:
            last = self._rungs - 1
            judged = last if self.budget.mode == "none" else min(self.budget.grace_rungs + bracket, last)
            self._variants[variant_number] = _Variant(bracket, judged + 1)
        variant = self._variants[variant_number]
        self.trials[number] = _Seen(number, variant, digest)
        if digest in self._left:
            self._left[digest] -= 1
        variant.trials.append(self.trials[number])
        self._proposed[bracket] += 1
        self._heading[bracket][0] += 1

    def _report(self, trial: _Seen, event: Event) -> None:
        rung, variant = event["rung"], trial.variant
        if not event.get("reused"):
            self.spent_macs += event["macs"] - trial.macs
            self.reports += 1
        trial.macs, trial.gave_up = event["macs"], False
        if rung >= self._rungs:
            return  # Of the finish.
        trial.reports, trial.val_loss = rung + 1, event["val_loss"]
        insort(self.losses[rung], trial.val_loss)
        self._heading[variant.bracket][rung] -= 1
        self._reported[variant.bracket][rung] += 1
        if trial.reports < variant.allowed:
            self._go_on(trial)
            return
        self._waiting[variant.bracket][rung] += 1
        if self.budget.mode == "stop":
            self._judge(variant)

    def _go_on(self, trial: _Seen) -> None:
        self._went_on[trial.variant.bracket][trial.reports - 1] += 1
        self._heading[trial.variant.bracket][trial.reports] += 1

    def _judge(self, variant: _Variant) -> None:
        """Where all replicates stand at a rung, they have gone on unless the next events say that they ended."""
        left = [trial for trial in variant.trials if trial.state is State.RUNNING]
        all_there = len(variant.trials) == self.study.replicates and all(trial.waits for trial in left)
        if left and all_there and variant.allowed < self._rungs:
            self._let_on(variant, variant.allowed + 1)

    def _let_on(self, variant: _Variant, allowed: int) -> None:
        standing = [trial for trial in variant.trials if trial.waits]
        variant.allowed = allowed
        for trial in standing:
            self._waiting[variant.bracket][trial.reports - 1] -= 1
            self._go_on(trial)

    def _end(self, trial: _Seen, state: State) -> None:
        bracket, variant = trial.variant.bracket, trial.variant
        if trial.waits:
            self._waiting[bracket][trial.reports - 1] -= 1
        else:
            self._heading[bracket][trial.reports] -= 1
            if state is State.PRUNED:
                self._went_on[bracket][trial.reports - 1] -= 1
        trial.state = state
        self.ended[state] += 1
        if state is State.COMPLETE:
            self._rank(variant)
        elif state is State.FAILED and self.budget.mode == "stop":
            self._judge(variant)

    def _rank(self, variant: _Variant) -> None:
        if variant.ranked is not None:
            del self.complete[bisect_left(self.complete, variant.ranked)]
        complete = [trial for trial in variant.trials if trial.state is State.COMPLETE]
        variant.ranked = -len(complete), fmean(trial.val_loss for trial in complete), complete[0].number
        insort(self.complete, variant.ranked)
