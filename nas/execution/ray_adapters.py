"""Ray Tune's Searcher and TrialScheduler over a `Search`, and the Trainable that carries out its plans.

Ray starts and stops trials; the search makes every decision. Ray pickles searcher and scheduler into its experiment state. That
state is never read again, because the ledger is the record of a run, so both are pickled empty.
"""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas.execution.ending import Ending
from nas.execution.packing import awaited_bytes, training_bytes
from nas.execution.watchdog import START_LIMIT_S, end_worker, ends_worker, take_reason, wait_for_memory
from nas.runs.layout import TRIALS
from nas.runs.records import Failure, Report, TrialPlan
from nas.runs.remote import fetch_checkpoint, locate, remote_at, upload_checkpoint
from nas.study.study import Study
from space.errors import RunError

if TYPE_CHECKING:
    # Workers do not import the search package.
    from nas.search.controller import Search
    from nas.training.trial import Trial

PLAN, STUDY, FOLDER, CPU, GPU = "plan", "study", "folder", "cpu", "gpu"
"""Keys of a Ray trial's configuration: a plan as JSON, the file of its study, the folder of all trials, its cores and GPUs."""

URI, RUN = "uri", "run"
"""Two more keys for a run directory at a URI: the URI and the run's identity. `STUDY` is then the name of a file there."""

REPORT, FAILURE, BROKEN = "report_json", "failure_json", "broken"
"""Keys of a step's result, of which it has exactly one: a report, a failure, or the reason why the run directory is unusable."""

MEMORY_LIMIT_S = 120.0
"""Seconds that a trial waits for free GPU memory."""

Share = dict[str, float]
"""CPU cores and GPUs under `CPU` and `GPU`."""


