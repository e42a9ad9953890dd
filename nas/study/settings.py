"""The settings of a study, section by section; each refuses unknown keys and values that nothing could be done with."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nas.study.samplers import Sampler
from space.domains.domain import Domain, Range
from space.errors import StudyError
from space.frozen import Frozen
from space.resize import Scale
from space.stage import Count

_PREFIXES = {"M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}


def _macs(value: Any) -> Any:
    """`1.5 TFLOPs` as multiply-accumulates."""
    if not isinstance(value, str):
        return value
    # At most six digits before the point: more would be a slip, and could be more than a number holds.
    match = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]+)?)\s*([MGTPE])FLOPs?\s*", value)
    if not match:
        raise StudyError(f"'{value}' is not an amount of compute such as '1.5 TFLOPs'")
    return round(float(match[1]) * _PREFIXES[match[2]])


Macs = Annotated[int, BeforeValidator(_macs), Field(gt=0)]
"""Training compute in multiply-accumulates, written as `1.5 TFLOPs`."""

Share = Annotated[float, Field(ge=0, lt=1)]


def _listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, (list, tuple)) else [value]


def first_step(macs: int, step_macs: int) -> int:
    """The first training step after which at least `macs` multiply-accumulates have been spent."""
    return -(-macs // step_macs)


def _refuse_renamed(section: str, given: Any, renamed: dict[str, str]) -> Any:
    """Refuse keys of earlier versions by their new names."""
    for old, new in renamed.items():
        if isinstance(given, dict) and old in given:
            raise StudyError(f"{section}.{old} is now called {section}.{new}; rename it")
    return given


class ModelSettings(Frozen):
    """A preset, made smaller or larger by `scale`, and dotted paths that differ from it."""

    preset: str
    scale: Scale = Scale()
    set: dict[str, Any] = Field(default_factory=dict)


class Objective(Frozen):
    """A metric to optimise: a cost, or what a trial measures (`val_loss`, `step_seconds` of a training step)."""

    metric: Literal["val_loss", "gflops", "train_gflops", "params_m", "step_seconds"]
    direction: Literal["minimize", "maximize"] = "minimize"


class SamplerSettings(Frozen):
    """Which Optuna sampler proposes, and its seed; `population` is how many complete trials make a generation of nsga2."""

    kind: Literal["random", "tpe", "nsga2", "gp"] = "tpe"
    seed: int = 0
    population: Annotated[int, Field(ge=2)] = 20


class SearchSettings(Frozen):
    """What is searched, within which hard constraints, for what, and how many trials.

    Each architecture is trained with `replicates` seeds, so `trials` holds trials / replicates architectures; replicates are judged
    together, by their means. `enqueue` lists architectures to try first, each as dotted paths that differ from the study's model
    (`{}` is that model itself); they keep to the constraints, but may lie outside the space.
    """

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    constraints: dict[str, Range] = Field(default_factory=dict)
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=2)] = (Objective(metric="val_loss"),)
    sampler: SamplerSettings = SamplerSettings()
    trials: Annotated[int, Field(ge=1)]
    replicates: Annotated[int, Field(ge=1)] = 1
    enqueue: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _divides(self) -> SearchSettings:
        if self.trials % self.replicates:
            raise StudyError(
                f"trials {self.trials} is no multiple of replicates {self.replicates}; every architecture takes that many"
            )
        return self


class PredictionSettings(Frozen):
    """A study's `training.prediction`; a bare name stands for the kind alone.

    `epsilon` is the papers' noise prediction with learned variance; `v` predicts √ᾱ·ε - √(1-ᾱ)·x0 (Salimans & Ho 2022); `flow` the
    velocity x0 - ε of the straight path (SiT, Ma et al. 2024). `min_snr` is γ of the Min-SNR weighting (Hang et al. 2023; theirs is
    5), for `epsilon` and `v`. `times` says how a flow's training times are drawn.
    """

    kind: Literal["epsilon", "v", "flow"] = "epsilon"
    min_snr: Annotated[float, Field(gt=0)] | None = None
    times: Literal["uniform", "logit-normal"] = "uniform"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits(self) -> PredictionSettings:
        if self.kind == "flow" and self.min_snr is not None:
            raise StudyError("min_snr weights the steps of epsilon and v; a flow has none, so remove it")
        if self.kind != "flow" and self.times != "uniform":
            raise StudyError(f"times are drawn uniformly for {self.kind}; remove times, or take kind flow")
        return self


class TrainingSettings(Frozen):
    """How every trial is trained; the defaults are both papers' recipe.

    The learning rate rises linearly over `warmup_steps` and is constant then, so it does not depend on the rung. `ema` holds the
    decays of the averaged weights, one or several; trials are judged by the first. With `ema_warmup` the decay of step k is at
    most (1 + k) / (10 + k), so that short trials are not judged by their initial weights. `clip_norm` clips the gradients' norm.
    `precision` auto is bf16 where the GPU has it, float32 elsewhere; tf32 and bf16 leave the weights in float32.
    """

    prediction: PredictionSettings = PredictionSettings()

    batch_size: Annotated[int, Field(ge=1)] = 256
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[tuple[Share, ...], BeforeValidator(_listed), Field(min_length=1, max_length=8)] = (0.9999,)
    ema_warmup: bool = True
    label_dropout: Share = 0.1
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _has_todays_keys(cls, given: Any) -> Any:
        return _refuse_renamed("training", given, {"objective": "prediction"})


class BudgetSettings(Frozen):
    """Training compute of a full trial, and the rungs at which trials are compared.

    A full trial takes `max`, or in an ablation, where every variant is to see the same samples, so many `steps`. Each rung but
    the last is the next divided by `reduction_factor`; with `even`, they are evenly spaced. In mode `stop` a trial is judged as
    soon as it reports (ASHA as Ray's); in `promote` it waits and the best of a rung are resumed, whatever their order of
    arrival; in `none` all go on to `max`. Nothing is judged at the first `grace_rungs` rungs. With `brackets`, trials are dealt
    out in turn and each bracket is judged by itself, its first judgement one rung later than the bracket's before. With
    `decay`, the learning rate falls linearly to 0 over the last share of `max`, which must lie between the last two rungs: up
    to any other rung, the rate is the same for all.
    """

    max: Macs | None = None
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    rungs: Annotated[int, Field(ge=1, le=12)] = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    even: bool = False
    mode: Literal["stop", "promote", "none"] = "stop"
    grace_rungs: Annotated[int, Field(ge=0)] = 0
    brackets: Annotated[int, Field(ge=1)] = 1
    decay: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _has_todays_keys(cls, given: Any) -> Any:
        return _refuse_renamed("budget", given, {"reduction": "reduction_factor", "grace": "grace_rungs"})

    @model_validator(mode="after")
    def _is_one_amount(self) -> BudgetSettings:
        if (self.max is None) == (self.steps is None):
            raise StudyError("a budget is either max (compute, such as '1.5 TFLOPs') or steps (of training); give one of them")
        if self.even and self.mode != "none":
            raise StudyError(
                "even rungs are for mode none: where trials are judged, each rung is the next divided by reduction_factor"
            )
        if self.milestones[0] < 1:
            raise StudyError(f"{self.rungs} rungs leave less than a step for the first; take fewer")
        return self

    @model_validator(mode="after")
    def _judges(self) -> BudgetSettings:
        judged = self.rungs - 1
        if self.mode == "none" and (self.grace_rungs or self.brackets > 1):
            raise StudyError("mode none judges nowhere, so grace_rungs and brackets do not apply; remove them")
        if (self.grace_rungs or self.brackets > 1) and self.grace_rungs + self.brackets > judged:
            raise StudyError(
                f"grace_rungs {self.grace_rungs} and brackets {self.brackets} leave the last bracket without a rung to be judged "
                f"at; {self.rungs} rungs have {judged}"
            )
        return self

    @model_validator(mode="after")
    def _decays_after_the_rungs(self) -> BudgetSettings:
        most = 1 / self.rungs if self.even else 1 - 1 / self.reduction_factor
        if self.rungs > 1 and self.decay > most:
            raise StudyError(f"decay {self.decay:g} would begin before the last rung but one; take at most {most:g}")
        return self

    @property
    def milestones(self) -> tuple[int, ...]:
        """What has been trained at every rung, rising: multiply-accumulates, or steps where the budget is in steps."""
        if self.even:
            return tuple(self.full * (rung + 1) // self.rungs for rung in range(self.rungs))
        return tuple(self.full // self.reduction_factor ** (self.rungs - 1 - rung) for rung in range(self.rungs))

    @property
    def full(self) -> int:
        """What a full trial trains: multiply-accumulates, or steps where the budget is in steps."""
        amount = self.steps if self.max is None else self.max
        assert amount is not None, "a budget has one amount"
        return amount

    def milestones_of(self, step_macs: int) -> tuple[int, ...]:
        """Cumulative training multiply-accumulates at every rung, for a trial whose step takes `step_macs`."""
        return tuple(mark * (step_macs if self.max is None else 1) for mark in self.milestones)

    def steps_of(self, step_macs: int) -> tuple[int, ...]:
        """The training step at which a trial reports at every rung, for a trial whose step takes `step_macs`."""
        return tuple(first_step(macs, step_macs) for macs in self.milestones_of(step_macs))

    @property
    def increments(self) -> tuple[int, ...]:
        """What is trained from one rung to the next, the first from nothing; in the unit of `milestones`."""
        marks = self.milestones
        return tuple(mark - before for before, mark in zip((0, *marks), marks, strict=False))

    def bracket_of(self, variant: int) -> int:
        """The bracket of an architecture, by its number: architectures are dealt out in turn."""
        return variant % self.brackets

    def in_bracket(self, architectures: int, bracket: int) -> int:
        """How many of so many architectures a bracket gets."""
        return (architectures - bracket + self.brackets - 1) // self.brackets

    def first_judged(self, bracket: int) -> int:
        """The first rung (from 0) at which a bracket's architectures are judged; the last where nothing is."""
        last = self.rungs - 1
        return last if self.mode == "none" else min(self.grace_rungs + bracket, last)

    def share_promoted(self, rung: int, bracket: int = 0) -> float:
        """The share of a bracket's architectures that trains on from a rung, in expectation: 1 where nothing is judged."""
        if rung >= self.rungs - 1:
            return 0.0
        return 1 / self.reduction_factor if rung >= self.first_judged(bracket) else 1.0


class FinishSettings(Frozen):
    """The best trials train on to a larger budget before they are exported and sampled.

    With `decay`, the learning rate falls linearly to 0 over the last share of what the finish adds.
    """

    best: Annotated[int, Field(ge=1)] = 1
    budget: Macs
    decay: Share = 0.0


class ValLossSettings(Frozen):
    """The fixed grid of the validation loss: this many images, each at one stratified timestep with a noise and its negative."""

    images: Annotated[int, Field(ge=8)] = 512


class SampleSettings(Frozen):
    """The grid of images sampled from a finished model; the sampler is ddim, or heun for a flow, where none is named."""

    per_class: Annotated[int, Field(ge=1)] = 8
    sampler: Sampler | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: float = 2.0
    seed: int = 0


class FidSettings(Frozen):
    """FID and the other metrics of finished models: so many images with each seed, judged against the training images.

    A search judges its winners; an ablation every trial, in the trial's own process, at its last rung or with `at: every` at each.
    """

    samples: Count = 2000
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    sampler: Sampler | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: float = 1.0
    extractor: Literal["clothes", "inception"] = "clothes"
    at: Literal["last", "every"] = "last"


class EvaluationSettings(Frozen):
    """How trials are scored, and finished models shown and judged."""

    val_loss: ValLossSettings = ValLossSettings()
    samples: SampleSettings = SampleSettings()
    fid: FidSettings | None = None


class ResourceSettings(Frozen):
    """What one trial occupies, and for how long at most.

    CPU cores, which are its threads; GPUs (`auto`: the share that its predicted memory needs, where the cluster has any); how many
    run at once; and the seconds that a training step, a validation or the writing of a checkpoint may take before the trial counts
    as hanging.
    """

    cpu: Annotated[int, Field(ge=1)] = 1
    gpu: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    concurrent: Annotated[int, Field(ge=1)] | None = None
    step_limit_s: Annotated[float, Field(gt=0)] = 600.0


class TrackingSettings(Frozen):
    """A tracker that trials are logged to as well, and the options of Ray's callback for it; a bare name stands for the kind."""

    kind: Literal["tensorboard", "wandb", "mlflow"]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given
