"""What a run is made of, as plain frozen data: plans, reports, failures, and the states of a trial."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from nas.runs.layout import trial_name
from space.frozen import Frozen
from space.spec import ModelSpec


class State(StrEnum):
    """The state of a trial, in Optuna's names."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"


class TrialPlan(Frozen):
    """One architecture × one seed × one budget: all that is needed to train it anywhere.

    `milestones` are the cumulative training multiply-accumulates still to be reached, rising; the trial reports at each.
    `reported` counts the reports that the ledger has already.
    """

    number: int
    spec: ModelSpec
    seed: int
    milestones: tuple[int, ...]
    reported: int = 0
    alone: bool = False
    """Whether it is to have a whole GPU for itself, after it ran out of memory beside others."""

    @property
    def name(self) -> str:
        """The trial's directory: short, unique, and free of values."""
        return trial_name(self.number, self.spec.digest)


class Report(Frozen):
    """What a trial reports at a milestone; the loss is of the averaged weights, in the folded form."""

    model_config = ConfigDict(strict=True)

    trial: int
    rung: int
    step: int
    images: int
    macs: int
    """Training multiply-accumulates so far."""
    val_loss: float
    val_loss_bins: Annotated[tuple[float, ...], Field(strict=False)]
    train_loss: float
    seconds: float
    """Training time since the last milestone, validation apart."""
    images_per_s: float
    peak_memory_mib: float
    scores: dict[str, float] = Field(default_factory=dict)
    """FID and the others, where they were measured at this milestone."""


class Failure(Frozen):
    """Why a trial could not go on."""

    trial: int
    reason: str
    trace: str = ""
    out_of_memory: bool = False


class Rejected(Frozen):
    """A proposal that was not trained: by how much it breaks which constraint, or nothing when it repeats a trial."""

    params: dict[str, Any]
    violations: dict[str, float] = Field(default_factory=dict)
