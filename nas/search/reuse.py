"""Trials of other runs under the same run root whose reports and checkpoints a run takes over instead of training them again."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nas.runs.checkpoints import facts_of_checkpoint, keep
from nas.runs.layout import CHECKPOINT, LAST_RUNG, LEDGER, TRIALS
from nas.runs.records import Report
from nas.runs.run import Run, TrialResult, read_run
from nas.study.study import Study
from space.errors import RunError, ToolkitError


@dataclass(frozen=True)
class CachedTrial:
    """A trial of another run: its reports, without those of a finish whose learning rate falls, and its folder."""

    run: str
    trial: TrialResult
    usable: list[Report]
    folder: Path

    def reports(self, steps: tuple[int, ...]) -> list[Report]:
        """The reports at the first of these steps, as far as they go without a gap and end where there is a checkpoint."""
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
        """The checkpoint of a step, if there is one."""
        for name in (CHECKPOINT, LAST_RUNG):
            facts = facts_of_checkpoint(self.folder / name)
            if facts and (facts["step"], facts.get("digest")) == (step, self.trial.digest):
                return self.folder / name
        return None


@dataclass(frozen=True)
class CachedReports:
    """Reports to take over: those that a trial does not have yet, under its own number and rungs."""

    run: str
    reports: tuple[Report, ...]
    checkpoint: Path | None

    def copy_checkpoint(self, folder: Path) -> None:
        """Put the checkpoint into a trial's folder, as a link where the file system has them; raises RunError when it cannot be."""
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
    """What other runs beside a run directory have trained in exactly the way of a study; damaged runs are passed over.

    A trial is taken over only when architecture, seed, data, training settings, validation and learning rate were the same, and its
    checkpoint is still where its reports end. The device may have been another one.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._study = study
        self._trials: dict[tuple[str, int], list[CachedTrial]] = {}
        own = folder.resolve()
        for ledger in sorted(own.parent.glob(f"*/{LEDGER}")):
            if ledger.parent == own:
                continue
            with suppress(ToolkitError, OSError, ValueError, KeyError):
                run = read_run(ledger.parent)
                if run.data is not None and run.data.checksum == study.header.checksum and _alike(run, study):
                    self._add(run, ledger.parent)

    def _add(self, run: Run, folder: Path) -> None:
        finish = run.study.finish
        for trial in run.trials.values():
            usable = trial.search_reports if finish and finish.decay else trial.reports
            cached = CachedTrial(folder.name, trial, usable, folder / TRIALS / trial.name)
            self._trials.setdefault((trial.digest, trial.seed), []).append(cached)

    def lookup(self, trial: TrialResult) -> CachedReports | None:
        """The reports of the other run that leads a trial furthest along its rungs; None when none leads it further."""
        if any(objective.metric == "step_seconds" for objective in self._study.objectives):
            # Times of another run are of other hardware, or of other neighbours.
            return None
        steps = self._study.budget.steps_of(trial.cost.step_macs(self._study.training.batch_size))
        candidates = [(cached, cached.reports(steps)) for cached in self._trials.get((trial.digest, trial.seed), [])]
        if not candidates:
            return None
        best, reports = max(candidates, key=lambda pair: len(pair[1]))
        if len(reports) <= len(trial.reports):
            return None
        own = [
            reports[rung].model_copy(update={"trial": trial.number, "rung": rung})
            for rung in range(len(trial.reports), len(reports))
        ]
        return CachedReports(best.run, tuple(own), best.checkpoint(reports[-1].step))


def _alike(run: Run, study: Study) -> bool:
    """Whether trials were trained and scored as the study would."""
    other = run.study
    same = (
        (other.data.codec, other.data.held_out, other.data.flip) == (study.data.codec, study.data.held_out, study.data.flip)
        and other.training.model_dump(exclude={"seed"}) == study.training.model_dump(exclude={"seed"})
        and other.evaluation.val_loss == study.evaluation.val_loss
    )
    # A rate that falls with the budget makes every stretch depend on it, and scores are measured at some rungs alone.
    scored = study.ablation is not None and study.evaluation.fid is not None
    if scored and (other.ablation is None or other.evaluation.fid != study.evaluation.fid):
        return False
    falls = other.budget.decay or study.budget.decay
    return same and (not (falls or scored) or _whole(other) == _whole(study))


def _whole(study: Study) -> tuple[float, bool, tuple[int, ...]]:
    return study.budget.decay, study.budget.max is None, study.budget.milestones
