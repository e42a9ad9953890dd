"""The search: what is trained next, and what goes on at a rung. Executors only carry it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from statistics import fmean

from nas.runs.events import Event
from nas.runs.ledger import Ledger
from nas.runs.records import Failure, Report, State, TrialPlan
from nas.runs.run import Run, TrialResult, objective_value
from nas.search.halving import Decision, SuccessiveHalving, Values
from nas.search.proposals import Proposals
from nas.search.resume import continued, first_budget
from nas.search.reuse import RunCache
from nas.search.searcher import Proposer
from nas.search.seeds import Pairs
from nas.study.study import Study

FINISH_REPORTS = 6
"""Milestones of the finish, evenly spaced up to its budget."""

LOSSES = 3
"""How often in a row the worker of a trial may die before the trial is FAILED."""

FAILURES = 5
"""When so many trials of a process fail and none has reported, the search gives up: something else than they is wrong."""

OVER = (State.PRUNED, State.FAILED)
"""States that nothing follows."""

Listener = Callable[[Event, "Search"], None]


class Search:
    """The state of a run, and every decision about it.

    All state follows from the ledger's events: whatever happens is appended first and then applied, and a restart
    applies the same events again. So an interrupted run goes on with the decisions it would have made, and nothing in
    the ledger is trained twice. Raises RunError when the directory holds another study.
    """

    def __init__(self, study: Study, ledger: Ledger, listeners: tuple[Listener, ...] = ()) -> None:
        self.study, self.ledger, self.listeners = study, ledger, listeners
        self.run = Run()
        self.gave_up: str | None = None
        """Why nothing more is handed out although trials are left."""
        self._origin: Proposals | Pairs = Proposals(study) if study.search else Pairs(study)
        self._cache = RunCache(ledger.folder, study)
        self._running: set[int] = set()
        self._idle: set[int] = set()
        """Trials that may train and are on no worker."""
        self._over: dict[int, State] = {}
        """How trials are judged to have ended, until the ledger says so."""
        self._alone: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._failures, self._reported, self._finish_failed = 0, False, set[int]()
        events = continued(study, ledger)
        self._rungs = SuccessiveHalving(first_budget(events))
        for event in events:
            self._apply(event)
        # No worker of an earlier process has them any more.
        self._idle = {number for number in self._running if self._rungs.may_train(number)}
        # Said again when the process died between a report and what follows from it.
        self._settle()

    # What executors call.

    def next_plan(self) -> TrialPlan | None:
        """A trial to train on a free worker, unfinished ones of an earlier process first; None when there is none now."""
        while self.gave_up is None:
            if self._idle:
                trial = self.run.trials[min(self._idle)]
                self._idle.discard(trial.number)
                self._take_over(trial)
                # What was taken over may have let it on, which counts as idle.
                self._idle.discard(trial.number)
                if trial.state is State.RUNNING and self._rungs.may_train(trial.number):
                    return self._plan(trial)
            elif len(self.run.trials) % self.study.replicates:
                self._record(self._origin.next(self.run))
            elif (promoted := self._rungs.promotion(self._exhausted)) is not None:
                self._record({"event": "promote", "variant": promoted.number, "rung": promoted.allowed})
            elif self._exhausted:
                return None
            else:
                self._begin()
        return None

    @property
    def may_come(self) -> bool:
        """Whether plans may still come: a running trial can promote another, or be lost with its worker."""
        return self.gave_up is None and (not self.handed_out or bool(self._running))

    @property
    def handed_out(self) -> bool:
        """Whether no new trial is left to be handed out, and none waits for a worker."""
        return self._exhausted and not self._idle

    def report(self, report: Report) -> bool:
        """Take in a trial's report and tell whether the trial goes on with the worker it has."""
        trial = self.run.trials[report.trial]
        if trial.state in OVER or report.rung != len(trial.reports):
            # Of a worker that was given up for lost, and came back after another had gone on.
            return False
        if not all(map(math.isfinite, self._values(trial, report))):
            self.fail(Failure(trial=report.trial, reason=f"an objective is not finite at step {report.step}"))
            return False
        self._record({"event": "report", **report.model_dump(mode="json")})
        if trial.state is State.COMPLETE:
            return self.study.finish is not None and report.macs < self.study.finish.budget
        self._settle()
        variant = self._rungs.variant_of(trial.number)
        if variant.waits and self._rungs.promotion(self._exhausted) is variant:
            self._record({"event": "promote", "variant": variant.number, "rung": variant.allowed})
        if len(variant.reported) == 1:
            # It keeps its worker; replicates are handed out in their order, as they would be after a restart.
            self._idle.discard(trial.number)
        return trial.state is State.RUNNING and self._rungs.may_train(trial.number) and trial.number not in self._idle

    def fail(self, failure: Failure) -> None:
        """Take in that a trial cannot go on; a finish that fails leaves the trial complete.

        One that ran out of memory is handed out once more, with a GPU for itself.
        """
        trial = self.run.trials[failure.trial]
        if trial.state in OVER:
            return
        if failure.out_of_memory and trial.number not in self._alone:
            self._record({"event": "again", "trial": trial.number, "reason": failure.reason, "alone": True, "lost": False})
            return
        facts = failure.model_dump(exclude={"out_of_memory"})
        if trial.state is not State.RUNNING:
            self._finish_failed.add(trial.number)
            self._record({"event": "finish-failed", **facts})
            return
        self._record({"event": "end", "state": State.FAILED.value, **facts})
        self._failures += 1
        if self._failures >= FAILURES and not self._reported:
            self.gave_up = f"{self._failures} trials have failed and none has reported, the last one with: {failure.reason}"
        self._settle()

    def lost(self, number: int, reason: str) -> None:
        """Take in that a trial's worker died without a word: it is handed out again, from its last checkpoint, twice at most."""
        if self.run.trials[number].state in OVER:
            return
        if self._losses[number] + 1 < LOSSES:
            again = {"event": "again", "trial": number, "reason": reason, "alone": number in self._alone, "lost": True}
            self._record(again)
        else:
            self.fail(Failure(trial=number, reason=f"its worker died {LOSSES} times in a row: {reason}"))

    def finish_plans(self) -> list[TrialPlan]:
        """Plans that train the best trials on to the finish budget, from where they stand; empty when that is done."""
        finish = self.study.finish
        if finish is None:
            return []
        first, last = self.study.budget.full, finish.budget
        milestones = tuple(first + (last - first) * part // FINISH_REPORTS for part in range(1, FINISH_REPORTS + 1))
        plans = [
            self._plan(trial, tuple(macs for macs in milestones if macs > trial.reports[-1].macs))
            for trial in self.run.best(finish.best)
            if trial.number not in self._finish_failed
        ]
        return [plan for plan in plans if plan.milestones]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train, the finish included."""
        return not self.may_come and not self.finish_plans()

    def export_due(self, trial: TrialResult) -> bool:
        """Whether a trial has trained on, or is to be sampled otherwise, since it was exported."""
        return trial.export is None or any(trial.export.get(key) != value for key, value in self._export_facts(trial).items())

    def exported(self, trial: TrialResult, folder: str, without_samples: str | None = None) -> None:
        """Note that a trial was exported as it is now, to a folder relative to the run directory; and why it has no samples."""
        reason = {"without_samples": without_samples} if without_samples else {}
        self._record({"event": "export", "trial": trial.number, "folder": folder, **self._export_facts(trial), **reason})

    def _export_facts(self, trial: TrialResult) -> Event:
        how = self.study.evaluation.model_dump(mode="json")
        return {"macs": trial.reports[-1].macs, "samples": how["samples"], "fid": how["fid"]}

    @property
    def proposer(self) -> Proposer | None:
        """The sampler that proposes; an ablation has none."""
        return self._origin.proposer if isinstance(self._origin, Proposals) else None

    @property
    def _exhausted(self) -> bool:
        """Whether no new architecture will be tried."""
        return self._origin.exhausted(self.run)

    def _begin(self) -> None:
        """A new architecture, or the note that there is none."""
        event = self._origin.next(self.run)
        self._record(event)
        if event["event"] == "spent":
            self._settle()

    def _proposed(self, variant: int) -> Proposer | None:
        """The sampler, where it proposed a variant."""
        return self.proposer if self.proposer is not None and variant in self.proposer else None

    def _take_over(self, trial: TrialResult) -> None:
        """Take over what another run has trained of the same architecture with the same seed, as far as the trial goes on."""
        if any(objective.metric == "step_seconds" for objective in self.study.objectives):
            # Times of another run are of other hardware, or of other neighbours.
            return
        step_macs = trial.cost.step_macs(self.study.training.batch_size)
        steps = [-(-macs // step_macs) for macs in self.study.budget.milestones_of(step_macs)]
        found = self._cache.find(trial.spec, trial.seed, steps)
        if found is None or len(found[1]) <= len(trial.reports):
            return
        known, reports = found
        known.copy_checkpoint(reports[-1].step, self.ledger.folder / "trials" / trial.name)
        for rung in range(len(trial.reports), len(reports)):
            if trial.state is State.RUNNING and self._rungs.may_train(trial.number):
                own = reports[rung].model_copy(update={"trial": trial.number, "rung": rung})
                self._record({"event": "report", **own.model_dump(mode="json"), "reused": known.run})
                self._settle()

    def _plan(self, trial: TrialResult, left: tuple[int, ...] | None = None) -> TrialPlan:
        """The plan for the milestones that are left: by default the rungs that a trial has not reported at."""
        if left is None:
            left = self.study.budget.milestones_of(trial.cost.step_macs(self.study.training.batch_size))[len(trial.reports) :]
        return TrialPlan(
            number=trial.number,
            spec=trial.spec,
            seed=trial.seed,
            milestones=left,
            reported=len(trial.reports),
            alone=trial.number in self._alone,
        )

    # How events become state.

    def _record(self, event: Event) -> None:
        self._apply(self.ledger.append(event), live=True)

    def _apply(self, event: Event, live: bool = False) -> None:
        self.run.apply(event)
        kind, number = event["event"], event.get("trial")
        trial = self.run.trials[number] if number is not None else None
        self._origin.take(event)
        if kind == "study":
            self._take_budget()
        elif kind == "promote":
            self._follow(self._rungs.promote(event["variant"]))
            if proposer := self._proposed(event["variant"]):
                proposer.go_on(event["variant"])
        elif trial is not None:
            self._apply_to_trial(kind, trial, event, live)
        if live:
            for listener in self.listeners:
                listener(event, self)

    def _apply_to_trial(self, kind: str, trial: TrialResult, event: Event, live: bool) -> None:
        number, replicates = trial.number, self.study.replicates
        if kind == "trial":
            if number % replicates == 0:
                self._rungs.add(trial.variant, range(number, number + replicates))
                if self.proposer is not None and trial.params is not None and trial.variant not in self.proposer:
                    self.proposer.replay(trial.variant, trial.params, trial.rejected, trial.attrs)
            self._running.add(number)
            self._idle.add(number)
        elif kind == "report" and len(trial.reports) > trial.rungs:
            self._losses[number] = 0
        elif kind == "report":
            self._losses[number] = 0
            self._reported = self._reported or (live and "reused" not in event)
            report = trial.reports[-1]
            self._follow(self._rungs.report(number, report.rung, self._to_minimise(self._values(trial, report))))
            if len(trial.reports) == trial.rungs:
                self._over[number] = State.COMPLETE
            self._tell_waiting(trial.variant)
        elif kind == "again":
            self._losses[number] += event["lost"]
            if event["alone"]:
                self._alone.add(number)
            if trial.state is State.RUNNING:
                self._idle.add(number)
        elif kind == "end":
            self._idle.discard(number)
            self._running.discard(number)
            self._over.pop(number, None)
            if trial.state is State.FAILED:
                self._follow(self._rungs.remove(number))
                self._tell_waiting(trial.variant)
            elif trial.state is State.PRUNED:
                self._rungs.end(number)
            self._tell_end(trial)

    def _take_budget(self) -> None:
        """Go on to a larger budget, for which what was complete is not."""
        assert self.run.study is not None
        budget = self.run.study.budget
        if budget.rungs > self._rungs.count:
            over = [variant.number for variant in self._rungs.variants.values() if len(variant.means) == self._rungs.count]
            self._running |= {trial.number for trial in self.run.in_state(State.RUNNING)}
            # A crash may have come between the last report of a trial and the note of its end.
            self._over = {number: state for number, state in self._over.items() if state is not State.COMPLETE}
            self._follow(self._rungs.extend(budget))
            if self.proposer is not None:
                self.proposer.forget_notes()
            for number in over:
                if proposer := self._proposed(number):
                    proposer.go_on(number)
                    self._tell_waiting(number)

    def _follow(self, verdict: Decision) -> None:
        self._idle |= {trial for trial in verdict.released if trial in self._running}
        self._over |= dict.fromkeys(verdict.stopped, State.PRUNED)

    def _settle(self) -> None:
        """Write down the ends that follow from what was reported."""
        self._follow(self._rungs.stop_unpromotable(self._exhausted))
        for number, state in sorted(self._over.items()):
            self._record({"event": "end", "trial": number, "state": state.value})

    def _tell_waiting(self, number: int) -> None:
        """Tell the sampler of an architecture that waits at a rung."""
        variant = self._rungs.variants[number]
        if variant.waits and (proposer := self._proposed(number)):
            proposer.wait(number, [mean[0] for mean in variant.means])

    def _tell_end(self, trial: TrialResult) -> None:
        """Tell the sampler when the last replicate of an architecture has ended: COMPLETE, with their means, when all are."""
        first = trial.variant * self.study.replicates
        trials = [self.run.trials.get(first + replicate) for replicate in range(self.study.replicates)]
        proposer = self._proposed(trial.variant)
        if proposer is None or any(one is None or one.state is State.RUNNING for one in trials):
            return
        ended = [one for one in trials if one is not None]
        complete = [one for one in ended if one.state is State.COMPLETE]
        states = {one.state for one in ended}
        state = State.COMPLETE if states == {State.COMPLETE} else State.PRUNED if State.PRUNED in states else State.FAILED
        values = tuple(fmean(found) for found in zip(*(self._values(one, one.search_reports[-1]) for one in complete), strict=True))
        means = self._rungs.variant_of(trial.number).means
        proposer.end(trial.variant, state, values, [mean[0] for mean in means])

    def _values(self, trial: TrialResult, report: Report) -> Values:
        """The objectives' values of a trial at a report, as the study states them."""
        batch_size = self.study.training.batch_size
        return tuple(objective_value(trial, report, objective.metric, batch_size) for objective in self.study.objectives)

    def _to_minimise(self, values: Values) -> Values:
        """The same, with the sign of what is maximised turned."""
        directions = [objective.direction for objective in self.study.objectives]
        return tuple(value if way == "minimize" else -value for value, way in zip(values, directions, strict=True))
