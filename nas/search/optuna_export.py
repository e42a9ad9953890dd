"""Writes a run's trials to an Optuna storage as a study, so that optuna-dashboard can show them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.runs.events import Event, TrialBegan, TrialEnded
from nas.runs.ledger import read_events, run_identity
from nas.runs.records import State
from nas.runs.run import Run, TrialResult, objective_value
from nas.search.distributions import distribution, encoded
from space.errors import RunError, ToolkitError
from space.files import first_line

MARK = "exported from run"
"""The user attribute of an Optuna study that holds the identity of the run it shows."""

_STATES = {
    State.RUNNING: TrialState.RUNNING,
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


def export_run(folder: Path, storage: str, name: str | None = None) -> int:
    """Write the trials of a run directory to an Optuna storage as one study. An earlier export of the same run is replaced.

    Args:
        folder: The run directory.
        storage: A URL such as `sqlite:///run.db`, or the path of a journal file, which ends in `.log`.
        name: The name of the Optuna study; by default, the name of the run's study.

    Returns:
        The number of trials.

    Raises:
        RunError: When the directory is no run or is damaged.
        ToolkitError: When the storage cannot be used, or holds a study of that name that is not an export of this run.
    """
    events = list(read_events(folder))
    run = Run(events)
    if not run.begun:
        raise RunError(f"{folder} holds no study; its ledger is empty")
    name = name or run.study.name
    trials = _trials(run, events)
    with _opened(storage) as opened:
        study = _emptied(opened, storage, name, run, run_identity(folder))
        study.set_user_attr("run directory", str(folder.resolve()))
        study.set_user_attr("question", run.study.question)
        study.add_trials(trials)
    return len(trials)


# The storage.


@contextmanager
def _opened(storage: str) -> Iterator[BaseStorage]:
    """The storage, open within the context. Errors of the storage become a ToolkitError of one sentence."""
    shown = re.sub(r"://[^@/]*@", "://…@", storage)  # without a password
    form = "write sqlite:///FILE.db, the URL of another database, or FILE.log for a journal"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        opened = _journal(Path(storage)) if storage.endswith(".log") and "://" not in storage else RDBStorage(storage)
    except Exception as error:
        # The database's driver and the reader of journals raise errors of any class.
        raise ToolkitError(f"Optuna cannot open the storage {shown} ({_first_line(error)}); {form}") from None
    try:
        yield opened
    except (OptunaError, OSError) as error:
        raise ToolkitError(
            f"Optuna could not write to the storage {shown} ({_first_line(error)}); export again once that is mended"
        ) from None
    finally:
        opened.remove_session()


def _journal(path: Path) -> BaseStorage:
    """A new or existing journal file. Raises ValueError for a file of another kind, because Optuna would write to it."""
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        if first.strip() and not isinstance(json.loads(first), dict):
            raise ValueError("it holds something else than a journal")
    return JournalStorage(JournalFileBackend(str(path)))


def _first_line(error: BaseException) -> str:
    """The first line of an error, or of the database's error that caused it."""
    error = error.__cause__ or error
    return first_line(error)


def _emptied(opened: BaseStorage, storage: str, name: str, run: Run, identity: str) -> optuna.Study:
    """A new, empty study in place of an earlier export; raises ToolkitError when the name belongs to another study."""
    if name in optuna.get_all_study_names(opened):
        if optuna.load_study(study_name=name, storage=opened).user_attrs.get(MARK) != identity:
            raise ToolkitError(
                f"the storage holds a study '{name}' that was not exported from this run; take another name with --name"
            )
        optuna.delete_study(study_name=name, storage=opened)
    objectives = run.study.objectives
    study = optuna.create_study(storage=opened, study_name=name, directions=[objective.direction for objective in objectives])
    study.set_user_attr(MARK, identity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([objective.metric for objective in objectives])
    return study


# The trials.


def _trials(run: Run, events: list[Event]) -> list[FrozenTrial]:
    """All trials, sorted by number, so that Optuna numbers them as the run does."""
    began = {event.trial: _local(event.time) for event in events if isinstance(event, TrialBegan)}
    ended = {event.trial: _local(event.time) for event in events if isinstance(event, TrialEnded)}
    distributions = {parameter.name: distribution(parameter.domain) for parameter in run.study.search_space.parameters}
    trials = []
    for number, trial in sorted(run.trials.items()):
        frozen = _trial(run, trial, distributions)
        frozen.datetime_start = began[number]
        if frozen.state.is_finished():
            frozen.datetime_complete = ended[number]
        trials.append(frozen)
    return trials


def _local(time: str) -> datetime:
    """A ledger's time (UTC) as Optuna keeps times: local, without a time zone."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)


def _trial(run: Run, trial: TrialResult, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    metrics = [objective.metric for objective in run.study.objectives]
    metric = run.study.metric
    values_at = {report.rung + 1: report.value(metric) for report in trial.search_reports}
    losses = {rung: value for rung, value in values_at.items() if value is not None}
    attrs = _attributes(trial)
    if len(metrics) > 1 and losses:
        # Optuna has no intermediate values for several objectives.
        attrs[f"{metric} at rungs"] = list(losses.values())
    if trial.params is None:
        # The architecture was enqueued from outside the space, so it has no values of Optuna's parameters.
        attrs |= {path: encoded(trial.spec.value_at(path)) for path in run.study.varied}
        attrs |= {path: encoded(value) for path, value in run.study.tuned_of(trial).items()}
    values = None
    if trial.state is State.COMPLETE:
        values = [objective_value(run.study, trial, trial.search_reports[-1], metric) for metric in metrics]
    params = trial.params or {}
    return create_trial(
        state=_STATES[trial.state],
        values=values,
        params={name: encoded(value) for name, value in params.items()},
        distributions={name: distributions[name] for name in params},
        user_attrs=attrs,
        intermediate_values=losses if len(metrics) == 1 else {},
    )


def _attributes(trial: TrialResult) -> dict[str, Any]:
    """A trial's facts and costs under the names of `analysis`; GFLOPs and TFLOPs are multiply-accumulates / 1e9 and / 1e12."""
    attrs: dict[str, Any] = {
        "name": trial.name,
        "digest": trial.spec.digest,
        "variant": trial.variant,
        "seed": trial.seed,
        "gflops": trial.cost.gflops,
        "params_m": trial.cost.params_m,
    }
    if trial.search_reports:
        last = trial.search_reports[-1]
        attrs["train_tflops"], attrs["images_per_s"] = last.macs / 1e12, last.images_per_s
        attrs["peak_memory_mib"] = max(report.peak_memory_mib for report in trial.search_reports)
    if trial.reused:
        attrs["rungs from another run"] = [rung + 1 for rung in trial.reused]
    if trial.reason:
        attrs["reason"] = trial.reason
    if trial.finish_failure:
        attrs["finish_failure"] = trial.finish_failure
    return attrs
