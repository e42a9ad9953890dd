"""Reuses reports and checkpoints of other runs beside a run directory, instead of training the same trials again."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from nas.runs.checkpoints import facts_of_checkpoint, keep
from nas.runs.layout import CHECKPOINT, LAST_RUNG, LEDGER, TRIALS
from nas.runs.records import Report
from nas.runs.run import Run, TrialResult, lacks_metric, read_run
from nas.study.budget import Unit
from nas.study.study import Study
from space.errors import RunError, ToolkitError


@dataclass(frozen=True)
class CachedTrial:
    """A trial of another run and its folder."""

    run: str
    trial: TrialResult
    usable: list[Report]
    """Its reports, without those of a finish whose learning rate decays."""
    folder: Path

    def reports(self, steps: tuple[int, ...]) -> list[Report]:
        """The reports at these steps, up to the first step without a report, and only up to a step with a checkpoint."""
        by_step = {report.step: report for report in self.usable}
        reports: list[Report] = []
        for step in steps:
            if step not in by_step:
                break
            reports.append(by_step[step])
        while reports and self.checkpoint(reports[-1].step) is None:
            reports.pop()
        return reports

    def checkpoint(self, step: int) -> Path | None:
        """The path of the checkpoint at a step, if there is one."""
        for name in (CHECKPOINT, LAST_RUNG):
            facts = facts_of_checkpoint(self.folder / name)
            if facts and (facts["step"], facts.get("digest")) == (step, self.trial.digest):
                return self.folder / name
        return None


@dataclass(frozen=True)
class CachedReports:
    """Reports to reuse: those that a trial does not have yet, renumbered to the trial and its rungs."""

    run: str
    reports: tuple[Report, ...]
    checkpoint: Path | None

    def copy_checkpoint(self, folder: Path) -> None:
        """Put the checkpoint into a trial's folder, as a hard link where the file system has them.

        Raises:
            RunError: When it cannot be written.
        """
        if self.checkpoint is None:
            return
        partial = folder / f"{CHECKPOINT}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            keep(self.checkpoint, partial)
            partial.replace(folder / CHECKPOINT)
        except OSError as error:
            raise RunError(
                f"{partial} cannot be written: {error.strerror}; free some space and run the same command again"
            ) from None


class RunCache:
    """The trials of other runs beside a run directory that were trained exactly as a study would. Damaged runs are skipped.

    A trial is reused only when architecture, seed, data, training settings (its own or its study's), validation and learning rate
    are the same, and when there is still a checkpoint at its last report. The device may differ.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._study = study
        self._trials: dict[tuple[str, int, str, float], list[CachedTrial]] = {}
        run_folder = folder.resolve()
        for ledger in sorted(run_folder.parent.glob(f"*/{LEDGER}")):
            if ledger.parent == run_folder:
                continue
            with suppress(ToolkitError, OSError, ValueError, KeyError):
                run = read_run(ledger.parent)
                if run.data is not None and run.data.checksum == study.header.checksum and _alike(run, study):
                    self._add(run, ledger.parent)

    def _add(self, run: Run, folder: Path) -> None:
        finish = run.study.finish
        for trial in run.trials.values():
            usable = trial.search_reports if finish and finish.decay else trial.reports
            # An earlier version may have scored without the metric.
            usable = list(takewhile(lambda report: not lacks_metric(self._study, report), usable))
            cached = CachedTrial(folder.name, trial, usable, folder / TRIALS / trial.name)
            self._trials.setdefault(_known_by(run.study, trial), []).append(cached)

    def lookup(self, trial: TrialResult) -> CachedReports | None:
        """The reports of the other run that takes a trial furthest along its rungs; None when none takes it further."""
        if any(objective.metric == "step_seconds" for objective in self._study.objectives):
            # Step times of another run were measured on other hardware, or beside other trials.
            return None
        steps = self._study.budget.steps_of(trial.cost, self._study.training_of(trial).batch_size)
        candidates = [(cached, cached.reports(steps)) for cached in self._trials.get(_known_by(self._study, trial), [])]
        if not candidates:
            return None
        best, reports = max(candidates, key=lambda pair: len(pair[1]))
        if len(reports) <= len(trial.reports):
            return None
        renumbered = [
            reports[rung].model_copy(update={"trial": trial.number, "rung": rung})
            for rung in range(len(trial.reports), len(reports))
        ]
        return CachedReports(best.run, tuple(renumbered), best.checkpoint(reports[-1].step))


def _known_by(study: Study, trial: TrialResult) -> tuple[str, int, str, float]:
    """What a trial is the same as in another run: its architecture, its seed, and how it is trained, seed aside."""
    training = study.training_of(trial).model_dump_json(exclude={"seed"})
    # The width rule goes by the study's model too.
    return trial.digest, trial.seed, training, study.hidden_rate(trial.spec)


def _alike(run: Run, study: Study) -> bool:
    """Whether a run's trials were scored as the study would, on the same data, with a rate that falls alike."""
    other = run.study
    same = (other.data.codec, other.data.held_out, other.data.flip) == (
        study.data.codec,
        study.data.held_out,
        study.data.flip,
    ) and other.evaluation.val_loss == study.evaluation.val_loss
    # With a decaying learning rate, every report depends on the whole budget. Scores are measured at some rungs only.
    scored = study.scores_trials
    if scored and not (other.scores_trials and other.evaluation.fid == study.evaluation.fid):
        return False
    falls = other.budget.decay or study.budget.decay
    return same and (not (falls or scored) or _whole(other) == _whole(study))


def _whole(study: Study) -> tuple[float, Unit, tuple[int, ...]]:
    return study.budget.decay, study.budget.unit, study.budget.milestones
