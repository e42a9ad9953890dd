"""A study's trackers: TensorBoard, Weights & Biases and MLflow through Ray Tune's own callbacks, told about trials in our words.

The ledger stays the record of a run. Trackers are told of it besides: a tracker that breaks is left out from then on, and the
run goes on without it.
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
"""What a tracker is told at a rung, as `PlanTrainable` reports it."""

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

_SECRETS = {"api_key": "WANDB_API_KEY", "tracking_token": "MLFLOW_TRACKING_TOKEN"}
"""Options that a study must not hold, as a run's ledger keeps all of it; and where they belong."""

_HINTS = {
    "wandb": "; set WANDB_API_KEY, or write options: {mode: offline}",
    "mlflow": "; check options.tracking_uri or MLFLOW_TRACKING_URI",
}

_LOG = logging.getLogger(__name__)


def callbacks(settings: Sequence[TrackingSettings], study: Study, folder: Path) -> list[tune.Callback]:
    """Ray Tune callbacks that tell the trackers of a study about its trials; they may serve several Tuners, one after the other.

    `folder` is the run directory; trackers keep their files below `tracking/` in it. Raises StudyError, before anything is
    trained, for a tracker that is not installed, an option it does not have, or a server that it cannot reach.
    """
    return [Tracker(one.kind, _ready(one, study, folder.resolve() / TRACKING), study, folder.resolve()) for one in settings]


class Tracker(tune.Callback):
    """One tracker: Ray's callback behind a filter, which gives it our trials and their metrics instead of Ray's.

    A trial that Ray starts a second time, because it waited at a rung or goes on in the finish, is the same trial to
    TensorBoard and MLflow. For Weights & Biases it is another run of the same name, as one process has to end before another
    may write to its run. Steps are training steps.
    """

    def __init__(self, kind: str, inner: Any, study: Study, folder: Path) -> None:
        self.kind, self.study, self.folder = kind, study, folder
        self._inner = inner
        self._tracked: dict[str, TrackedTrial] = {}
        # Of Ray's trials: those that the tracker knows of, and those that failed.
        self._open: set[str] = set()
        self._failed: set[str] = set()

    def setup(self, *args: Any, **info: Any) -> None:
        """Nothing: Ray's callback was set up when it was made, so that its mistakes are told before training."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts or goes on."""
        self._open.add(trial.trial_id)
        self._tell("log_trial_start", self._of(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial is at a rung, or failed."""
        if "val_loss" not in result:
            self._failed.add(trial.trial_id)
            return
        metrics = {name: result[name] for name in METRICS if name in result}
        # Where Ray's callbacks look for the step.
        self._tell("log_trial_result", iteration, self._of(trial), metrics | {"training_iteration": result["step"]})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is over, or waits at a rung."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's worker died."""
        self._failed.add(trial.trial_id)
        self._end(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The search or the finish is over."""
        self._tell("on_experiment_end", list(self._tracked.values()))

    def _end(self, trial: Any) -> None:
        # A worker may die before its trial has started.
        if trial.trial_id in self._open:
            self._open.remove(trial.trial_id)
            self._tell("log_trial_end", self._of(trial), trial.trial_id in self._failed)

    def _of(self, trial: Any) -> TrackedTrial:
        plan = TrialPlan.model_validate_json(trial.config["plan"])
        key = trial.trial_id if self.kind == "wandb" else plan.name
        if key not in self._tracked:
            self._tracked[key] = TrackedTrial(trial.trial_id, plan.name, _config(plan, self.study), self.folder, self.kind)
        return self._tracked[key]

    def _tell(self, what: str, *args: Any) -> None:
        if self._inner is None:
            return
        try:
            getattr(self._inner, what)(*args)
        except Exception as error:
            # Whatever a tracker raises, such as a server that went away, must not end a search.
            self._inner = None
            _LOG.warning("the run goes on without %s: %s", self.kind, first_line(error))

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles callbacks into its experiment state, which is never read again.
        return {}


@dataclass(eq=False)
class TrackedTrial:
    """What a tracker may know of a trial, under the names by which Ray's callbacks ask for it."""

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
        """What TensorBoard shows as hyper-parameters."""
        return self.config

    @property
    def experiment_dir_name(self) -> str:
        """What Weights & Biases groups by: the run directory's name."""
        return self.run.name

    @property
    def local_path(self) -> str:
        """Where the tracker's files of this trial lie."""
        path = self.run / TRACKING / self.kind / self.name
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def init_local_path(self) -> None:
        """Called before TensorBoard's file is made. Its name has whole seconds: a second one within a second would replace it."""
        now = time.monotonic()
        time.sleep(max(0.0, self._next_start - now))
        self._next_start = max(now, self._next_start) + 1.0


def _config(plan: TrialPlan, study: Study) -> dict[str, Any]:
    """A trial in readable values: which it is, what it costs, and what of it the study varies; lists as JSON text."""
    spent = cost(plan.spec)
    about = {
        "trial": plan.number,
        "digest": plan.spec.digest,
        "seed": plan.seed,
        "gflops": spent.gflops,
        "params_m": spent.params_m,
    }
    varied = {path: plan.spec.value_at(path) for path in study.varied}
    return about | {path: value if isinstance(value, (str, int, float)) else json.dumps(value) for path, value in varied.items()}


# Ray's callbacks, made and set up.


def _ready(one: TrackingSettings, study: Study, place: Path) -> Any:
    """Ray's callback for a tracker, with the study's options and our defaults; raises StudyError when it cannot be used."""
    if find_spec(_PACKAGES[one.kind]) is None:
        raise StudyError(f"tracking: {one.kind} is not installed; pip install {_PACKAGES[one.kind]}, or take it out of the study")
    make, known = _callback(one.kind)
    for option in one.options:
        if option in _SECRETS:
            raise StudyError(f"tracking: {option} is a secret, which a run's ledger would keep; set {_SECRETS[option]} instead")
        if option not in known:
            raise StudyError(f"tracking: {one.kind} has no option '{option}'{nearest(option, known)}")
    try:
        callback = make(**_defaults(one, study, place), **one.options)
        callback.setup()
    except Exception as error:
        # Whatever the tracker's package or server says.
        raise StudyError(f"tracking: {one.kind} cannot be used: {first_line(error)}{_HINTS.get(one.kind, '')}") from None
    return callback


def _callback(kind: str) -> tuple[Any, list[str]]:
    """Ray's class for a tracker and the names of its options; imported here, as the classes import their packages."""
    if kind == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        # What it does not know itself, it passes on.
        return WandbLoggerCallback, _named(WandbLoggerCallback) + _named(import_module("wandb").init)
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback, _named(MLflowLoggerCallback)
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback, _named(TBXLoggerCallback)


def _named(function: Any) -> list[str]:
    """The names of a function's arguments, without `*args` and `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _defaults(one: TrackingSettings, study: Study, place: Path) -> dict[str, Any]:
    """What a tracker is told where the study says nothing: it is named after the study, and MLflow keeps its data in the run."""
    defaults: dict[str, Any] = {}
    if one.kind == "wandb":
        defaults = {"project": study.name}
        if one.options.get("mode") in ("offline", "disabled"):
            # Ray's callback asks for a key unless the environment says this.
            os.environ["WANDB_MODE"] = one.options["mode"]
    elif one.kind == "mlflow":
        defaults = {"experiment_name": study.name}
        if "MLFLOW_TRACKING_URI" not in os.environ:
            place.mkdir(parents=True, exist_ok=True)
            defaults["tracking_uri"] = f"sqlite:///{place / 'mlflow.db'}"
    return {key: value for key, value in defaults.items() if key not in one.options}
