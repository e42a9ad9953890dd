"""The state of a search, which follows from the events of its ledger alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from nas.runs.events import (
    Event,
    HandedOutAgain,
    Promoted,
    Reported,
    RunBegan,
    StudyChanged,
    TrialBegan,
    TrialEnded,
)
from nas.runs.ledger import apply_events, read_events
from nas.runs.records import State
from nas.runs.run import Run, objective_values
from nas.search.halving import SuccessiveHalving
from nas.search.variants import Decision
from nas.study.objectives import to_judge
from nas.study.study import Study
from space.errors import RunError


class SearchState:
    """The run, the rungs, and which trials are running, idle or judged; the same events give the same state."""

    def __init__(self) -> None:
        self.run = Run()
        self.running: set[int] = set()
        self.idle: set[int] = set()
        """Trials that may train and are on no worker."""
        self.ending: dict[int, State] = {}
        """Trials that are decided to have ended, and their states, until the ledger records it."""
        self.alone: set[int] = set()
        """Trials that get a whole GPU for themselves."""
        self.losses: Counter[int] = Counter()
        """Per trial: how many of its workers have died in a row."""
        self._halving: SuccessiveHalving | None = None

    @property
    def halving(self) -> SuccessiveHalving:
        """The rungs; raises RunError before the first event."""
        if self._halving is None:
            raise RunError("the ledger does not begin with a study; move the directory away to start anew")
        return self._halving

    def apply(self, event: Event) -> None:
        """Apply the next event of the ledger."""
        self.run.apply(event)
        match event:
            case RunBegan():
                self._halving = SuccessiveHalving(event.study.budget)
            case StudyChanged():
                self._take_budget(event.study)
            case TrialBegan():
                self._begin(event)
            case Reported():
                self._report(event)
            case Promoted():
                self.follow(self.halving.promote(event.variant))
                self._note_allowed(event.variant)
            case HandedOutAgain():
                self.losses[event.trial] += event.lost
                if event.alone:
                    self.alone.add(event.trial)
                if self.run.trials[event.trial].state is State.RUNNING:
                    self.idle.add(event.trial)
            case TrialEnded():
                self._end(event)

    def follow(self, decision: Decision) -> None:
        """Apply a decision made at a rung."""
        self.idle |= {trial for trial in decision.released if trial in self.running}
        self.ending |= dict.fromkeys(decision.stopped, State.PRUNED)

    def _begin(self, event: TrialBegan) -> None:
        replicates = self.run.study.replicates
        if event.trial % replicates == 0:
            self.halving.add(event.variant, range(event.trial, event.trial + replicates))
            self._note_allowed(event.variant)
        self.running.add(event.trial)
        self.idle.add(event.trial)

    def _report(self, event: Reported) -> None:
        trial = self.run.trials[event.trial]
        self.losses[event.trial] = 0
        if len(trial.reports) > trial.rungs:
            return  # The report belongs to the finish.
        values = objective_values(self.run.study, trial, event)
        self.follow(self.halving.report(event.trial, event.rung, to_judge(self.run.study.objectives, values)))
        if len(trial.reports) == trial.rungs:
            self.ending[event.trial] = State.COMPLETE
        self._note_allowed(trial.variant)

    def _end(self, event: TrialEnded) -> None:
        number = event.trial
        self.idle.discard(number)
        self.running.discard(number)
        self.ending.pop(number, None)
        if event.state is State.FAILED:
            self.follow(self.halving.remove(number))
        elif event.state is State.PRUNED:
            self.halving.end(number)
        self._note_allowed(self.run.trials[number].variant)

    def _take_budget(self, study: Study) -> None:
        """Switch to a larger budget, under which no trial is complete yet."""
        if study.budget.rungs <= self.halving.budget.rungs:
            return
        self.running |= {trial.number for trial in self.run.in_state(State.RUNNING)}
        # A crash may have come between the last report of a trial and the event of its end.
        self.ending = {number: state for number, state in self.ending.items() if state is not State.COMPLETE}
        self.follow(self.halving.extend(study.budget))
        for variant in self.halving.variants:
            self._note_allowed(variant)

    def _note_allowed(self, variant: int) -> None:
        self.run.allowed[variant] = self.halving.variants[variant].allowed


def read_state(folder: Path, events: Iterable[Event] | None = None) -> SearchState:
    """The state of the search in a run directory, from its `events` where they are read already.

    Raises:
        RunError: When the directory is no run or is damaged.
    """
    state = SearchState()
    apply_events(folder, read_events(folder) if events is None else events, state.apply)
    if not state.run.begun:
        raise RunError(f"{folder} holds no study; its ledger is empty")
    return state
