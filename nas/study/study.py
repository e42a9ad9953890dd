"""The study: one question as a YAML file, checked and frozen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from nas.data.header import Header
from nas.data.settings import DataSettings
from nas.study.ablation import AblationSettings
from nas.study.budget import BudgetSettings, FinishSettings, macs_of_one
from nas.study.checks import begins_with, problems_of, within
from nas.study.followups import AgainstSettings, ConfirmSettings, ExplainSettings
from nas.study.nuisance import Candidate, Trained, checked_domains, is_setting, own_training, sizes_of, trained_with, tuned
from nas.study.objectives import of_samples, scores_first
from nas.study.rows import Row, rows_of
from nas.study.settings import (
    EvaluationSettings,
    ModelSettings,
    Objective,
    ResourceSettings,
    SamplerSettings,
    SearchSettings,
    TrackingSettings,
    TrainingSettings,
    listed,
)
from space.costs.cost import cost
from space.domains.census import Census
from space.domains.census import census as take_census
from space.domains.domain import Domain
from space.domains.space import FIXED_BY_DATA, Params, SearchSpace
from space.errors import Location, Mistakes, StudyError, ToolkitError
from space.frozen import Frozen
from space.paths import plain_value
from space.presets import preset
from space.resize import scaled
from space.spec import ModelSpec, spec_paths

CENSUS_DRAWS = 100_000


ReadHeader = Callable[[DataSettings], Header]


class Study(Frozen):
    """One question, and all settings that are needed to answer it.

    A study is checked against the header of its data. Pydantic's validation context holds it under the key `header`: a Header, or
    a function from `DataSettings` to a Header. This class reads no files; `nas.study.load` does.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    question: str = ""
    data: DataSettings
    model: ModelSettings
    search: SearchSettings | None = None
    ablation: AblationSettings | None = None
    training: TrainingSettings = TrainingSettings()
    budget: BudgetSettings
    confirm: ConfirmSettings | None = None
    explain: Annotated[ExplainSettings | None, BeforeValidator(lambda given: None if given is False else given)] = None
    finish: FinishSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    resources: ResourceSettings = ResourceSettings()
    tracking: Annotated[tuple[TrackingSettings, ...], BeforeValidator(listed)] = ()

    _header: Header | None = PrivateAttr(None)

    @property
    def header(self) -> Header:
        """The header of the study's data, against which the study was checked."""
        assert self._header is not None, "a study without a header is refused"
        return self._header

    @cached_property
    def base(self) -> ModelSpec:
        """The spec that the study varies: its preset with `model.set`, and input and classes from the data."""
        return self.spec_of(None, {})

    def spec_of(self, name: str | None, changes: Mapping[str, Any]) -> ModelSpec:
        """Build a spec as the study builds its model.

        Args:
            name: The preset; None takes the study's.
            changes: Further values by dotted path, over those of `model.set`.

        Returns:
            The preset, scaled by `model.scale`, with input size, input channels and classes from the data.

        Raises:
            StudyError: If the data are not square, or a path that the data or the prediction fix is set to another value.
            SpecError: If the values make no valid spec.
        """
        header = self.header
        channels, height, width = header.shape
        classes = len(header.class_names)
        if height != width:
            raise StudyError(f"data of {height}×{width} are not square, which the model needs")
        fixed: dict[str, Any] = {"in_channels": channels, "input_size": height, "num_classes": classes}
        if self.training.prediction.kind != "epsilon":
            fixed["learned_variance"] = False
        for path, value in [*self.model.set.items(), *changes.items()]:
            if path in fixed and value != fixed[path]:
                origin = "the prediction has" if path == "learned_variance" else "the data have"
                where = f"model.set.{path}" if path in self.model.set else path
                raise StudyError(f"{where} is {value}, but {origin} {fixed[path]}; remove it")
        start = preset(name or self.model.preset)
        return scaled(start, self.model.scale, height).replace({**self.model.set, **fixed, **changes})

    @cached_property
    def architecture_space(self) -> SearchSpace:
        """The specs that are searched, around the base spec; for an ablation it holds the base spec only."""
        return self._space({})

    @cached_property
    def search_space(self) -> SearchSpace:
        """The space that is searched: that of the architectures, with the training settings that are tuned beside them."""
        return self._space(self.nuisance)

    def _space(self, settings: Mapping[str, Domain]) -> SearchSpace:
        search = self.search
        constraints = search.constraints if search else {}
        return SearchSpace(self.base, {path: search.space[path] for path in self.varied} if search else {}, constraints, settings)

    @cached_property
    def nuisance(self) -> dict[str, Domain]:
        """The domains of the training settings that a search tunes, by dotted path; raises Mistakes for those that it cannot."""
        return checked_domains(self.search.space) if self.search else {}

    def training_of(self, trial: Trained) -> TrainingSettings:
        """The training of a trial, a plan or a candidate: the study's, with its own values."""
        return trained_with(self.training, trial.training)

    def hidden_rate(self, spec: ModelSpec) -> float:
        """The learning rate of an architecture's hidden matrices, as a multiple of that of its other parameters."""
        return self.base.channels / spec.channels if self.training.width_rule == "inverse" else 1.0

    def tuned_of(self, trial: Trained) -> dict[str, Any]:
        """A trial's training settings by dotted path: those that the search tunes, and those in which it differs from the study."""
        return tuned(self.training_of(trial), {*self.nuisance, *trial.training})

    def candidate(self, params: Params) -> Candidate:
        """What a point of the search space is; raises SpecError when no such architecture can be built."""
        values = {path: params[path] for path in self.nuisance if path in params}
        return Candidate(self.search_space.spec(params), own_training(self.training, values))

    @cached_property
    def batch_sizes(self) -> tuple[int, int]:
        """The smallest and the largest batch size of a trial; the study's own is among them."""
        sizes = [*sizes_of(self.nuisance), *(self.training_of(one).batch_size for one in self.enqueued), self.training.batch_size]
        return min(sizes), max(sizes)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of an ablation, empty for a search; raises StudyError for a row that cannot be built."""
        return rows_of(self.ablation, self.spec_of) if self.ablation else ()

    @cached_property
    def hand_made(self) -> tuple[str, ModelSpec]:
        """The architecture that a confirmation compares with, and its name; raises ToolkitError where it cannot be built."""
        against = self.confirm.baseline if self.confirm else AgainstSettings()
        changed = ", changed" if against.set else ""
        return f"{against.preset or self.model.preset}{changed}", self.spec_of(against.preset, against.set)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The metrics by which trials are compared at rungs."""
        return self.search.objectives if self.search else (Objective(metric="val_loss"),)

    @cached_property
    def metric(self) -> str:
        """The score by which architectures are ranked: an ablation's own, or the first among a search's objectives."""
        if self.ablation:
            return self.ablation.metric
        return scores_first(self.objectives)[0].metric

    @property
    def scores_trials(self) -> bool:
        """Whether `evaluation.fid` scores every trial in its own process: in an ablation, and a search by a metric of samples."""
        return self.evaluation.fid is not None and (self.ablation is not None or bool(of_samples(self.objectives)))

    @property
    def replicates(self) -> int:
        """The number of trials that are judged together; 1 in an ablation."""
        return self.search.replicates if self.search else 1

    def milestones_of(self, spec: ModelSpec, batch_size: int | None = None) -> tuple[int, ...]:
        """The cumulative training multiply-accumulates of an architecture at every rung; `batch_size` is the study's by default."""
        return self.budget.milestones_of(cost(spec), batch_size or self.training.batch_size)

    def finish_macs_of(self, spec: ModelSpec, batch_size: int | None = None) -> int:
        """The cumulative training multiply-accumulates of an architecture at the end of the finish, as `milestones_of`."""
        assert self.finish is not None, "the study has a finish"
        return self.finish.macs_of(cost(spec), batch_size or self.training.batch_size)

    def macs_of_one(self, step_macs: float) -> float:
        """The training multiply-accumulates of one unit of the budget, at `step_macs` a step; for forecasts."""
        return macs_of_one(self.budget.unit, step_macs, self.training.batch_size)

    def scored_at(self, rung: int) -> bool:
        """Whether trials are scored with `evaluation.fid` at a rung: where they are at all, at the last rung or at every rung."""
        fid = self.evaluation.fid
        if fid is None or not self.scores_trials:
            return False
        return rung == self.budget.rungs - 1 or (fid.at == "every" and rung < self.budget.rungs)

    @cached_property
    def most_trials(self) -> int:
        """The largest number of trials that the study can have."""
        if self.search:
            return self.search.trials
        assert self.ablation is not None, "a study searches or ablates"
        return len({row.spec.digest for row in self.rows}) * self.ablation.seeds.max

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """The dotted paths in which the architectures of the study may differ."""
        if self.search:
            return tuple(path for path in self.search.space if not is_setting(path))

        def varies(path: str) -> bool:
            first, *others = (plain_value(path, row.spec.value_at(path)) for row in self.rows)
            return any(value != first for value in others)

        return tuple(filter(varies, spec_paths()))

    @cached_property
    def enqueued(self) -> tuple[Candidate, ...]:
        """The candidates of `search.enqueue`; raises Mistakes with all that are invalid or outside the constraints."""
        found: list[Candidate] = []
        mistakes: list[tuple[Location, str]] = []
        for index, changes in enumerate(self.search.enqueue if self.search else ()):
            at: Location = ("enqueue", index)
            own = {path: value for path, value in changes.items() if is_setting(path)}
            try:
                spec = self.base.replace({path: value for path, value in changes.items() if path not in own})
                found.append(Candidate(spec, own_training(self.training, own)))
            except ToolkitError as error:
                named = next((path for path in changes if path in str(error)), None)
                mistakes.append(((*at, named) if named else at, f"enqueue.{index}: {error}"))
                continue
            fixed = [path for path in FIXED_BY_DATA if spec.value_at(path) != self.base.value_at(path)]
            broken = self.architecture_space.violations(spec)
            if fixed:
                mistakes.append(((*at, fixed[0]), f"enqueue.{index} sets {fixed[0]}, which the data decide; remove it"))
            elif broken:
                reached = ", ".join(f"{metric} {getattr(cost(spec), metric):.4g}" for metric in broken)
                what = f"enqueue.{index} has {reached}, outside the constraints, in which everything is trained; mend one"
                mistakes.append((at, what))
        if mistakes:
            raise Mistakes(mistakes)
        return tuple(found)

    @cached_property
    def census(self) -> Census:
        """A census of random points of the space, with a fixed seed: feasible share, ranges of costs, cheapest and dearest."""
        return take_census(self.architecture_space, np.random.default_rng(0), CENSUS_DRAWS, self.training.batch_size)

    @model_validator(mode="before")
    @classmethod
    def _prunes_nothing(cls, given: Any) -> Any:
        """Default an ablation's budget to mode `none`; any other mode is refused later."""
        if isinstance(given, dict) and given.get("ablation") is not None and isinstance(given.get("budget"), dict):
            return {**given, "budget": {"mode": "none", **given["budget"]}}
        return given

    @model_validator(mode="after")
    def _is_possible(self, info: ValidationInfo) -> Study:
        if self._header is not None:
            return self  # Already checked: pydantic validates a study again when it is a field of an event.
        given: Header | ReadHeader | None = (info.context or {}).get("header")
        if given is None:
            raise StudyError("a study is checked against the header of its data; load it with nas.load_study")
        if (self.search is None) == (self.ablation is None):
            raise StudyError("a study holds either search or ablation; give one of them")

        def take_header() -> None:
            self._header = given if isinstance(given, Header) else given(self.data)

        within("data", take_header)
        try:
            within("model", lambda: self.base)
        except Mistakes as error:
            raise Mistakes([(self._place_in_model(what, at), what) for at, what in error.each]) from None
        mistakes: list[tuple[Location, str]] = []
        for problem in problems_of(self):
            mistakes += problem.each if isinstance(problem, Mistakes) else [(begins_with(str(problem)), str(problem))]
        if mistakes:
            # What one part of the study needs of another is refused in both.
            raise Mistakes(list(dict.fromkeys(mistakes)))
        return self

    def _place_in_model(self, what: str, at: Location) -> Location:
        """The value of `model.set` that a mistake in building the base spec speaks of; the given place where it names none."""
        named = next((path for path in self.model.set if path in what), None)
        return ("model", "set", named) if named else at

    @property
    def architectures(self) -> tuple[ModelSpec, ...]:
        """An ablation's rows; for a search, the cheapest and the dearest of the census and the enqueued specs."""
        if self.ablation:
            return tuple(row.spec for row in self.rows)
        enqueued = (candidate.spec for candidate in self.enqueued)
        return tuple(spec for spec in (self.census.cheapest, self.census.dearest, *enqueued) if spec is not None)

    def packed(self) -> str:
        """The study and its header as JSON; `unpacked` reads it in another process."""
        return json.dumps({"study": self.model_dump(mode="json"), "header": self.header.model_dump(mode="json")})

    @classmethod
    def unpacked(cls, text: str) -> Study:
        """The study from the JSON of `packed`, checked against the same header."""
        both = json.loads(text)
        return cls.model_validate(both["study"], context={"header": Header.model_validate(both["header"])})

    def check_runs(self) -> None:
        """Run the checks that a recorded study need not pass again, and those that need many architectures.

        Raises:
            StudyError: When a setting would be ignored, no architecture is feasible, or a rung is under one step.
        """
        if self.search:
            sampler = self.search.sampler
            if sampler.kind != "nsga2" and sampler.population != SamplerSettings().population:
                raise StudyError(f"search.sampler.population is of nsga2; {sampler.kind} has none, so remove it")
            census = self.census
            if not census.feasible:
                raise StudyError(f"search.constraints: {self.search_space.problem(census.draws, census.nearest)}")
        kind = self.training.prediction.kind
        for key in ("samples", "fid"):
            if kind != "flow" and getattr(getattr(self.evaluation, key), "steps", 2) < 2:
                raise StudyError(f"evaluation.{key}.steps is 1, which would end in noise with {kind}; take at least 2")
        first, size = self.budget.milestones[0], self.batch_sizes[-1]
        if self.budget.unit == "images" and first < size:
            raise StudyError(
                f"budget: the first rung, {first:,} images, is less than one step at batch size {size:,}; raise "
                "budget.images or take fewer rungs"
            )
        if self.budget.unit != "compute":
            return
        dearest = max(cost(spec).step_macs(size) for spec in self.architectures)
        if first < dearest:
            raise StudyError(
                f"budget: the first rung, {first / 1e9:.3g} GFLOPs, is less than one step of the dearest architecture "
                f"({dearest / 1e9:.3g} GFLOPs at batch size {size}); raise budget.max or take fewer rungs"
            )
