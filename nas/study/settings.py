"""The sections of a study as frozen settings; each refuses unknown keys and impossible values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from nas.study.choices import FEATURES, WAITS, ExtractorName, Mode, Sampler, SearcherKind
from nas.study.metrics import biased_order
from space.amounts import cost_range, macs
from space.domains.domain import Domain, Range
from space.errors import Mistakes, StudyError
from space.frozen import Frozen
from space.resize import Scale
from space.stage import Count

Macs = Annotated[int, BeforeValidator(macs), Field(gt=0, lt=10**24)]
"""Training compute in multiply-accumulates, written as `1.5 TFLOPs`."""

Share = Annotated[float, Field(ge=0, lt=1)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of NumPy's and Optuna's generators."""

HashedSeed = Annotated[int, Field(gt=-(2**32), lt=2**32)]
"""A seed that `nas.rng` hashes, so that it may be negative."""

Guidance = Annotated[float, Field(ge=-1000, le=1000)]
"""A scale of classifier-free guidance, far from where float32 ends."""


def listed(value: Any) -> Any:
    """Wrap a single value in a list; None is an empty one."""
    return value if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _ranges(given: Any) -> Any:
    """Constraints with every amount in the unit of its cost."""
    if not isinstance(given, Mapping):
        return given
    ranges, mistakes = {}, []
    for metric, value in given.items():
        try:
            ranges[metric] = cost_range(metric, value)
        except StudyError as error:
            mistakes.append(((metric,), f"{metric}: {error}"))
    if mistakes:
        raise Mistakes(mistakes)
    return ranges


def first_step(macs: int, step_macs: int) -> int:
    """The first training step after which at least `macs` multiply-accumulates have been spent."""
    return -(-macs // step_macs)


RENAMED = {"training": {"objective": "prediction"}, "budget": {"reduction": "reduction_factor", "grace": "grace_rungs"}}
"""Per section: the keys of earlier versions, which ledgers of schema 2 still have, and their names today."""


class ModelSettings(Frozen):
    """The study's model: a preset, a `scale` for its channels and depths, and values by dotted path in `set`."""

    preset: str
    scale: Scale = Scale()
    set: dict[str, Any] = Field(default_factory=dict)


class Objective(Frozen):
    """A metric to optimise: a cost, the validation loss, or `step_seconds`, the measured time of a training step."""

    metric: Literal["val_loss", "gflops", "train_gflops", "params_m", "step_seconds"]
    direction: Literal["minimize", "maximize"] = "minimize"


class SamplerSettings(Frozen):
    """The Optuna sampler and its seed; `population` is the number of complete trials per generation of nsga2."""

    kind: SearcherKind = "tpe"
    seed: Seed = 0
    population: Annotated[int, Field(ge=2, le=1_000_000)] = 20


class SearchSettings(Frozen):
    """The section `search`.

    Attributes:
        space: The domain of each varied dotted path.
        constraints: Hard limits of the costs; nothing outside them is trained.
        objectives: One or two metrics to optimise.
        sampler: The Optuna sampler.
        trials: The number of trials; the number of architectures is trials / replicates.
        replicates: Seeds per architecture. Replicates are judged together, by their mean.
        enqueue: Architectures to try first, each as dotted paths that differ from the study's model (`{}` is the model itself).
            They must meet the constraints, but may be outside the space.
    """

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    constraints: Annotated[dict[str, Range], BeforeValidator(_ranges)] = Field(default_factory=dict)
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=2)] = (Objective(metric="val_loss"),)
    sampler: SamplerSettings = SamplerSettings()
    trials: Count
    replicates: Count = 1
    enqueue: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _divides(self) -> SearchSettings:
        if self.trials % self.replicates:
            raise StudyError(
                f"trials {self.trials} is no multiple of replicates {self.replicates}; every architecture takes that many"
            )
        return self


