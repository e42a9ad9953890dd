"""The search: what is trained next, and what goes on at a rung. Executors only carry it out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nas.ledger import SCHEMA, Event, Ledger, read_events
from nas.records import Failure, Report, State, TrialPlan
from nas.results import Run, TrialResult
from nas.rungs import Rungs, Values
from nas.sampler import Proposer
from nas.study import Study, differences
from space.errors import RunError, SpecError
from space.search_space import Params

FINISH_REPORTS = 6
"""Milestones of the finish, evenly spaced up to its budget."""

Listener = Callable[[Event, "Search"], None]


class Search:
    """The state of a run, and every decision about it.

    All state follows from the ledger's events: whatever happens is appended first and then applied, and a restart
    applies the same events again. So an interrupted run goes on with the decisions it would have made, and nothing in
    the ledger is trained twice. Raises RunError when the directory holds another study.
    """

    def __init__(self, study: Study, ledger: Ledger, listeners: tuple[Listener, ...] = ()) -> None:
        self.study, self.ledger, self.listeners = study, ledger, listeners
        self.space = study.search_space
        self.run = Run()
        self._rungs = Rungs(study.budget.rungs, study.budget.reduction)
        self._proposer = Proposer(self.space, study.search)
        self._goes_on: dict[int, bool] = {}
        self._digests: set[str] = set()
        self._space_is_spent = False
        events = list(read_events(ledger.folder))
        self._check_same_study(events)
        for event in events:
            self._apply(event)
        # Said again when the process died between a report and the end that follows from it.
        for trial in self.run.in_state(State.RUNNING):
            self._end_if_over(trial)
        self._waiting = deque(self.run.in_state(State.RUNNING))

    def _check_same_study(self, events: list[Event]) -> None:
        plain = self.study.model_dump(mode="json")
        if not events:
            header = self.study.data.header()
            self._record({"event": "run", "schema": SCHEMA, "study": plain, "data": header.model_dump(mode="json")})
            return
        begun = Run(events[:1])
        old = begun.study
        if old is None:
            raise RunError(f"{self.ledger.folder}: the ledger does not begin with a study; move the directory away to start anew")
        changed = differences(old, self.study)
        if changed:
            raise RunError(
                f"{self.ledger.folder} holds another study ({'; '.join(changed)}); undo the change, or run into another "
                f"directory with --out"
            )
        if begun.data is not None and begun.data.checksum != self.study.data.header().checksum:
            raise RunError(
                f"{self.ledger.folder} was trained on other data than {self.study.data.source} holds now; "
                "put the old ones back, or run into another directory with --out"
            )
        latest = [event for event in events if event["event"] in ("run", "study")][-1]
        if latest["study"] != plain:
            events.append(self.ledger.append({"event": "study", "study": plain}))

    # What executors call.

    def next_plan(self) -> TrialPlan | None:
        """The next trial to train, unfinished ones of an earlier process first; None when all have been handed out."""
        if self._waiting:
            return self._plan(self._waiting.popleft())
        if self.handed_out:
            return None
        number = len(self.run.trials)
        proposed = self._proposer.propose(number, self._turned_down)
        if proposed is None:
            self._record({"event": "spent"})
            return None
        params, rejected = proposed
        spec = self.space.spec(params)
        self._record(
            {
                "event": "trial",
                "trial": number,
                "params": params,
                "spec": spec.model_dump(mode="json"),
                "digest": spec.digest,
                "seed": self.study.training.seed,
                "rungs": self.study.budget.rungs,
                "rejected": [one.model_dump() for one in rejected],
            }
        )
        return self._plan(self.run.trials[number])

    @property
    def handed_out(self) -> bool:
        """Whether no trial is left to be handed out."""
        enough = len(self.run.trials) >= self.study.search.trials
        return not self._waiting and (enough or self._space_is_spent)

    def report(self, report: Report) -> bool:
        """Take in a trial's report and tell whether the trial goes on."""
        self._record({"event": "report", **report.model_dump(mode="json")})
        trial = self.run.trials[report.trial]
        if trial.state is State.COMPLETE:
            return self.study.finish is not None and report.macs < self.study.finish.budget
        self._end_if_over(trial)
        return trial.state is State.RUNNING

    def fail(self, failure: Failure) -> None:
        """Take in that a trial cannot go on; a finish that fails leaves the trial complete."""
        trial = self.run.trials[failure.trial]
        if trial.state is State.RUNNING:
            self._record({"event": "end", "state": State.FAILED.value, **failure.model_dump()})
        else:
            self._record({"event": "finish-failed", **failure.model_dump()})

    def finish_plans(self) -> list[TrialPlan]:
        """Plans that train the best trials on to the finish budget, from where they stand; empty when that is done."""
        finish = self.study.finish
        if finish is None:
            return []
        first, last = self.study.budget.max, finish.budget
        milestones = tuple(first + (last - first) * part // FINISH_REPORTS for part in range(1, FINISH_REPORTS + 1))
        plans = [
            self._plan(trial, tuple(macs for macs in milestones if macs > trial.reports[-1].macs))
            for trial in self.run.best(finish.best)
        ]
        return [plan for plan in plans if plan.milestones]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train, the finish included."""
        return self.handed_out and not self.run.in_state(State.RUNNING) and not self.finish_plans()

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

    # How events become state.

    def _record(self, event: Event) -> None:
        self._apply(self.ledger.append(event), live=True)

    def _apply(self, event: Event, live: bool = False) -> None:
        self.run.apply(event)
        kind, number = event["event"], event.get("trial")
        trial = self.run.trials[number] if number is not None else None
        if kind == "trial" and trial is not None:
            self._digests.add(trial.spec.digest)
            if not live:
                self._proposer.replay(trial.number, trial.params, trial.rejected)
        elif kind == "report" and trial is not None and len(trial.reports) <= trial.rungs:
            report = trial.reports[-1]
            values = self._to_minimise(self._values(trial, report.val_loss))
            self._goes_on[trial.number] = self._rungs.judge(trial.number, report.rung, values)
        elif kind == "spent":
            self._space_is_spent = True
        elif kind == "end" and trial is not None:
            losses = [report.val_loss for report in trial.search_reports]
            values = self._values(trial, losses[-1]) if trial.state is State.COMPLETE else ()
            self._proposer.end(trial.number, trial.state, values, losses)
        if live:
            for listener in self.listeners:
                listener(event, self)

    def _end_if_over(self, trial: TrialResult) -> None:
        if trial.reports and not self._goes_on[trial.number]:
            complete = len(trial.reports) == trial.rungs
            self._record({"event": "end", "trial": trial.number, "state": (State.COMPLETE if complete else State.PRUNED).value})

    def _plan(self, trial: TrialResult, left: tuple[int, ...] | None = None) -> TrialPlan:
        """The plan for the milestones that are left: by default the rungs that a trial has not reported at."""
        left = self.study.budget.milestones[len(trial.reports) :] if left is None else left
        return TrialPlan(number=trial.number, spec=trial.spec, seed=trial.seed, milestones=left, reported=len(trial.reports))

    def _turned_down(self, params: Params) -> dict[str, float] | None:
        try:
            spec = self.space.spec(params)
        except SpecError:
            return {"spec": 1.0}
        violations = self.space.violations(spec)
        if violations:
            return violations
        return {} if spec.digest in self._digests else None

    def _values(self, trial: TrialResult, val_loss: float) -> Values:
        """The objectives' values of a trial at a loss, as the study states them."""
        metrics = [objective.metric for objective in self.study.search.objectives]
        return tuple(val_loss if metric == "val_loss" else float(getattr(trial.cost, metric)) for metric in metrics)

    def _to_minimise(self, values: Values) -> Values:
        """The same, with the sign of what is maximised turned."""
        directions = [objective.direction for objective in self.study.search.objectives]
        return tuple(value if way == "minimize" else -value for value, way in zip(values, directions, strict=True))
