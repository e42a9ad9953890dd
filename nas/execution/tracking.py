"""A study's trackers: TensorBoard, Weights & Biases and MLflow, through Ray Tune's own callbacks.

The ledger is the record of a run; trackers only get a copy. If a tracker raises, it is dropped and the run continues without it.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import tune

from nas.runs.layout import TRACKING
from nas.runs.records import TrialPlan
from nas.study.settings import TrackingSettings
from nas.study.study import Study
from space.costs.cost import cost
from space.document import nearest
from space.errors import StudyError
from space.files import first_line

METRICS = ("val_loss", "train_loss", "rung", "step", "images", "train_tflops", "seconds", "images_per_s", "peak_memory_mib")
"""The metrics that a tracker gets at a rung, from the results of `PlanTrainable`."""

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

_SECRETS = {"api_key": "WANDB_API_KEY", "tracking_token": "MLFLOW_TRACKING_TOKEN"}
"""Options that a study must not have, because the ledger keeps the whole study; and the variables to set instead."""

_HINTS = {
    "wandb": "; set WANDB_API_KEY, or write options: {mode: offline}",
    "mlflow": "; check options.tracking_uri or MLFLOW_TRACKING_URI",
}

_LOG = logging.getLogger(__name__)


def callbacks(settings: Sequence[TrackingSettings], study: Study, folder: Path) -> list[tune.Callback]:
    """Make the Ray Tune callbacks that log a study's trials to its trackers.

    Args:
        settings: The trackers.
        study: The study.
        folder: The run directory; trackers keep their files in its folder `tracking/`.

    Returns:
        One callback per tracker. They can serve several Tuners, one after the other.

    Raises:
        StudyError: If a tracker is not installed, has no such option, or cannot reach its server.
    """
    root = folder.resolve()
    return [Tracker(tracker.kind, _ready(tracker, study, root / TRACKING), study, root) for tracker in settings]


class Tracker(tune.Callback):
    """One tracker: wraps Ray's callback and gives it the study's trials and metrics in place of Ray's.

    Ray starts a trial again after it waited at a rung, and in the finish. To TensorBoard and MLflow that is the same trial. To
    Weights & Biases it is another run of the same name, because one process must end before another may write to its run. Steps
    are training steps.
    """

    def __init__(self, kind: str, inner: Any, study: Study, folder: Path) -> None:
        self.kind, self.study, self.folder = kind, study, folder
        self._inner = inner
        self._tracked: dict[str, TrackedTrial] = {}
        # Ids of Ray's trials: those that the tracker was given and that have not ended, and those that failed.
        self._open: set[str] = set()
        self._failed: set[str] = set()

    def setup(self, *args: Any, **info: Any) -> None:
        """Do nothing: Ray's callback was set up when it was made, so that its errors appear before training."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that a trial starts or resumes."""
        self._open.add(trial.trial_id)
        self._call("log_trial_start", self._of(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Log a trial's report at a rung, or note that it failed."""
        if "val_loss" not in result:
            self._failed.add(trial.trial_id)
            return
        metrics = {name: result[name] for name in METRICS if name in result}
        # Ray's callbacks read the step from `training_iteration`.
        self._call("log_trial_result", iteration, self._of(trial), metrics | {"training_iteration": result["step"]})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that a trial has ended or waits at a rung."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that a trial's worker died."""
        self._failed.add(trial.trial_id)
        self._end(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Log that the search or the finish has ended."""
        self._call("on_experiment_end", list(self._tracked.values()))

    def _end(self, trial: Any) -> None:
        # A worker may die before its trial has started.
        if trial.trial_id in self._open:
            self._open.remove(trial.trial_id)
            self._call("log_trial_end", self._of(trial), trial.trial_id in self._failed)

    def _of(self, trial: Any) -> TrackedTrial:
        plan = TrialPlan.model_validate_json(trial.config["plan"])
        key = trial.trial_id if self.kind == "wandb" else plan.name
        if key not in self._tracked:
            self._tracked[key] = TrackedTrial(trial.trial_id, plan.name, _config(plan, self.study), self.folder, self.kind)
        return self._tracked[key]

    def _call(self, method: str, *args: Any) -> None:
        if self._inner is None:
            return
        try:
            getattr(self._inner, method)(*args)
        except Exception as error:
            # No error of a tracker, such as a lost connection, may end a search.
            self._inner = None
            _LOG.warning("the run goes on without %s: %s", self.kind, first_line(error))

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles callbacks into its experiment state, which is never read.
        return {}


@dataclass(eq=False)
class TrackedTrial:
    """A trial as Ray's callbacks see it: the attributes of Ray's `Trial` that they read."""

    trial_id: str
    name: str
    config: dict[str, Any]
    run: Path
    kind: str
    checkpoint: None = None
    _next_start: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """The hyper-parameters that TensorBoard shows."""
        return self.config

    @property
    def experiment_dir_name(self) -> str:
        """The group in Weights & Biases: the run directory's name."""
        return self.run.name

    @property
    def local_path(self) -> str:
        """The folder of the tracker's files of this trial."""
        path = self.run / TRACKING / self.kind / self.name
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def init_local_path(self) -> None:
        """Wait before TensorBoard makes its file: the name has whole seconds, so two files within a second would be one."""
        now = time.monotonic()
        time.sleep(max(0.0, self._next_start - now))
        self._next_start = max(now, self._next_start) + 1.0


def _config(plan: TrialPlan, study: Study) -> dict[str, Any]:
    """A trial's parameters for a tracker: number, digest, seed, costs, varied paths and tuned settings; lists as JSON text."""
    spent = cost(plan.spec)
    about = {
        "trial": plan.number,
        "digest": plan.spec.digest,
        "seed": plan.seed,
        "gflops": spent.gflops,
        "params_m": spent.params_m,
    }
    varied = {path: plan.spec.value_at(path) for path in study.varied} | study.tuned_of(plan)
    return about | {path: value if isinstance(value, (str, int, float)) else json.dumps(value) for path, value in varied.items()}


# Making and setting up Ray's callbacks.


def _ready(tracker: TrackingSettings, study: Study, folder: Path) -> Any:
    """Ray's callback for a tracker, with the study's options over the defaults; raises StudyError when it cannot be used."""
    kind = tracker.kind
    if find_spec(_PACKAGES[kind]) is None:
        raise StudyError(f"tracking: {kind} is not installed; pip install {_PACKAGES[kind]}, or take it out of the study")
    make, known = _callback(kind)
    for option in tracker.options:
        if option in _SECRETS:
            raise StudyError(f"tracking: {option} is a secret, which a run's ledger would keep; set {_SECRETS[option]} instead")
        if option not in known:
            raise StudyError(f"tracking: {kind} has no option '{option}'{nearest(option, known)}")
    try:
        callback = make(**_defaults(tracker, study, folder), **tracker.options)
        callback.setup()
    except Exception as error:
        # The tracker's package or server may raise anything.
        raise StudyError(f"tracking: {kind} cannot be used: {first_line(error)}{_HINTS.get(kind, '')}") from None
    return callback


def _callback(kind: str) -> tuple[Any, list[str]]:
    """Ray's class for a tracker and the names of its options; imported here because the classes import their packages."""
    if kind == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        # It passes options that it does not know on to `wandb.init`.
        return WandbLoggerCallback, _named(WandbLoggerCallback) + _named(import_module("wandb").init)
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback, _named(MLflowLoggerCallback)
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback, _named(TBXLoggerCallback)


def _named(function: Any) -> list[str]:
    """The names of a function's arguments, without `*args` and `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]


def _defaults(tracker: TrackingSettings, study: Study, folder: Path) -> dict[str, Any]:
    """Options that the study does not set: the project is named after the study, and MLflow's database is in the run."""
    defaults: dict[str, Any] = {}
    if tracker.kind == "wandb":
        defaults = {"project": study.name}
        if tracker.options.get("mode") in ("offline", "disabled"):
            # Ray's callback asks for a key unless this variable is set.
            os.environ["WANDB_MODE"] = tracker.options["mode"]
    elif tracker.kind == "mlflow":
        defaults = {"experiment_name": study.name}
        if "MLFLOW_TRACKING_URI" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            defaults["tracking_uri"] = f"sqlite:///{folder / 'mlflow.db'}"
    return {key: value for key, value in defaults.items() if key not in tracker.options}
