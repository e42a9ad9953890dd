"""The study: one question as a YAML file, checked and frozen."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BeforeValidator, Field, model_validator

from nas.data.codecs import codec_named
from nas.data.sources import load_data, source_named
from space.census import Census
from space.census import census as take_census
from space.document import Document, parse
from space.domains import Domain, Range
from space.errors import DataError, NasError, StudyError
from space.paths import changed
from space.presets import preset
from space.search_space import SearchSpace
from space.spec import Frozen, ModelSpec

_PREFIXES = {"M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
CENSUS_DRAWS = 100_000


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


class DataSettings(Frozen):
    """The images to train on, and the codec that makes latents of them."""

    source: str
    codec: str

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents; raises DataError for an unknown source or codec."""
        return codec_named(self.codec).latent_shape(source_named(self.source).image_shape)


class ModelSettings(Frozen):
    """A preset, and dotted paths that differ from it."""

    preset: str
    set: dict[str, Any] = Field(default_factory=dict)


class Objective(Frozen):
    """A metric to optimise."""

    metric: Literal["val_loss", "gflops", "train_gflops", "params_m"]
    direction: Literal["minimize", "maximize"] = "minimize"


class SamplerSettings(Frozen):
    """Which Optuna sampler proposes, and its seed."""

    kind: Literal["random", "tpe"] = "tpe"
    seed: int = 0


class SearchSettings(Frozen):
    """What is searched, within which hard constraints, for what, and how many trials."""

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    constraints: dict[str, Range] = Field(default_factory=dict)
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=2)] = (Objective(metric="val_loss"),)
    sampler: SamplerSettings = SamplerSettings()
    trials: Annotated[int, Field(ge=1)]


class TrainingSettings(Frozen):
    """How every trial is trained; the defaults are both papers' recipe.

    The learning rate is constant, so it does not depend on the rung. `ema` is the decay of the averaged weights; with
    `ema_warmup` the decay of step k is at most (1 + k) / (10 + k), so that short trials are not judged by their
    initial weights.
    """

    batch_size: Annotated[int, Field(ge=1)] = 256
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Share = 0.9999
    ema_warmup: bool = True
    label_dropout: Share = 0.1
    precision: Literal["auto", "float32", "bf16"] = "auto"
    seed: int = 0


