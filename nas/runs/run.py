"""What a run has found so far, read from its ledger; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from nas.data.header import Header
from nas.runs.events import Event
from nas.runs.ledger import read_events
from nas.runs.records import Rejected, Report, State, trial_name
from nas.study.study import Study
from space.costs.cost import Cost, cost
from space.errors import RunError
from space.spec import ModelSpec

_ABOUT = ("event", "time", "reused")
"""Keys of a report's event that are not the report's own."""


@dataclass
class TrialResult:
    """One trial as the ledger has it."""

    number: int
    plain_spec: dict[str, Any]
    """The spec as the ledger has it."""
    digest: str
    seed: int
    variant: int
    """The architecture's number; its replicates share it."""
    params: dict[str, Any] | None
    """The values of the space's parameters; None for an architecture that was enqueued from outside the space."""
    rejected: tuple[Rejected, ...]
    """Proposals turned down on the way to this one."""
    rungs: int
    attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler noted of it."""
    state: State = State.RUNNING
    reports: list[Report] = field(default_factory=list)
    """One a milestone; those beyond `rungs` are of the finish."""
    reused: list[int] = field(default_factory=list)
    """The rungs whose reports were taken over from another run."""
    reason: str = ""
    finish_failure: str = ""
    """Why the finish could not go on; the trial itself stays COMPLETE."""
    export: Event | None = None
    """The last export: `folder` relative to the run directory, the `macs` trained by then, the settings of its
    samples, and in `without_samples` why there are none."""

    @property
    def name(self) -> str:
        """The trial's directory below `trials/`."""
        return trial_name(self.number, self.digest)

    @cached_property
    def spec(self) -> ModelSpec:
        """The architecture; made when it is asked for, as a large run is read in little time then."""
        return ModelSpec.model_validate(self.plain_spec)

    @property
    def cost(self) -> Cost:
        """What the spec costs."""
        return cost(self.spec)

    @property
    def search_reports(self) -> list[Report]:
        """The reports at rungs, without those of the finish."""
        return self.reports[: self.rungs]

    @property
    def val_loss(self) -> float | None:
        """The last loss at a rung; the final value only for a COMPLETE trial."""
        reports = self.search_reports
        return reports[-1].val_loss if reports else None


def objective_value(trial: TrialResult, report: Report, metric: str, batch_size: int) -> float:
    """The value of an objective's metric for a trial at a report; infinite where nothing was measured."""
    if metric == "val_loss":
        return report.val_loss
    if metric == "step_seconds":
        return batch_size / report.images_per_s if report.images_per_s else inf
    return float(getattr(trial.cost, metric))


class Run:
    """A run's study and trials, built up event by event."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.study: Study | None = None
        self.data: Header | None = None
        self.trials: dict[int, TrialResult] = {}
        self.replanned = False
        """Whether an ablation was changed after reports had come: no test allows for that."""
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event of the ledger."""
        kind = event["event"]
        if kind in ("run", "study"):
            try:
                if "data" in event:
                    self.data = Header.model_validate(event["data"])
                before = self.study
                self.study = Study.model_validate(event["study"], context={"header": self.data} if self.data else None)
                if before and before.ablation and before.ablation != self.study.ablation:
                    self.replanned |= any(trial.reports for trial in self.trials.values())
                self._extend(self.study.budget.rungs)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in problem["loc"])
                raise RunError(
                    f"the run's study is not valid here ({where}: {problem['msg']}); use the version that made the run"
                ) from None
        elif kind == "trial":
            self.trials[event["trial"]] = TrialResult(
                number=event["trial"],
                plain_spec=event["spec"],
                digest=event["digest"],
                seed=event["seed"],
                variant=event["variant"],
                params=event["params"],
                rejected=tuple(Rejected.model_validate(r) for r in event["rejected"]),
                rungs=event["rungs"],
                attrs=event.get("attrs", {}),
            )
        elif kind == "report":
            own = dict(event)
            for key in _ABOUT:
                own.pop(key, None)
            report = Report.model_validate(own)
            trial = self.trials[report.trial]
            if "reused" in event:
                trial.reused.append(len(trial.reports))
            trial.reports.append(report)
            trial.finish_failure = ""
        elif kind == "end":
            trial = self.trials[event["trial"]]
            trial.state, trial.reason = State(event["state"]), event.get("reason", "")
        elif kind == "export":
            self.trials[event["trial"]].export = event
        elif kind == "finish-failed":
            self.trials[event["trial"]].finish_failure = event["reason"]

    def _extend(self, rungs: int) -> None:
        """A larger budget adds rungs, for which no trial is complete yet."""
        for trial in self.trials.values():
            if rungs > trial.rungs:
                trial.rungs = rungs
                if trial.state is State.COMPLETE:
                    trial.state = State.RUNNING

    def in_state(self, state: State) -> list[TrialResult]:
        """The trials in a state, by number."""
        return [trial for trial in self.trials.values() if trial.state is state]

    def ranking(self) -> list[TrialResult]:
        """All trials: complete ones by loss, then pruned ones by rung and loss, running ones, failed ones.

        Only COMPLETE trials have final values at equal compute; the order of the rest is for reading alone.
        """
        order = [State.COMPLETE, State.PRUNED, State.RUNNING, State.FAILED]

        def key(trial: TrialResult) -> tuple[float, ...]:
            loss = trial.val_loss if trial.val_loss is not None else float("inf")
            return order.index(trial.state), -len(trial.search_reports), loss, trial.number

        return sorted(self.trials.values(), key=key)

    def front(self) -> list[TrialResult]:
        """The complete trials that no other beats in both loss and inference GFLOPs, lowest loss first."""
        best = self.best(len(self.trials))
        return [trial for rank, trial in enumerate(best) if all(trial.cost.gflops < better.cost.gflops for better in best[:rank])]

    def best(self, count: int = 1) -> list[TrialResult]:
        """The complete architectures with the lowest loss, each by its first trial; of replicates, their mean counts.

        One of whose replicates some failed comes after all that are whole: fewer seeds are no fair comparison. Of an ablation the
        seeds count that every row was to be trained with.
        """
        variants: dict[str, list[TrialResult]] = {}
        for trial in self.in_state(State.COMPLETE):
            if self._is_for_all(trial):
                variants.setdefault(trial.digest, []).append(trial)

        def rank(trials: list[TrialResult]) -> tuple[int, float]:
            return -len(trials), fmean(trial.val_loss for trial in trials if trial.val_loss is not None)

        return [trials[0] for trials in sorted(variants.values(), key=rank)][:count]

    def _is_for_all(self, trial: TrialResult) -> bool:
        """Whether a trial is of a row of an ablation, and its seed was not added for some rows alone."""
        study = self.study
        if study is None or study.ablation is None:
            return True
        planned = trial.seed < study.training.seed + study.ablation.seeds.min
        return planned and any(row.spec.digest == trial.digest for row in study.rows)


def read_run(folder: Path) -> Run:
    """The run in a directory; raises RunError when it is none or is damaged."""
    collects = gc.isenabled()
    # Nothing that is read here is garbage, and looking for it would take half of the time.
    gc.disable()
    try:
        run = Run(read_events(folder))
    finally:
        if collects:
            gc.enable()
    if run.study is None:
        raise RunError(f"{folder} holds no study; its ledger is empty")
    return run
