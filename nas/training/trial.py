"""A trial: trains a spec from milestone to milestone and reports its scores at each."""

from __future__ import annotations

import math
import socket
import time
import traceback
from functools import lru_cache
from pathlib import Path

import torch

from nas.data.feed import Feed
from nas.data.settings import DataSettings
from nas.data.sources import open_data
from nas.evaluation.validation import ValidationGrid
from nas.runs.checkpoints import keep
from nas.runs.layout import CHECKPOINT, LAST_RUNG
from nas.runs.records import Failure, Report, TrialPlan
from nas.study.budget import first_step
from nas.study.nuisance import settings_of
from nas.study.study import Study
from nas.training.checkpoint import read_checkpoint, write_checkpoint
from nas.training.peak_memory import peak_bytes, reset_peak
from nas.training.scores import check_judge, scores
from nas.training.trainer import Decay, DivergedError, Trainer
from space.costs.cost import cost
from space.errors import DataError, RunError
from space.files import first_line
from space.model.network import Network


@lru_cache(maxsize=1)
def feeds(settings: DataSettings, device: torch.device) -> tuple[Feed, Feed]:
    """Training and validation data on a device; kept for the next trial in the same process."""
    data = open_data(settings)
    return Feed(data.train, device, settings.flip), Feed(data.validation, device, resident=False)


