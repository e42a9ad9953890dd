"""A run as tidy pandas frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas.runs.records import Report, State
from nas.runs.run import Run, TrialResult, read_run


@dataclass(frozen=True)
class RunFrames:
    """A run's frames.

    `trials` has one row a trial: trial, name, digest, state, seed, val_loss (COMPLETE trials alone: a pruned trial
    has no value at equal compute), last_val_loss, rung (the last one reached, from 1), finish_val_loss, gflops,
    train_gflops, params_m, params_training_m, train_tflops, images_per_s, peak_memory_mib, reason, exported, and a
    column `param.…` for every searched value (missing where it was inactive).

    `reports` has one row a report: trial, rung (from 1), phase (search or finish), step, images, train_tflops, val_loss,
    val_loss_bin_0 (lowest timesteps) and so on, train_loss, seconds, images_per_s, peak_memory_mib, state.

    GFLOPs and TFLOPs are multiply-accumulates / 1e9 and / 1e12.
    """

    name: str
    trials: pd.DataFrame
    reports: pd.DataFrame
    rungs_tflops: tuple[float, ...]
    """Training compute of every rung; none where the budget is in steps, which cost every architecture something else."""


def load_run(folder: str | Path) -> RunFrames:
    """The frames of a run directory; raises RunError when it is none or is damaged."""
    return frames(read_run(Path(folder)))


def frames(run: Run) -> RunFrames:
    """The frames of a run in memory."""
    assert run.study is not None, "a run begins with its study"
    budget = run.study.budget
    trials = pd.DataFrame([_trial_row(trial) for trial in run.trials.values()], columns=None if run.trials else _TRIAL_COLUMNS)
    rows = [_report_row(trial, report) for trial in run.trials.values() for report in trial.reports]
    reports = pd.DataFrame(rows, columns=None if rows else ["trial", "rung", "phase", "val_loss"])
    rungs = tuple(macs / 1e12 for macs in budget.milestones) if budget.max is not None else ()
    return RunFrames(run.study.name, trials, reports, rungs)


_TRIAL_COLUMNS = [
    "trial",
    "name",
    "digest",
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
"""The columns of a run without trials."""


def _trial_row(trial: TrialResult) -> dict[str, Any]:
    reports, finish = trial.search_reports, trial.reports[trial.rungs :]
    last = trial.reports[-1] if trial.reports else None
    missing = float("nan")
    return {
        "trial": trial.number,
        "name": trial.name,
        "digest": trial.spec.digest,
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
        **{f"param.{name}": value for name, value in (trial.params or {}).items()},
    }


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
    }