class PredictionSettings(Frozen):
    """The section `training.prediction`; a bare name gives the kind.

    Attributes:
        kind: The model's target. `epsilon`: the noise, with learned variance, as in both papers. `v`: √ᾱ·ε - √(1-ᾱ)·x0 (Salimans
            & Ho 2022). `flow`: the velocity x0 - ε of the straight path (SiT, Ma et al. 2024).
        min_snr: γ of the Min-SNR loss weighting (Hang et al. 2023, with γ = 5), for `epsilon` and `v`.
        times: The distribution of a flow's training times.
    """

    kind: Literal["epsilon", "v", "flow"] = "epsilon"
    min_snr: Annotated[float, Field(gt=0, le=1e6)] | None = None
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
    """The training recipe of every trial; the defaults are both papers'.

    Attributes:
        width_rule: `inverse`: the rate of hidden matrices is `learning_rate` × (channels of the study's model / of the
            architecture); `none`: one rate for all.
        warmup_steps: Steps over which the learning rate rises linearly. It is then constant, so it does not depend on the rung.
        clip_norm: Largest norm of the gradients; None does not clip.
        ema: Decays of the moving averages of the weights (EMA). Trials are judged by the first.
        ema_warmup: Limit the decay at step k to (1 + k) / (10 + k), so that short trials are not judged by their initial weights.
        label_dropout: Share of labels replaced by the null class.
        precision: `auto` is bf16 on GPUs that have it, float32 elsewhere. With tf32 and bf16 the weights stay in float32.
        seed: The seed of initial weights and of all random streams.
    """

    renamed: ClassVar[Mapping[str, str]] = RENAMED["training"]

    prediction: PredictionSettings = PredictionSettings()
    batch_size: Count = 256
    learning_rate: Annotated[float, Field(gt=0, le=1e38)] = 1e-4
    width_rule: Literal["none", "inverse"] = "none"
    weight_decay: Annotated[float, Field(ge=0, le=1e38)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    clip_norm: Annotated[float, Field(gt=0, le=1e38)] | None = None
    ema: Annotated[tuple[Share, ...], BeforeValidator(listed), Field(min_length=1, max_length=8)] = (0.9999,)
    ema_warmup: bool = True
    label_dropout: Share = 0.1
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    seed: HashedSeed = 0


class BudgetSettings(Frozen):
    """The training compute of a full trial, and the rungs at which trials are compared.

    Attributes:
        max: Compute of a full trial, in multiply-accumulates.
        steps: Training steps of a full trial, in place of `max`; for ablations, so that every variant sees the same samples.
        rungs: Number of rungs, the full budget included.
        reduction_factor: Each rung but the last is the next one divided by this.
        even: Space the rungs evenly instead.
        mode: The pruning rule. `stop`: a trial is judged as soon as it reports (ASHA, as in Ray). `promote`: a trial waits at its
            rung, and the best of the rung are resumed, whatever their order of arrival. `none`: every trial trains to the end.
        grace_rungs: Number of first rungs at which no trial is judged.
        brackets: Groups of architectures that are judged separately; architectures are assigned in turn. The first judged rung of
            each bracket is one later than that of the bracket before.
        decay: Over this last share of `max` the learning rate falls linearly to 0. It may not begin before the last rung but one,
            so that up to any earlier rung the rate is the same for all.
    """

    renamed: ClassVar[Mapping[str, str]] = RENAMED["budget"]

    max: Macs | None = None
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    rungs: Annotated[int, Field(ge=1, le=12)] = 1
    reduction_factor: Annotated[int, Field(ge=2, le=1_000_000)] = 2
    even: bool = False
    mode: Mode = "stop"
    grace_rungs: Annotated[int, Field(ge=0)] = 0
    brackets: Annotated[int, Field(ge=1)] = 1
    decay: Share = 0.0

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
        """The cumulative training at every rung, rising: multiply-accumulates, or steps where the budget is in steps."""
        if self.even:
            return tuple(self.full * (rung + 1) // self.rungs for rung in range(self.rungs))
        return tuple(self.full // self.reduction_factor ** (self.rungs - 1 - rung) for rung in range(self.rungs))

    @property
    def full(self) -> int:
        """The training of a full trial: multiply-accumulates, or steps where the budget is in steps."""
        amount = self.steps if self.max is None else self.max
        assert amount is not None, "a budget has one amount"
        return amount

    def milestones_of(self, step_macs: int) -> tuple[int, ...]:
        """The cumulative training multiply-accumulates at every rung, for a trial with `step_macs` per step."""
        return tuple(mark * (step_macs if self.max is None else 1) for mark in self.milestones)

    def steps_of(self, step_macs: int) -> tuple[int, ...]:
        """The training step of the report at every rung, for a trial with `step_macs` per step."""
        return tuple(first_step(macs, step_macs) for macs in self.milestones_of(step_macs))

    @property
    def increments(self) -> tuple[int, ...]:
        """The training from each rung to the next, the first counted from 0; in the unit of `milestones`."""
        marks = self.milestones
        return tuple(mark - before for before, mark in zip((0, *marks), marks, strict=False))

    def bracket_of(self, variant: int) -> int:
        """The bracket of an architecture, from its number: brackets take architectures in turn."""
        return variant % self.brackets

    def in_bracket(self, architectures: int, bracket: int) -> int:
        """The number of architectures in a bracket, out of `architectures` in all."""
        return (architectures - bracket + self.brackets - 1) // self.brackets

    def first_judged(self, bracket: int) -> int:
        """The first rung (from 0) at which a bracket's architectures are judged; the last rung where none are."""
        last = self.rungs - 1
        return last if self.mode == "none" else min(self.grace_rungs + bracket, last)

    @property
    def kept_one_in(self) -> int:
        """At a rung where architectures are judged, the best one in so many trains on."""
        return self.reduction_factor

    @property
    def waits(self) -> bool:
        """Whether architectures wait at a judged rung until they are promoted; otherwise they are judged on arrival."""
        return WAITS[self.mode]

    def share_promoted(self, rung: int, bracket: int = 0) -> float:
        """The expected share of a bracket's architectures that trains on beyond a rung; 1 at a rung without judgement."""
        if rung >= self.rungs - 1:
            return 0.0
        return 1 / self.kept_one_in if rung >= self.first_judged(bracket) else 1.0


class FinishSettings(Frozen):
    """The `best` trials train on to a larger `budget` before they are exported and sampled.

    Over the last share `decay` of the training that the finish adds, the learning rate falls linearly to 0.
    """

    best: Count = 1
    budget: Macs
    decay: Share = 0.0


class ValLossSettings(Frozen):
    """The fixed grid of the validation loss: `images` images, each at one stratified timestep with a noise and its negative."""

    images: Annotated[int, Field(ge=8, le=1_000_000)] = 512


class SampleSettings(Frozen):
    """The grid of images sampled from a finished model; the default sampler is ddim, and heun for a flow.

    `per_class` images of each class are drawn. Where that makes more than `images`, evenly chosen classes are shown, at least one.
    """

    per_class: Count = 8
    images: Count = 64
    sampler: Sampler | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Guidance = 2.0
    seed: HashedSeed = 0

    def classes(self, count: int) -> list[int]:
        """The labels in the grid, one row each, out of `count` classes."""
        shown = min(count, max(1, self.images // self.per_class))
        return [row * count // shown for row in range(shown)]


class FidSettings(Frozen):
    """FID and the other sample metrics: `samples` images per seed, compared with the training images.

    A search evaluates its winners. An ablation evaluates every trial, in the trial's own process: at its last rung, or at every
    rung with `at: every`.
    """

    samples: Count = 2000
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    sampler: Sampler | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Guidance = 1.0
    extractor: ExtractorName = "clothes"
    at: Literal["last", "every"] = "last"

    def biased_order(self, metric: str) -> str:
        """A warning where so few samples cannot order models by the metric; empty where they can."""
        return biased_order(self.samples, {name: count for name, count in FEATURES[self.extractor].items() if name == metric})


class EvaluationSettings(Frozen):
    """The section `evaluation`: the validation loss of trials, and the samples (None: no grid) and metrics of finished models."""

    val_loss: ValLossSettings = ValLossSettings()
    samples: SampleSettings | None = SampleSettings()
    fid: FidSettings | None = None


class ResourceSettings(Frozen):
    """The resources of a trial, and its time limit.

    Attributes:
        cpu: CPU cores per trial, which is also its number of threads, and that of whatever follows it: finish, export and samples.
        gpu: GPUs per trial. `auto` is the share of a GPU that its predicted memory needs, where the cluster has GPUs.
        concurrent: Most trials that run at once; None sets no limit.
        step_limit_s: Seconds that a training step, a validation or the writing of a checkpoint may take. A trial that takes longer
            counts as hung.
    """

    cpu: Annotated[int, Field(ge=1, le=4096)] = 1
    gpu: Literal["auto"] | Annotated[float, Field(ge=0, le=4096)] = "auto"
    concurrent: Count | None = None
    step_limit_s: Annotated[float, Field(gt=0, le=366 * 86400)] = 600.0

    @model_validator(mode="after")
    def _has_whole_gpus(self) -> ResourceSettings:
        # Ray refuses a trial that needs more than one GPU and no whole number of them, and rounds shares to 1/10,000.
        if self.gpu != "auto" and (self.gpu % 1 if self.gpu > 1 else 0 < self.gpu < 1e-4):
            raise StudyError(f"gpu {self.gpu:g} is neither a share from 0.0001 to 1 nor a whole number of GPUs; take one of these")
        return self


class TrackingSettings(Frozen):
    """An experiment tracker, and the options of Ray's callback for it; a bare name gives the kind."""

    kind: Literal["tensorboard", "wandb", "mlflow"]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given
