"""Trials of other runs under the same run root whose results a run can take over instead of training them again."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nas.runs.ledger import LEDGER
from nas.runs.records import Report
from nas.runs.run import Run, TrialResult, read_run
from nas.study.study import Study
from space.errors import RunError, ToolkitError
from space.spec import ModelSpec

CHECKPOINT, LAST_RUNG = "checkpoint.safetensors", "last-rung.safetensors"
"""A trial's state to go on from, and the one at the last rung, kept when a finish trains on."""


@dataclass(frozen=True)
class CachedTrial:
    """The reports of another run's trial, by step, and its checkpoints."""

    run: str
    trial: TrialResult
    usable: list[Report]
    """Its reports, without those of a finish whose rate falls."""
    folder: Path

    def reports(self, steps: list[int]) -> list[Report]:
        """The reports at the first of these steps, as far as they go without a gap and a checkpoint stands where they end."""
        at = {report.step: report for report in self.usable}
        found: list[Report] = []
        for step in steps:
            if step not in at:
                break
            found.append(at[step])
        while found and self.checkpoint(found[-1].step) is None:
            found.pop()
        return found

    def checkpoint(self, step: int) -> Path | None:
        """The checkpoint that stands at a step, if there is one."""
        paths = [self.folder / name for name in (CHECKPOINT, LAST_RUNG)]
        return next((path for path in paths if _step_of(path, self.trial.digest) == step), None)

    def copy_checkpoint(self, step: int, folder: Path) -> None:
        """Put that checkpoint into another trial's folder, as a link where the file system has them."""
        path = self.checkpoint(step)
        if path is None:
            return
        copied = folder / f"{CHECKPOINT}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            copied.unlink(missing_ok=True)
            keep(path, copied)
            copied.replace(folder / CHECKPOINT)
        except OSError as error:
            raise RunError(
                f"{copied} cannot be written: {error.strerror}; free some space and run the same command again"
            ) from None


def keep(path: Path, target: Path) -> None:
    """Keep a checkpoint under another name, as a link where the file system has them; what is there already stays."""
    try:
        # Checkpoints are replaced, never written into, so a link keeps its content.
        os.link(path, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(path, target)


class RunCache:
    """What other runs beside a run directory have trained in just the way of a study; damaged runs are passed over.

    A trial is taken over only when architecture, seed, data, training settings, validation and learning rate were the same, and
    whether its checkpoint still stands where its reports end. The device may have been another one.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._known: dict[tuple[str, int], list[CachedTrial]] = {}
        own, checksum = folder.resolve(), study.data.header().checksum
        for ledger in sorted(folder.resolve().parent.glob(f"*/{LEDGER}")):
            if ledger.parent == own:
                continue
            with suppress(ToolkitError, OSError, ValueError, KeyError):
                run = read_run(ledger.parent)
                if run.study is not None and run.data is not None and run.data.checksum == checksum and _alike(run, study):
                    finish = run.study.finish
                    for trial in run.trials.values():
                        usable = trial.search_reports if finish and finish.decay else trial.reports
                        known = CachedTrial(ledger.parent.name, trial, usable, ledger.parent / "trials" / trial.name)
                        self._known.setdefault((trial.digest, trial.seed), []).append(known)

    def find(self, spec: ModelSpec, seed: int, steps: list[int]) -> tuple[CachedTrial, list[Report]] | None:
        """The trial that leads furthest along these steps, and its reports there; None when none leads to the first."""
        found = [(known, known.reports(steps)) for known in self._known.get((spec.digest, seed), [])]
        best = max(found, key=lambda pair: len(pair[1]), default=None)
        return best if best and best[1] else None


def _alike(run: Run, study: Study) -> bool:
    """Whether trials were trained and scored as the study would."""
    other = run.study
    assert other is not None
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


def _step_of(path: Path, digest: str) -> int | None:
    """The step of a checkpoint of an architecture; None for a file that is missing or damaged."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    except (OSError, SafetensorError, ValueError):
        return None
    return facts.get("step") if facts.get("digest") == digest else None
