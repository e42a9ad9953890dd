"""The sections of a study as frozen settings; each refuses unknown keys and impossible values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from nas.study.choices import FEATURES, ExtractorName, Sampler, SearcherKind
from nas.study.metrics import EXTRAPOLATED_FROM, biased_order
from space.amounts import cost_range
from space.domains.domain import Domain, Range
from space.errors import Mistakes, StudyError
from space.frozen import Frozen
from space.resize import Scale
from space.stage import Count

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


RENAMED = {"training": {"objective": "prediction"}, "budget": {"reduction": "reduction_factor", "grace": "grace_rungs"}}
"""Per section: the keys of earlier versions, which ledgers of schema 2 still have, and their names today."""


class ModelSettings(Frozen):
    """The study's model: a preset, a `scale` for its channels and depths, and values by dotted path in `set`."""

    preset: str
    scale: Scale = Scale()
    set: dict[str, Any] = Field(default_factory=dict)


class Objective(Frozen):
    """A metric to optimise: a score, a cost, or `step_seconds`, the measured time of a training step.

    Scores are the validation loss, and with `evaluation.fid` at every rung `fid`, `fid_infinity` and `kid`.
    """

    metric: Literal["val_loss", "fid", "fid_infinity", "kid", "gflops", "train_gflops", "params_m", "step_seconds"]
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
        objectives: One to three metrics to optimise, in any order, at least one of them a score. Rungs compare trials by all of
            them, and the winner is the best by the first score.
        sampler: The Optuna sampler.
        trials: The number of trials; the number of architectures is trials / replicates.
        replicates: Seeds per architecture. Replicates are judged together, by their mean.
        enqueue: Architectures to try first, each as dotted paths that differ from the study's model (`{}` is the model itself).
            They must meet the constraints, but may be outside the space.
    """

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    constraints: Annotated[dict[str, Range], BeforeValidator(_ranges)] = Field(default_factory=dict)
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=3)] = (Objective(metric="val_loss"),)
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


class ValLossSettings(Frozen):
    """The fixed grid of the validation loss: `images` images, each at one stratified timestep with a noise and its negative.

    They come in a fixed random order of the images held out, after the first `skip`, such as those that a search was judged by.
    """

    images: Annotated[int, Field(ge=8, le=1_000_000)] = 512
    skip: Annotated[int, Field(ge=0, le=1_000_000)] = 0


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

    A search evaluates its winners. An ablation, and a search by a metric of samples, evaluates every trial in the trial's own
    process: at its last rung, or at every rung with `at: every`.
    """

    samples: Count = 2000
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    sampler: Sampler | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Guidance = 1.0
    extractor: ExtractorName = "clothes"
    at: Literal["last", "every"] = "last"

    def too_few_for(self, metric: str) -> str:
        """What is wrong where FID∞ is asked for with fewer samples than it is extrapolated from; empty otherwise."""
        least = EXTRAPOLATED_FROM * FEATURES[self.extractor]["fid"]
        if metric != "fid_infinity" or self.samples >= least:
            return ""
        return (
            f"which needs at least {least:,} samples of {self.extractor}'s features; raise evaluation.fid.samples from "
            f"{self.samples:,}, or take kid"
        )

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