class Trial:
    """Carries out one plan; resumes from the checkpoint in its folder when there is one.

    A milestone is reached at the first whole step whose cumulative training cost is at least the milestone's.

    Args:
        plan: The plan.
        study: The study.
        folder: The trial's folder for checkpoints; None keeps none.

    Raises:
        RunError: If the data, or what judges samples, are missing on this machine: every other trial would fail here too.
    """

    def __init__(self, plan: TrialPlan, study: Study, folder: Path | None = None) -> None:
        self.plan, self.study, self.folder = plan, study, folder
        self.device = _device(study)
        reset_peak(self.device)
        self.train, validation = self._place()
        self.settings = study.training_of(plan)
        self.step_macs = cost(plan.spec).step_macs(self.settings.batch_size)
        self.training = Trainer(plan.spec, plan.seed, self.settings, self.train, self._decay(), study.hidden_rate(plan.spec))
        self.grid = ValidationGrid(validation, study.evaluation.val_loss, self.training.prediction)
        self.next, self._told = plan.reported, 0
        self._kept: dict[int, Report] = {}
        self._resume()

    def _place(self) -> tuple[Feed, Feed]:
        """The data, after a check of what scores need; what is missing on this machine is no failure of the trial."""
        fid = self.study.evaluation.fid
        try:
            if self.study.scores_trials and fid is not None:
                check_judge(self.study.data, fid.extractor, self.device)
            return feeds(self.study.data, self.device)
        except (DataError, OSError) as error:
            raise RunError(f"no trial can be trained on {socket.gethostname()}: {error}") from error

    def _decay(self) -> Decay | None:
        """The decay of the learning rate: over the last share of the budget, or of what the finish adds to it."""
        budget, finish = self.study.budget, self.study.finish
        if self.plan.reported < budget.rungs:
            end, start, share = self.study.milestones_of(self.plan.spec, self.settings.batch_size)[-1], 0, budget.decay
        else:
            assert finish is not None, "only a finish trains beyond the last rung"
            start, share = self.study.milestones_of(self.plan.spec, self.settings.batch_size)[-1], finish.decay
            end = self.study.finish_macs_of(self.plan.spec, self.settings.batch_size)
        if not share:
            return None
        first = round(end - share * (end - start))
        return Decay(first_step(first, self.step_macs), first_step(end, self.step_macs))

    @property
    def finished(self) -> bool:
        """Whether every milestone has been reported."""
        return self.next - self.plan.reported >= len(self.plan.milestones)

    def advance(self) -> Report:
        """Train to the next milestone, validate, write the checkpoint, and report."""
        rung, wanted = self.next, self._step_at(self.next)
        self.next += 1
        if wanted in self._kept:
            # The report exists: from before a crash between checkpoint and ledger, or from another run.
            return self._kept[wanted].model_copy(update={"trial": self.plan.number, "rung": rung})
        before, start = self.training.step, time.perf_counter()
        train_loss = self.training.train_to(wanted)
        seconds = time.perf_counter() - start
        # Not `wanted`: a checkpoint may be ahead of the plan.
        step = self.training.step
        folded = self.training.ema.folded()
        loss = self.grid.loss(folded, max(self.settings.batch_size, 64))
        if not math.isfinite(loss.mean):
            raise DivergedError(f"diverged: the validation loss is {loss.mean} at step {step}")
        report = Report(
            trial=self.plan.number,
            rung=rung,
            step=step,
            images=step * self.settings.batch_size,
            macs=step * self.step_macs,
            val_loss=loss.mean,
            val_loss_bins=loss.bins,
            train_loss=train_loss,
            seconds=seconds,
            images_per_s=(step - before) * self.settings.batch_size / seconds,
            peak_memory_mib=peak_bytes(self.device) / 2**20,
            scores=self._scores(rung, folded),
        )
        self._kept[step] = report
        self._save()
        return report

    def _scores(self, rung: int, folded: Network) -> dict[str, float]:
        """The sample metrics of the averaged weights; empty at a rung without scores."""
        if not self.study.scored_at(rung):
            return {}

        def bar(count: int) -> None:
            self._told += 1

        return scores(folded, self.study, self.train, self.training.prediction, bar)

    @property
    def progress(self) -> tuple[int, int, int]:
        """A value that changes with progress: steps, milestones, batches of samples drawn and metrics computed."""
        return self.training.step, self.next, self._told

    def _step_at(self, rung: int) -> int:
        """The step of the plan's report at a rung."""
        return first_step(self.plan.milestones[rung - self.plan.reported], self.step_macs)

    def _save(self) -> None:
        if self.folder is not None:
            kept = [report.model_dump(mode="json") for report in self._kept.values()]
            facts = {
                "digest": self.plan.spec.digest,
                "seed": self.plan.seed,
                "training": settings_of(self.settings),
                "step": self.training.step,
                "reports": kept,
            }
            path, rungs = self.folder / CHECKPOINT, self.study.budget.rungs
            if self.plan.reported == rungs == self.next - 1 and path.exists():
                # Keep the last rung's checkpoint, from which other runs can resume.
                keep(path, self.folder / LAST_RUNG)
            write_checkpoint(path, self.training.tensors(), facts)

    def _resume(self) -> None:
        stored = read_checkpoint(self.folder / CHECKPOINT) if self.folder is not None else None
        # Without a usable checkpoint the trial trains from the start; its random streams give the same results again.
        if not stored or stored[1]["digest"] != self.plan.spec.digest or not self.plan.milestones:
            return
        tensors, facts = stored
        if facts.get("training", settings_of(self.settings)) != settings_of(self.settings):
            # Of another trial of the architecture, under whose settings it was trained. Earlier versions noted none.
            return
        kept = {report.step: report for report in map(Report.model_validate, facts["reports"])}
        ahead = facts["step"] > self._step_at(self.plan.reported) and self._step_at(self.plan.reported) not in kept
        if ahead and self.plan.reported < self.study.budget.rungs:
            # The checkpoint is past a rung without a report of it, for example after the budget's rungs were changed.
            return
        self.training.load(tensors, facts["step"])
        self._kept = kept


def as_failure(number: int, error: BaseException) -> Failure:
    """An exception as data: a one-line reason, the traceback, and whether memory ran out."""
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    line = first_line(error)
    reason = f"out of memory: {line}" if out_of_memory else line
    trace = "".join(traceback.format_exception(error))
    return Failure(trial=number, reason=reason, trace=trace, out_of_memory=out_of_memory)


def _device(study: Study) -> torch.device:
    """A GPU if there is one and the study allows it, otherwise the CPU."""
    return torch.device("cuda" if study.resources.gpu != 0 and torch.cuda.is_available() else "cpu")
