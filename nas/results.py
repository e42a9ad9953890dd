"""What a run has found so far, read from its ledger; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas.data.store import Header
from nas.ledger import Event, read_events
from nas.records import Rejected, Report, State, trial_name
from nas.study import Study
from space.cost import Cost, cost
from space.errors import RunError
from space.spec import ModelSpec


@dataclass
class TrialResult:
    """One trial as the ledger has it."""

    number: int
    spec: ModelSpec
    seed: int
    params: dict[str, Any]
    rejected: tuple[Rejected, ...]
    """Proposals turned down on the way to this one."""
    rungs: int
    state: State = State.RUNNING
    reports: list[Report] = field(default_factory=list)
    """One a milestone; those beyond `rungs` are of the finish."""
    reason: str = ""
    finish_failure: str = ""
    """Why the finish could not go on; the trial itself stays COMPLETE."""
    export: Event | None = None
    """The last export: `folder` relative to the run directory, the `macs` trained by then, the settings of its
    samples, and in `without_samples` why there are none."""

    @property
    def name(self) -> str:
        """The trial's directory below `trials/`."""
        return trial_name(self.number, self.spec)

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


class Run:
    """A run's study and trials, built up event by event."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.study: Study | None = None
        self.data: Header | None = None
        self.trials: dict[int, TrialResult] = {}
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event of the ledger."""
        kind = event["event"]
        if kind in ("run", "study"):
            try:
                if "data" in event:
                    self.data = Header.model_validate(event["data"])
                self.study = Study.model_validate(event["study"], context={"header": self.data} if self.data else None)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in problem["loc"])
                raise RunError(
                    f"the run's study is not valid here ({where}: {problem['msg']}); use the version that made the run"
                ) from None
        elif kind == "trial":
            self.trials[event["trial"]] = TrialResult(
                number=event["trial"],
                spec=ModelSpec.model_validate(event["spec"]),
                seed=event["seed"],
                params=event["params"],
                rejected=tuple(Rejected.model_validate(r) for r in event["rejected"]),
                rungs=event["rungs"],
            )
        elif kind == "report":
            report = Report.model_validate({key: value for key, value in event.items() if key not in ("event", "time")})
            self.trials[report.trial].reports.append(report)
            self.trials[report.trial].finish_failure = ""
        elif kind == "end":
            trial = self.trials[event["trial"]]
            trial.state, trial.reason = State(event["state"]), event.get("reason", "")
        elif kind == "export":
            self.trials[event["trial"]].export = event
        elif kind == "finish-failed":
            self.trials[event["trial"]].finish_failure = event["reason"]

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
        return [trial for place, trial in enumerate(best) if all(trial.cost.gflops < better.cost.gflops for better in best[:place])]

    def best(self, count: int = 1) -> list[TrialResult]:
        """The complete trials with the lowest loss."""
        return [trial for trial in self.ranking() if trial.state is State.COMPLETE][:count]


def read_run(folder: Path) -> Run:
    """The run in a directory; raises RunError when it is none or is damaged."""
    run = Run(read_events(folder))
    if run.study is None:
        raise RunError(f"{folder} holds no study; its ledger is empty")
    return run
