"""The tidy frames of a run: its trials and its reports."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from nas.runs.records import Report, State
from nas.runs.run import Run, TrialResult, objective_value
from nas.study.nuisance import tuned
from space.costs.cost import COST_METRICS


def trial_frame(run: Run) -> pd.DataFrame:
    """One row per trial; `analysis.runs.data.RunData.trials` describes the columns."""
    trials = run.trials.values()
    settings = {*run.study.nuisance, *(path for trial in trials for path in trial.training)}
    measured = [name for name in dict.fromkeys((run.metric, *_objectives(run))) if name not in (*COST_METRICS, "val_loss")]
    rows = [_trial_row(trial, run, measured, tuned(run.study.training_of(trial), settings)) for trial in trials]
    return pd.DataFrame(rows, columns=None if rows else [*_TRIAL_COLUMNS, *measured])


def _objectives(run: Run) -> list[str]:
    return [objective.metric for objective in run.study.objectives]


def report_frame(run: Run) -> pd.DataFrame:
    """One row per report; `analysis.runs.data.RunData.reports` describes the columns."""
    rows = [_report_row(trial, report) for trial in run.trials.values() for report in trial.reports]
    return pd.DataFrame(rows, columns=None if rows else ["trial", "rung", "phase", "val_loss"])


_TRIAL_COLUMNS = [
    "trial",
    "name",
    "digest",
    "candidate",
    "state",
    "seed",
    "val_loss",
    "last_val_loss",
    "rung",
    "finish_val_loss",
    "gflops",
    "train_gflops",
    "params_m",
    "params_training_m",
    "train_tflops",
    "images_per_s",
    "peak_memory_mib",
    "reason",
    "exported",
]
"""The columns of the frame when the run has no trials yet."""


def _trial_row(trial: TrialResult, run: Run, measured: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    reports, finish = trial.search_reports, trial.reports[trial.rungs :]
    last = trial.reports[-1] if trial.reports else None
    missing = float("nan")
    return {
        "trial": trial.number,
        "name": trial.name,
        "digest": trial.spec.digest,
        "candidate": trial.candidate,
        "state": trial.state.value,
        "seed": trial.seed,
        "val_loss": trial.val_loss if trial.state is State.COMPLETE else missing,
        "last_val_loss": trial.val_loss if reports else missing,
        "rung": len(reports),
        "finish_val_loss": finish[-1].val_loss if finish else missing,
        "gflops": trial.cost.gflops,
        "train_gflops": trial.cost.train_gflops,
        "params_m": trial.cost.params_m,
        "params_training_m": trial.cost.params_training / 1e6,
        "train_tflops": last.macs / 1e12 if last else 0.0,
        "images_per_s": last.images_per_s if last else missing,
        "peak_memory_mib": max((report.peak_memory_mib for report in trial.reports), default=missing),
        "reason": trial.reason,
        "exported": trial.export.folder if trial.export else "",
        **{name: _final(trial, run, name) for name in measured},
        **{f"param.{name}": value for name, value in {**(trial.params or {}), **settings}.items()},
    }


def _final(trial: TrialResult, run: Run, metric: str) -> float:
    """The value of an objective at a COMPLETE trial's last rung; NaN otherwise, and where it was not measured."""
    if trial.state is not State.COMPLETE:
        return math.nan
    value = objective_value(run.study, trial, trial.search_reports[-1], metric)
    return value if math.isfinite(value) else math.nan


def _report_row(trial: TrialResult, report: Report) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "rung": report.rung + 1,
        "phase": "search" if report.rung < trial.rungs else "finish",
        "step": report.step,
        "images": report.images,
        "train_tflops": report.macs / 1e12,
        "val_loss": report.val_loss,
        **{f"val_loss_bin_{index}": value for index, value in enumerate(report.val_loss_bins)},
        "train_loss": report.train_loss,
        "seconds": report.seconds,
        "images_per_s": report.images_per_s,
        "peak_memory_mib": report.peak_memory_mib,
        "state": trial.state.value,
        **report.scores,
    }
