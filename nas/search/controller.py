"""The search: decides which trial is trained next and which trains on after a rung. Executors carry the decisions out."""

from __future__ import annotations

import math
from collections.abc import Callable

from nas.runs.events import Event, FinishFailed, HandedOutAgain, Promoted, Reported, SpaceSpent, TrialEnded
from nas.runs.layout import TRIALS
from nas.runs.ledger import Ledger, apply_events
from nas.runs.records import Failure, Report, State, TrialPlan
from nas.runs.run import Run, TrialResult, lacks_metric, objective_values
from nas.runs.winners import leading
from nas.search.halving import SuccessiveHalving
from nas.search.proposals import Proposals
from nas.search.resume import resumed
from nas.search.reuse import RunCache
from nas.search.seeds import PairedSeeds
from nas.search.sources import TrialSource
from nas.search.state import SearchState
from nas.study.study import Study
from space.errors import RunError

FINISH_REPORTS = 6
"""Milestones of the finish, evenly spaced up to its budget."""

MOST_LOSSES = 3
"""A trial is FAILED once this many of its workers have died in a row."""

MOST_FAILURES = 5
"""The search gives up when this many trials of one process fail and none has reported: the cause is then not in the trials."""

OVER = (State.PRUNED, State.FAILED)
"""Terminal states."""

Listener = Callable[[Event, Run], None]
"""Called with every new event, and with the run after that event."""


def source_of(study: Study) -> TrialSource:
    """Where a study's trials come from. It writes nothing, so a searcher that cannot be made leaves nothing behind."""
    return Proposals(study) if study.search else PairedSeeds(study)