class BudgetSettings(Frozen):
    """Training compute of a full trial, and the rungs at which trials are compared.

    The last rung is `max`; each one before it is the next divided by `reduction`.
    """

    max: Macs
    rungs: Annotated[int, Field(ge=1, le=12)] = 1
    reduction: Annotated[int, Field(ge=2)] = 2

    @property
    def milestones(self) -> tuple[int, ...]:
        """Cumulative training multiply-accumulates of every rung, rising."""
        return tuple(self.max // self.reduction ** (self.rungs - 1 - rung) for rung in range(self.rungs))


class FinishSettings(Frozen):
    """The best trials train on to a larger budget before they are exported and sampled."""

    best: Annotated[int, Field(ge=1)] = 1
    budget: Macs


class ValLossSettings(Frozen):
    """The fixed grid of the validation loss: this many images, each at one stratified timestep with a noise and its negative."""

    images: Annotated[int, Field(ge=8)] = 512


class SampleSettings(Frozen):
    """The grid of images sampled from a finished model."""

    per_class: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: float = 2.0
    seed: int = 0


class EvaluationSettings(Frozen):
    """How trials are scored and finished models shown."""

    val_loss: ValLossSettings = ValLossSettings()
    samples: SampleSettings = SampleSettings()


class ResourceSettings(Frozen):
    """What one trial occupies: CPU cores (its threads), GPUs (`auto`: one when the cluster has any), and how many run at once."""

    cpu: Annotated[int, Field(ge=1)] = 1
    gpu: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    concurrent: Annotated[int, Field(ge=1)] | None = None


class Study(Frozen):
    """One question, and all that is needed to answer it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    question: str = ""
    data: DataSettings
    model: ModelSettings
    search: SearchSettings
    training: TrainingSettings = TrainingSettings()
    budget: BudgetSettings
    finish: FinishSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    resources: ResourceSettings = ResourceSettings()

    @cached_property
    def base(self) -> ModelSpec:
        """The spec that the search varies: the preset with its changes, its input as the data have it."""
        channels, height, width = self.data.shape()
        classes = len(source_named(self.data.source).class_names)
        if height != width:
            raise StudyError(f"data of {height}×{width} are not square, which the model needs")
        fixed = {"in_channels": channels, "input_size": height, "num_classes": classes}
        for path, value in self.model.set.items():
            if path in fixed and value != fixed[path]:
                raise StudyError(f"model.set.{path} is {value}, but the data have {fixed[path]}; remove it")
        return changed(preset(self.model.preset), {**self.model.set, **fixed})

    @cached_property
    def search_space(self) -> SearchSpace:
        """The space around the base spec."""
        return SearchSpace(self.base, self.search.space, self.search.constraints)

    @cached_property
    def census(self) -> Census:
        """What random points of the space are; the same for the same study."""
        return take_census(self.search_space, np.random.default_rng(0), CENSUS_DRAWS, self.training.batch_size)

    @model_validator(mode="after")
    def _is_possible(self) -> Study:
        _within("data", self.data.shape)
        _within("model", lambda: self.base)
        _within("search", lambda: self.search_space)
        metrics = [objective.metric for objective in self.search.objectives]
        if len(set(metrics)) < len(metrics):
            raise StudyError(f"search.objectives names {metrics[0]} twice")
        if metrics[0] != "val_loss":
            raise StudyError("search.objectives must begin with val_loss, by which rungs compare trials and the winner is chosen")
        if self.search.objectives[0].direction != "minimize":
            raise StudyError("search.objectives: val_loss is minimised; write direction: minimize or leave it out")
        if self.finish and self.finish.budget <= self.budget.max:
            raise StudyError("finish.budget must be above budget.max: the winner trains on")
        return self

    def check_runs(self) -> None:
        """The checks that look at many architectures; raises StudyError when none is feasible or a rung is under one step."""
        census = self.census
        if not census.feasible:
            raise StudyError(f"search.constraints: {self.search_space.problem(census.draws, census.nearest)}")
        dearest = census.dearest_step_macs
        first = self.budget.milestones[0]
        if first < dearest:
            raise StudyError(
                f"budget: the first rung, {first / 1e9:.3g} GFLOPs, is less than one step of the dearest architecture "
                f"({dearest / 1e9:.3g} GFLOPs at batch size {self.training.batch_size}); raise budget.max or take fewer rungs"
            )


def check_data(study: Study) -> None:
    """Read the data; raises DataError when they are missing or damaged, or fewer images are held out than validation needs."""
    held_out = len(load_data(study.data.source, study.data.codec).validation)
    wanted = study.evaluation.val_loss.images
    if wanted > held_out:
        raise DataError(f"evaluation.val_loss.images is {wanted}, but only {held_out} images are held out; lower it")


def _within(key: str, check: Any) -> None:
    """Run a check, its message led by the key it is about."""
    try:
        check()
    except NasError as error:
        raise StudyError(f"{key}: {error}") from None


def load_study(path: Path, changes: list[str] | None = None) -> Study:
    """The study in a YAML file, with `key.path=value` changes; raises StudyError with the one sentence for what is wrong."""
    document = Document.read(path)
    for change in changes or []:
        _apply(document.data, change)
    return parse(Study, document.data, document)


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one `key.path=value`; a key of the file that holds dots itself is found too."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise StudyError(f"--set {change}: write KEY=VALUE, such as search.trials=8")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise StudyError(f"--set {change}: '{text}' is not a YAML value") from None
    inner, parts = data, path.split(".")
    while parts:
        # The longest key that is there, so that search.space.attention.tokens means the space's key `attention.tokens`.
        known = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in inner]
        dotted = any(inner is _below(data, *keys) for keys in (("model", "set"), ("search", "space")))
        take = known[0] if known else (len(parts) if dotted else 1)
        key, parts = ".".join(parts[:take]), parts[take:]
        if not parts:
            inner[key] = value
            return
        below = inner.setdefault(key, {})
        if not isinstance(below, dict):
            raise StudyError(f"--set {change}: '{key}' holds {below!r}, not keys")
        inner = below


def _below(data: Any, *keys: str) -> Any:
    """The value below some keys, None when one is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


FREE_TO_CHANGE = ("question", "search.trials", "finish", "evaluation.samples", "resources")
"""What may differ when a run goes on: none of it changes what a finished trial means."""


def differences(old: Study, new: Study) -> list[str]:
    """`key: old → new` for all that differs and may not."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    changed_keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return [
        f"{key}: {before.get(key, '(none)')} → {after.get(key, '(none)')}"
        for key in changed_keys
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