class RungScheduler(FIFOScheduler):
    """Passes reports on to the search and its decisions back to Ray.

    Attributes:
        plans: The remaining plans of the finish; None during the search, which makes its own plans.
        broken: The error that made the run directory unusable, if any. Every trial is then stopped, as its work would be lost.
    """

    def __init__(self, search: Search, plans: list[TrialPlan] | None = None, ending: Ending | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search, self.ending = search, ending or Ending()
        self.plans = None if plans is None else deque(plans)
        self.broken: RunError | None = None

    def next_plan(self) -> TrialPlan | None:
        """The next plan of the finish or of the search; None when there is none at the moment."""
        if self.broken or self.ending.reason:
            return None
        try:
            plan = self.search.next_plan() if self.plans is None else self.plans.popleft() if self.plans else None
        except RunError as error:
            self.broken = error
            return None
        return plan if plan is not None and self.ending.begins(plan, self.search) else None

    @property
    def may_come(self) -> bool:
        """Whether there can be another plan later, while trials are running."""
        return not (self.broken or self.ending.reason) and self.plans is None and self.search.may_come

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None, so Ray starts pending trials in order; its own search for one would go through all trials of the run."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP, as the search decides."""
        try:
            continues = self.broken is None and self._take(result, _plan(trial))
        except RunError as error:
            self.broken, continues = error, False
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)

    def _take(self, result: dict[str, Any], plan: TrialPlan) -> bool:
        if BROKEN in result:
            raise RunError(result[BROKEN])
        if FAILURE in result:
            self.search.fail(Failure.model_validate_json(result[FAILURE]))
            return False
        report = Report.model_validate_json(result[REPORT])
        self.ending.measure(report)
        return self.search.report(report) and self.ending.goes_on(report, plan)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Handle a worker or node that died, for example killed for its memory: the trial is handed out again, unless it hung."""
        if self.broken is not None:
            return
        plan = _plan(trial)
        hung = take_reason(_folder(trial.config, plan))
        try:
            if hung:
                self.search.fail(Failure(trial=plan.number, reason=hung))
            else:
                self.search.lost(plan.number, f"the worker died: {_last_words(trial)}")
        except RunError as error:
            self.broken = error

    def __getstate__(self) -> dict[str, Any]:
        return {}


class PlanSearcher(Searcher):
    """Hands the scheduler's plans to Ray, each as a new trial with its share of a node."""

    def __init__(
        self, scheduler: RungScheduler, study: Path, folder: Path, share: Callable[[TrialPlan], Share], **elsewhere: str
    ) -> None:
        super().__init__()
        self._scheduler, self._share = scheduler, share
        # Keep the configuration small: Ray holds several copies per trial.
        self._common = {STUDY: str(study), FOLDER: str(folder), **elsewhere}
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """The next plan as a trial's configuration; None when one may come later; FINISHED when none will come."""
        plan = self._scheduler.next_plan()
        if plan is None:
            # Only a running trial's report can lead to another plan, so without running trials Ray must stop asking.
            return None if self._running and self._scheduler.may_come else Searcher.FINISHED
        self._running.add(trial_id)
        return {PLAN: plan.model_dump_json(), **self._common, **self._share(plan)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Remove a trial from the running ones; the scheduler has already informed the search."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the record of a run."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _plan(trial: Any) -> TrialPlan:
    return TrialPlan.model_validate_json(trial.config[PLAN])


def _last_words(trial: Any) -> str:
    """The last line of Ray's error file of a trial, without Ray's advice."""
    path = trial.error_file
    lines = Path(path).read_text(errors="replace").split("\n") if path and Path(path).exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
    return last.partition(" Some common causes")[0]


class Listens(tune.Callback):
    """Takes the signals back from Ray Tune, whose handler of SIGUSR1 ends every trial at once."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Take the signals, after Ray Tune has begun."""
        self._ending.listen()

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ShortMemory(tune.Callback):
    """Removes the metrics from a result after all callbacks before this one have read them.

    Otherwise Ray keeps the last, mean and extreme values of every metric of every trial until it ends: 60 KiB per trial.
    """

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Keep only the entries that Ray itself reads."""
        kept: dict[str, Any] = {key: result[key] for key in ("trial_id", "training_iteration", "done") if key in result}
        result.clear()
        result.update(kept)


class PlanTrainable(tune.Trainable):
    """A worker process: trains one plan after the other."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the plan of a configuration."""
        self._config = config
        self._trial: Trial | None = None
        self._holds = False
        """Whether a trial may still have tensors in memory."""
        self._plan = TrialPlan.model_validate_json(config[PLAN])
        self._folder = _folder(config, self._plan)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drop the previous plan and take the next; True tells Ray that the worker can be reused."""
        self._drop()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the plan's next milestone; return an exception as data, so that the worker process survives."""
        from nas.training.trial import as_failure

        try:
            return step_result(self._advance())
        except RunError as error:
            return {BROKEN: str(error)}
        except Exception as error:
            failure = as_failure(self._plan.number, error)
        # Outside the except block the exception is gone; its traceback kept the frames' tensors alive.
        self._drop()
        return {FAILURE: failure.model_dump_json()}

    def _advance(self) -> Report:
        uri = self._config.get(URI)
        study = _study(_text_at(uri, self._config[STUDY]) if uri else Path(self._config[STUDY]).read_text(encoding="utf-8"))
        limit = study.resources.step_limit_s
        if self._trial is None:
            # Remove a note that a worker of an earlier process left.
            take_reason(self._folder)
            self._holds = True
            with ends_worker(lambda: None, max(limit, START_LIMIT_S), self._folder, "loading data and building the model"):
                if uri:
                    fetch_checkpoint(uri, self._plan.name, self._folder, self._config[RUN])
                self._trial = self._begin(study)
        trial = self._trial
        with ends_worker(lambda: trial.progress, limit, self._folder):
            report = trial.advance()
            if uri:
                upload_checkpoint(uri, self._plan.name, self._folder)
        if trial.finished:
            self._drop()
        return report

    def _begin(self, study: Study) -> Trial:
        import torch

        from nas.training.trial import Trial

        torch.set_num_threads(study.resources.cpu)
        if self._config[GPU] and torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            training = study.training_of(self._plan)
            trial_bytes = training_bytes(self._plan.spec, training.batch_size, len(training.ema))
            needed = awaited_bytes(trial_bytes, data_bytes(study), total, min(1.0, self._config[GPU]))
            wait_for_memory(needed, lambda: torch.cuda.mem_get_info(0)[0], MEMORY_LIMIT_S)
        return Trial(self._plan, study, self._folder)

    def _drop(self) -> None:
        """Release the model's memory for other users of the device."""
        if not self._holds:
            return
        import torch

        self._trial, self._holds = None, False
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                # After a device error no CUDA call works in this process any more; the next trial gets a new worker.
                end_worker(self._folder, f"the GPU failed: {str(error).splitlines()[0]}")

    def cleanup(self) -> None:
        """Drop the model."""
        self._trial = None

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Do nothing: the trial keeps its own checkpoint in the run directory."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: see `save_checkpoint`."""


def step_result(report: Report) -> dict[str, Any]:
    """A report as a Trainable's result: as JSON for the search, and as separate metrics for Ray's loggers."""
    numbers = ("trial", "rung", "step", "images", "val_loss", "train_loss", "seconds", "images_per_s", "peak_memory_mib")
    return {
        REPORT: report.model_dump_json(),
        "train_tflops": report.macs / 1e12,
        **{name: getattr(report, name) for name in numbers},
    }


def data_bytes(study: Study) -> int:
    """The size of the training samples on a GPU, in bytes."""
    header = study.header
    itemsize = {"uint8": 1, "float16": 2, "float32": 4}[header.dtype]
    return round(math.prod(header.rows_shape) * itemsize * (1 - study.data.held_out))


def _folder(config: dict[str, Any], plan: TrialPlan) -> Path:
    """The folder of a trial on this machine."""
    # Every machine has its own mirror of a URI.
    root = locate(config[URI]).folder / TRIALS if URI in config else Path(config[FOLDER])
    return root / plan.name


@lru_cache(maxsize=1)
def _text_at(uri: str, name: str) -> str:
    """The text of a file at a URI; read once per process."""
    content = remote_at(uri).read(name)
    if content is None:
        raise RunError(f"{remote_at(uri).uri} has lost its {name}; run the same command again")
    return content.decode()


@lru_cache(maxsize=1)
def _study(text: str) -> Study:
    """The study; checked once per process."""
    return Study.unpacked(text)