class Search:
    """Every decision about a run.

    All state follows from the ledger's events (`SearchState`). An event is appended first and then applied; a restart applies the
    same events again. So an interrupted run makes the decisions that it would have made, and trains nothing in the ledger twice.

    Raises:
        RunError: When the directory holds another study.
    """

    def __init__(
        self, study: Study, ledger: Ledger, listeners: tuple[Listener, ...] = (), source: TrialSource | None = None
    ) -> None:
        self.study, self.ledger, self.listeners = study, ledger, listeners
        self.gave_up: str | None = None
        """Why no more trials are handed out although some are left; None while the search has not given up."""
        self.source = source or source_of(study)
        self._cache = RunCache(ledger.folder, study)
        self._state = SearchState()
        self._failures, self._reported, self._finish_failed = 0, False, set[int]()
        apply_events(ledger.folder, resumed(study, ledger), self._apply)
        # The workers of an earlier process are gone, so every trial that may train is idle.
        self._state.idle = {number for number in self._state.running if self._halving.may_train(number)}
        # The process may have died between a report and the events that follow from it.
        self._settle()

    @property
    def run(self) -> Run:
        """The study, trials and reports so far."""
        return self._state.run

    # Called by executors.

    def next_plan(self) -> TrialPlan | None:
        """The next trial for a free worker, or None when there is none now. Unfinished trials of an earlier process come first."""
        while self.gave_up is None:
            if self._state.idle:
                trial = self.run.trials[min(self._state.idle)]
                self._state.idle.discard(trial.number)
                self._take_over(trial)
                # Reused reports can release this trial again; drop it from the idle set.
                self._state.idle.discard(trial.number)
                if trial.state is State.RUNNING and self._halving.may_train(trial.number):
                    return self._plan(trial)
            elif len(self.run.trials) % self.study.replicates:
                self.record(self.source.next(self.run))
            elif (promoted := self._halving.promotion(self._exhausted)) is not None:
                self.record(Promoted(variant=promoted.number, rung=promoted.allowed))
            elif self._exhausted:
                return None
            else:
                self._begin()
        return None

    @property
    def may_come(self) -> bool:
        """Whether `next_plan` may still return a plan: a running trial can lead to a promotion, or lose its worker."""
        return self.gave_up is None and (not self.handed_out or bool(self._state.running))

    @property
    def handed_out(self) -> bool:
        """Whether no new trial will begin and no trial waits for a worker."""
        return self._exhausted and not self._state.idle

    def report(self, report: Report) -> bool:
        """Record a trial's report.

        Args:
            report: The report at the trial's next milestone.

        Returns:
            Whether the trial trains on with the worker it has.

        Raises:
            RunError: The report has no value of the metric that is compared, which no other trial would have either.
        """
        trial = self.run.trials[report.trial]
        if trial.state in OVER or report.rung != len(trial.reports):
            # The report comes from a worker that was believed lost, and another worker has taken the trial since.
            return False
        if lacks := lacks_metric(self.study, report):
            raise RunError(f"{self.ledger.folder}: the report of trial {report.trial} {lacks}, and run the same command again")
        # Reports of a finish are compared with nothing, and searches score no samples there.
        judged = report.rung < self.study.budget.rungs
        if judged and not all(map(math.isfinite, objective_values(self.study, trial, report))):
            self.fail(Failure(trial=report.trial, reason=f"an objective is not finite at step {report.step}"))
            return False
        self._reported = True
        self.record(Reported(**report.model_dump()))
        if trial.state is State.COMPLETE:
            return self.study.finish is not None and report.macs < self.study.finish_macs_of(trial.spec, self._batch_size(trial))
        self._settle()
        variant = self._halving.variant_of(trial.number)
        if variant.waits and self._halving.promotion(self._exhausted) is variant:
            self.record(Promoted(variant=variant.number, rung=variant.allowed))
        if len(variant.reported) == 1:
            # The only replicate left keeps its worker. Several replicates are handed out by number, as after a restart.
            self._state.idle.discard(trial.number)
        may_train = trial.state is State.RUNNING and self._halving.may_train(trial.number)
        return may_train and trial.number not in self._state.idle

    def fail(self, failure: Failure) -> None:
        """Record that a trial cannot be trained further.

        A trial that ran out of memory is handed out once more, with a whole GPU for itself. A finish that fails leaves its trial
        COMPLETE.
        """
        trial = self.run.trials[failure.trial]
        if trial.state in OVER:
            return
        if failure.out_of_memory and trial.number not in self._state.alone:
            self.record(HandedOutAgain(trial=trial.number, reason=failure.reason, alone=True, lost=False))
            return
        if trial.state is not State.RUNNING:
            self._finish_failed.add(trial.number)
            self.record(FinishFailed(trial=trial.number, reason=failure.reason, trace=failure.trace))
            return
        self.record(TrialEnded(trial=trial.number, state=State.FAILED, reason=failure.reason, trace=failure.trace))
        self._failures += 1
        if self._failures >= MOST_FAILURES and not self._reported:
            self.gave_up = f"{self._failures} trials have failed and none has reported, the last one with: {failure.reason}"
        self._settle()

    def lost(self, number: int, reason: str) -> None:
        """Record that a trial's worker died without a report.

        The trial is handed out again from its last checkpoint. It fails when `MOST_LOSSES` of its workers die in a row.
        """
        if self.run.trials[number].state in OVER:
            return
        if self._state.losses[number] + 1 < MOST_LOSSES:
            self.record(HandedOutAgain(trial=number, reason=reason, alone=number in self._state.alone, lost=True))
        else:
            self.fail(Failure(trial=number, reason=f"its worker died {MOST_LOSSES} times in a row: {reason}"))

    def finish_plans(self) -> list[TrialPlan]:
        """Plans that train the best trials on from their last report to the finish budget; empty when all are there.

        With `confirm`, there are none before the best of them is confirmed.
        """
        finish = self.study.finish
        if finish is None:
            return []
        best = [trial for trial in leading(self.run, finish.best) if trial.number not in self._finish_failed]
        plans = [self._plan(trial, self._finish_milestones(trial)) for trial in best]
        return [plan for plan in plans if plan.milestones]

    def _finish_milestones(self, trial: TrialResult) -> tuple[int, ...]:
        """The milestones of the finish that a trial has not reached yet."""
        size = self._batch_size(trial)
        first, last = self.study.milestones_of(trial.spec, size)[-1], self.study.finish_macs_of(trial.spec, size)
        milestones = (first + (last - first) * part // FINISH_REPORTS for part in range(1, FINISH_REPORTS + 1))
        return tuple(macs for macs in milestones if macs > trial.reports[-1].macs)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train, the finish included."""
        return not self.may_come and not self.finish_plans()

    def record(self, event: Event) -> None:
        """Append an event to the ledger, apply it, and call the listeners."""
        stamped = self.ledger.append(event)
        self._apply(stamped)
        for listener in self.listeners:
            listener(stamped, self.run)

    # Decisions.

    @property
    def _exhausted(self) -> bool:
        """Whether no new architecture will be tried."""
        return self.source.exhausted(self.run)

    @property
    def _halving(self) -> SuccessiveHalving:
        return self._state.halving

    def _apply(self, event: Event) -> None:
        self._state.apply(event)
        self.source.take(event, self.run, self._halving)

    def _begin(self) -> None:
        """Begin a new architecture, or record that none is left."""
        event = self.source.next(self.run)
        self.record(event)
        if isinstance(event, SpaceSpent):
            self._settle()

    def _take_over(self, trial: TrialResult) -> None:
        """Reuse another run's checkpoint and reports of the same architecture and seed, as far as the trial may train."""
        cached = self._cache.lookup(trial)
        if cached is None:
            return
        cached.copy_checkpoint(self.ledger.folder / TRIALS / trial.name)
        for report in cached.reports:
            if trial.state is State.RUNNING and self._halving.may_train(trial.number):
                self.record(Reported(**report.model_dump(), reused=cached.run))
                self._settle()

    def _plan(self, trial: TrialResult, left: tuple[int, ...] | None = None) -> TrialPlan:
        """The plan for the milestones that are left; by default, the rungs at which the trial has not reported."""
        if left is None:
            left = self.study.milestones_of(trial.spec, self._batch_size(trial))[len(trial.reports) :]
        return TrialPlan(
            number=trial.number,
            spec=trial.spec,
            seed=trial.seed,
            milestones=left,
            reported=len(trial.reports),
            alone=trial.number in self._state.alone,
            training=trial.training,
        )

    def _batch_size(self, trial: TrialResult) -> int:
        return self.study.training_of(trial).batch_size

    def _settle(self) -> None:
        """Record the trials that ended because of the reports so far."""
        self._state.follow(self._halving.stop_unpromotable(self._exhausted))
        for number, state in sorted(self._state.ending.items()):
            self.record(TrialEnded(trial=number, state=state))
