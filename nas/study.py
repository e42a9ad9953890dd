"""The study: one question as a YAML file, checked and frozen."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, model_validator

from nas.settings import (
    SAMPLERS,
    BudgetSettings,
    DataSettings,
    EvaluationSettings,
    FinishSettings,
    ModelSettings,
    ResourceSettings,
    SearchSettings,
    TrackingSettings,
    TrainingSettings,
)
from space.census import Census
from space.census import census as take_census
from space.cost import cost
from space.document import Document, parse
from space.errors import DataError, NasError, StudyError
from space.paths import changed
from space.presets import preset
from space.search_space import FIXED_BY_DATA, SearchSpace
from space.spec import Frozen, ModelSpec

CENSUS_DRAWS = 100_000


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
    tracking: tuple[TrackingSettings, ...] = ()

    @cached_property
    def base(self) -> ModelSpec:
        """The spec that the search varies: the preset with its changes, its input as the data have it."""
        header = self.data.header()
        channels, height, width = header.shape
        classes = len(header.class_names)
        if height != width:
            raise StudyError(f"data of {height}×{width} are not square, which the model needs")
        fixed: dict[str, Any] = {"in_channels": channels, "input_size": height, "num_classes": classes}
        if self.training.objective.kind != "epsilon":
            fixed["learned_variance"] = False
        for path, value in self.model.set.items():
            if path in fixed and value != fixed[path]:
                origin = "the objective has" if path == "learned_variance" else "the data have"
                raise StudyError(f"model.set.{path} is {value}, but {origin} {fixed[path]}; remove it")
        return changed(preset(self.model.preset), {**self.model.set, **fixed})

    @cached_property
    def search_space(self) -> SearchSpace:
        """The space around the base spec."""
        return SearchSpace(self.base, self.search.space, self.search.constraints)

    @cached_property
    def enqueued(self) -> tuple[ModelSpec, ...]:
        """The specs to try first; raises SpecError for one that cannot be built, StudyError for one outside the constraints."""
        specs = []
        for place, changes in enumerate(self.search.enqueue):
            spec = changed(self.base, changes)
            fixed = [path for path in FIXED_BY_DATA if spec.value_at(path) != self.base.value_at(path)]
            if fixed:
                raise StudyError(f"enqueue.{place} sets {fixed[0]}, which the data decide; remove it")
            broken = self.search_space.violations(spec)
            if broken:
                reached = ", ".join(f"{metric} {getattr(cost(spec), metric):.4g}" for metric in broken)
                raise StudyError(
                    f"enqueue.{place} has {reached}, outside the constraints, in which everything is trained; mend one"
                )
            specs.append(spec)
        return tuple(specs)

    @cached_property
    def census(self) -> Census:
        """What random points of the space are; the same for the same study."""
        return take_census(self.search_space, np.random.default_rng(0), CENSUS_DRAWS, self.training.batch_size)

    @model_validator(mode="after")
    def _is_possible(self) -> Study:
        _within("data", self.data.header)
        _within("model", lambda: self.base)
        _within("search", lambda: self.search_space)
        _within("search", lambda: self.enqueued)
        metrics = [objective.metric for objective in self.search.objectives]
        if len(set(metrics)) < len(metrics):
            raise StudyError(f"search.objectives names {metrics[0]} twice")
        if metrics[0] != "val_loss":
            raise StudyError("search.objectives must begin with val_loss, by which rungs compare trials and the winner is chosen")
        if self.search.objectives[0].direction != "minimize":
            raise StudyError("search.objectives: val_loss is minimised; write direction: minimize or leave it out")
        kind = self.training.objective.kind
        for key in ("samples", "fid"):
            sampler = getattr(getattr(self.evaluation, key), "sampler", None)
            if sampler is not None and sampler not in SAMPLERS[kind]:
                raise StudyError(f"evaluation.{key}.sampler is {sampler}, but {kind} is sampled with {', '.join(SAMPLERS[kind])}")
        if len(set(self.training.ema)) < len(self.training.ema):
            raise StudyError("training.ema names a decay twice; remove one")
        if self.finish and self.finish.budget <= self.budget.max:
            raise StudyError("finish.budget must be above budget.max: the winner trains on")
        if self.finish and self.budget.decay:
            raise StudyError("budget.decay ends every trial's training, but the finish goes on with it; write finish.decay instead")
        if kind != "epsilon" and "learned_variance" in self.search.space:
            raise StudyError(f"search.space varies learned_variance, which {kind} has none of; remove it")
        return self

    def check_runs(self) -> None:
        """The checks that look at many architectures; raises StudyError when none is feasible or a rung is under one step."""
        census = self.census
        if not census.feasible:
            raise StudyError(f"search.constraints: {self.search_space.problem(census.draws, census.nearest)}")
        enqueued = [cost(spec).step_macs(self.training.batch_size) for spec in self.enqueued]
        dearest = max([census.dearest_step_macs, *enqueued])
        first = self.budget.milestones[0]
        if first < dearest:
            raise StudyError(
                f"budget: the first rung, {first / 1e9:.3g} GFLOPs, is less than one step of the dearest architecture "
                f"({dearest / 1e9:.3g} GFLOPs at batch size {self.training.batch_size}); raise budget.max or take fewer rungs"
            )


def check_data(study: Study) -> None:
    """Read the data; raises DataError when they are missing or damaged, or fewer images are held out than validation needs."""
    study.data.check_flip()
    held_out = len(study.data.load().validation)
    wanted = study.evaluation.val_loss.images
    if wanted > held_out:
        raise DataError(f"evaluation.val_loss.images is {wanted}, but only {held_out} images are held out; lower it")
    if study.evaluation.fid is not None:
        # What judges the winners must be there, and have enough samples, before anything is trained.
        from nas.evaluation.evaluate import check_count
        from nas.evaluation.extractors import extractor_named

        check_count(study.evaluation.fid.samples, extractor_named(study.evaluation.fid.extractor).dimensions)


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


FREE_TO_CHANGE = (
    "question",
    "search.trials",
    "search.enqueue",
    "finish",
    "evaluation.samples",
    "evaluation.fid",
    "resources",
    "tracking",
)
"""What may differ when a run goes on: none of it changes what a finished trial means."""


def differences(old: Study, new: Study) -> list[str]:
    """`key: old → new` for all that differs and may not."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    # A rate that has fallen to 0 cannot go on from there.
    free_keys = [key for key in FREE_TO_CHANGE if key != "finish" or not (old.finish and old.finish.decay)]
    if budget_grows(old, new):
        free_keys += ["budget.max", "budget.rungs"]
    changed_keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return [
        f"{key}: {before.get(key, '(none)')} → {after.get(key, '(none)')}"
        for key in changed_keys
        if not any(key == free or key.startswith(f"{free}.") for free in free_keys)
    ]


def budget_grows(old: Study, new: Study) -> bool:
    """Whether a budget has the other's rungs and more above them, so that trials can train on."""
    before, after = old.budget.milestones, new.budget.milestones
    return len(after) > len(before) and after[: len(before)] == before and not old.budget.decay


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
