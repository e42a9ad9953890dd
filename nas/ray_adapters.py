"""Ray Tune's Searcher and TrialScheduler over a `Search`, and the Trainable that carries out its plans.

Ray starts and stops trials; every decision is the search's. Ray pickles searcher and scheduler into its experiment
state, which is never read again, so they go there empty: the ledger is the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.records import Failure, Report, TrialPlan
from nas.search import Search
from nas.study import Study
from space.errors import RunError

if TYPE_CHECKING:
    from nas.trial import Trial

PLAN = "plan"
_REPORT, _FAILURE, _BROKEN = "report_json", "failure_json", "broken"


class PlanSearcher(Searcher):
    """Hands out plans: the search's, or a fixed list when the finish is run."""

    def __init__(self, scheduler: RungScheduler, folder: Path, plans: list[TrialPlan] | None = None) -> None:
        super().__init__()
        self._scheduler, self._plans = scheduler, plans
        self._common = {"study": scheduler.search.study.model_dump_json(), "folder": str(folder)}

    def suggest(self, trial_id: str) -> Any:
        """The next plan as a trial's configuration, or FINISHED."""
        plan = None if self._scheduler.broken else self._next()
        return Searcher.FINISHED if plan is None else {PLAN: plan.model_dump_json(), **self._common}

    def _next(self) -> TrialPlan | None:
        if self._plans is not None:
            return self._plans.pop(0) if self._plans else None
        try:
            return self._scheduler.search.next_plan()
        except RunError as error:
            self._scheduler.broken = error
            return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the search."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see the module."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see the module."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RungScheduler(FIFOScheduler):
    """Passes reports on to the search and its decisions back to Ray.

    `broken` is the reason when the run directory can no longer be written: every trial is stopped then, as nothing that they
    did would be kept.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search = search
        self.broken: RunError | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP, as the search decides."""
        try:
            goes_on = self.broken is None and self._take(result)
        except RunError as error:
            self.broken, goes_on = error, False
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def _take(self, result: dict[str, Any]) -> bool:
        if _BROKEN in result:
            raise RunError(result[_BROKEN])
        if _FAILURE in result:
            self.search.fail(Failure.model_validate_json(result[_FAILURE]))
            return False
        return self.search.report(Report.model_validate_json(result[_REPORT]))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker died without saying why, as when the system kills it for memory: the trial is FAILED."""
        plan = TrialPlan.model_validate_json(trial.config[PLAN])
        try:
            self.search.fail(Failure(trial=plan.number, reason=f"the worker died: {_last_words(trial)}"))
        except RunError as error:
            self.broken = error

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _last_words(trial: Any) -> str:
    """The last line of what Ray wrote about a trial's error, without its advice."""
    path = trial.error_file
    lines = Path(path).read_text(errors="replace").split("\n") if path and Path(path).exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
    return last.partition(" Some common causes")[0]


class PlanTrainable(tune.Trainable):
    """A worker: trains one plan after the other in the same process."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first plan."""
        self._config = config
        self._trial: Trial | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another plan in place of the one before."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the plan's next milestone; an exception becomes data, so the worker lives on."""
        from nas.trial import Trial, as_failure

        plan = TrialPlan.model_validate_json(self._config[PLAN])
        try:
            if self._trial is None:
                _use_threads(self)
                study = Study.model_validate_json(self._config["study"])
                self._trial = Trial(plan, study, Path(self._config["folder"]) / plan.name)
            return {_REPORT: self._trial.advance().model_dump_json()}
        except RunError as error:
            return {_BROKEN: str(error)}
        except Exception as error:
            self._trial = None
            return {_FAILURE: as_failure(plan.number, error).model_dump_json()}

    def cleanup(self) -> None:
        """Drop the model."""
        self._trial = None

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing for Ray: the trial keeps its own checkpoint in the run directory."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""


def _use_threads(worker: PlanTrainable) -> None:
    """As many threads as the trial was given cores."""
    import torch

    granted = worker.trial_resources
    torch.set_num_threads(max(1, int(granted.required_resources.get("CPU", 1))) if granted else 1)
