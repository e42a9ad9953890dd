"""The records of a run, as plain frozen data: plans, reports, failures, and the states of a trial."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from nas.runs.layout import trial_name
from nas.study.nuisance import OwnTraining
from space.frozen import Frozen
from space.spec import ModelSpec


class State(StrEnum):
    """The state of a trial, in Optuna's names."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"


class TrialPlan(Frozen):
    """One architecture, one seed and one budget: everything that a worker needs to train the trial.

    `milestones` are the cumulative training multiply-accumulates left to reach, ascending; the trial reports at each.
    `reported` is the number of its reports that the ledger has already.
    """

    number: int
    spec: ModelSpec
    seed: int
    milestones: tuple[int, ...]
    reported: int = 0
    alone: bool = False
    """Whether the trial gets a whole GPU for itself, after it ran out of memory beside others."""
    training: OwnTraining = Field(default_factory=dict)
    """The training settings in which the trial differs from the study, by dotted path."""

    @property
    def name(self) -> str:
        """The name of the trial's folder: short, unique, and without parameter values."""
        return trial_name(self.number, self.spec.digest)


class Report(Frozen):
    """A trial's report at a milestone. `val_loss` is measured with the EMA weights, in the folded form."""

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
    """Training time since the last milestone, without validation."""
    images_per_s: float
    peak_memory_mib: float
    scores: dict[str, float] = Field(default_factory=dict)
    """FID and the other scores, where they were measured at this milestone."""

    def value(self, metric: str) -> float | None:
        """The value of one of `nas.study.metrics.SCORES`; None where it was not measured."""
        return self.val_loss if metric == "val_loss" else self.scores.get(metric)


class Failure(Frozen):
    """Why a trial could not be trained further."""

    trial: int
    reason: str
    trace: str = ""
    out_of_memory: bool = False


class Rejected(Frozen):
    """A proposal that was not trained. `violations` is by how much it breaks which constraint, empty when it repeats a trial."""

    params: dict[str, Any]
    violations: dict[str, float] = Field(default_factory=dict)


class Fresh(Frozen):
    """What fresh seeds say of one candidate of a confirmation."""

    model_config = ConfigDict(strict=True)

    trial: int
    """The trial of the search that represents it."""
    searched: float
    """The value by which the search chose it: of its own seeds, shorter where the confirmation trains longer, and too good."""
    mean: float | None
    """The mean over the fresh seeds that ended."""
    sd: float | None
    pairs: int
    """The seeds at which it and the baseline have a value."""
    difference: float | None
    """The mean paired difference from the baseline."""
    low: float | None
    high: float | None
    """The ends of its interval, at a level that covers the differences of all candidates together at 95 %."""
    p: float | None
    """Its p-value, corrected for all candidates."""
    verdict: str


class Confirmation(Frozen):
    """The result of a confirmation: every candidate against the baseline, on seeds that the search never used."""

    model_config = ConfigDict(strict=True)

    metric: str
    baseline: str
    """The baseline's name."""
    gflops: float
    """The baseline's inference GFLOPs."""
    mean: float | None
    sd: float | None
    """The baseline's own mean and standard deviation over the fresh seeds."""
    candidates: Annotated[tuple[Fresh, ...], Field(strict=False, min_length=1)]
    claimed: bool
    """Whether any candidate is claimed to be better."""
    visible: float | None
    """The smallest difference that would have been seen with a chance of 80 %; None where no spread is known."""
    rule: str
    replanned: bool = False
    """Whether seeds were added after the first results, which no p-value allows for."""
