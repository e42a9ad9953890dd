"""A run with its frames: the one object that the functions of `analysis` take."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.runs.frames import report_frame, trial_frame
from nas.runs.run import Run, read_run
from nas.study.study import Study
from space.errors import RunError, ToolkitError

if TYPE_CHECKING:
    from analysis.runs.ablation import AblationFrames


class RunData:
    """A run and its tidy frames, as `analysis.load` returns it.

    Each frame is made when it is first asked for, from the events that the run has by then. GFLOPs and TFLOPs are
    multiply-accumulates / 1e9 and / 1e12.

    Raises:
        RunError: The run has no study yet.
    """

    def __init__(self, run: Run) -> None:
        if not run.begun:
            raise RunError("the run has no study yet, so there is nothing to analyse; load it once it has begun")
        self.run = run

    @property
    def study(self) -> Study:
        """The study at the run's last event."""
        return self.run.study

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.study.name

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, for a search and an ablation alike.

        Columns: trial (its number), name, digest (of the architecture), candidate (the architecture with the training settings in
        which the trial differs from the study; the digest where it has none), state, seed; val_loss (COMPLETE trials only, as a
        pruned trial has no value after equal training), last_val_loss, rung (the last one reached, from 1), finish_val_loss;
        gflops, train_gflops, params_m, params_training_m; train_tflops, images_per_s, peak_memory_mib; reason (of a
        failure), exported (its folder); the objectives that are not among these, such as fid or step_seconds (COMPLETE trials
        only); and `param.NAME` for every searched value, missing where it was inactive. A training setting that is tuned, such as
        `param.training.learning_rate`, has the value that the trial was trained with.
        """
        return trial_frame(self.run)

    @cached_property
    def reports(self) -> pd.DataFrame:
        """One row per report, in order, for a search and an ablation alike.

        Columns: trial, rung (from 1), phase (search or finish), step, images, train_tflops; val_loss, val_loss_bin_0 (the
        lowest timesteps) and so on, train_loss; seconds, images_per_s, peak_memory_mib; state (of the trial); fid and the other
        scores where trials are scored.
        """
        return report_frame(self.run)

    @cached_property
    def ablation(self) -> AblationFrames:
        """The frames by variant, control and seed.

        Raises:
            RunError: The run is a search.
        """
        from analysis.runs.ablation import ablation_frames

        return ablation_frames(self.run)

    @property
    def rungs_tflops(self) -> tuple[float, ...]:
        """Training TFLOPs of every rung; empty for a budget in steps or images, whose compute depends on the architecture."""
        budget = self.study.budget
        return tuple(macs / 1e12 for macs in budget.milestones) if budget.unit == "compute" else ()


def load(run: str | os.PathLike[str] | Run) -> RunData:
    """Load a run for the functions of `analysis`.

    Args:
        run: A run directory, or a run in memory, as `nas.execution.runner.run_study` and `nas.runs.run.read_run` return it.

    Returns:
        The run with its frames.

    Raises:
        RunError: The directory is no run or is damaged, or the run has no study yet.
        ToolkitError: `run` is something else.
    """
    if isinstance(run, Run):
        return RunData(run)
    if not isinstance(run, str | os.PathLike):
        raise ToolkitError(f"analysis.load takes a run directory or a Run, but got {type(run).__name__}")
    return RunData(read_run(Path(run)))


def require_loaded(data: RunData) -> None:
    """Check that `data` is what `load` returns.

    Raises:
        ToolkitError: It is something else.
    """
    if not isinstance(data, RunData):
        raise ToolkitError(f"this takes a loaded run, but got {type(data).__name__}; pass analysis.load(run)")
