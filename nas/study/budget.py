"""The budget of a trial: the training of a full one, the rungs on the way, and the training that a finish adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from nas.study.choices import WAITS, Mode
from nas.study.settings import RENAMED, Share
from space.amounts import macs
from space.choices.table import covering
from space.costs.cost import Cost
from space.errors import StudyError
from space.frozen import Frozen
from space.stage import Count

Macs = Annotated[int, BeforeValidator(macs), Field(gt=0, lt=10**24)]
"""Training compute in multiply-accumulates, written as `1.5 TFLOPs`."""

Steps = Annotated[int, Field(ge=1, le=10**9)]
"""Training steps."""

Images = Annotated[int, Field(ge=1, le=10**13)]
"""Training images seen: steps times the batch size."""

Unit = Literal["compute", "steps", "images"]
"""What is equal for all trials that are compared."""

EQUAL: Mapping[Unit, str] = covering(
    Unit, {"compute": "equal training compute", "steps": "equal steps", "images": "equal images seen"}
)
"""By unit: what trials are compared at, in words."""


def first_step(macs: int, step_macs: int) -> int:
    """The first training step after which at least `macs` multiply-accumulates have been spent."""
    return -(-macs // step_macs)


def macs_at(unit: Unit, amount: int, of: Cost, batch_size: int) -> int:
    """The cumulative training multiply-accumulates of an architecture that has been trained by an amount of a unit."""
    if unit == "compute":
        return amount
    steps = amount if unit == "steps" else -(-amount // batch_size)
    return steps * of.step_macs(batch_size)


def macs_of_one(unit: Unit, step_macs: float, batch_size: int) -> float:
    """The training multiply-accumulates of one of a unit, at `step_macs` a step; for forecasts, as trials train whole steps."""
    return {"compute": 1.0, "steps": step_macs, "images": step_macs / batch_size}[unit]


def _only(section: str, amounts: Mapping[Unit, tuple[str, int | None]]) -> tuple[Unit, int]:
    """The only amount that is given, and its unit; raises StudyError when there is another number of them."""
    given: list[tuple[Unit, int]] = [(unit, amount) for unit, (_, amount) in amounts.items() if amount is not None]
    if len(given) != 1:
        keys = {unit: key for unit, (key, _) in amounts.items()}
        raise StudyError(
            f"a {section} is either {keys['compute']} (compute, such as '1.5 TFLOPs') or steps (of training) or images "
            "(seen in training); give one of them"
        )
    return given[0]


class BudgetSettings(Frozen):
    """The training of a full trial, and the rungs at which trials are compared.

    Attributes:
        max: Compute of a full trial, in multiply-accumulates.
        steps: Training steps of a full trial, in place of `max`: every architecture sees the same samples, not the same compute.
        images: Training images that a full trial sees, in place of `max`: as `steps`, whatever the batch size.
        rungs: Number of rungs, the full budget included.
        reduction_factor: Each rung but the last is the next one divided by this.
        even: Space the rungs evenly instead.
        mode: The pruning rule. `stop`: a trial is judged as soon as it reports (ASHA, as in Ray). `promote`: a trial waits at its
            rung, and the best of the rung are resumed, whatever their order of arrival. `none`: every trial trains to the end.
        grace_rungs: Number of first rungs at which no trial is judged.
        brackets: Groups of architectures that are judged separately; architectures are assigned in turn. The first judged rung of
            each bracket is one later than that of the bracket before.
        decay: Over this last share of a full trial the learning rate falls linearly to 0. It may not begin before the last rung but
            one, so that up to any earlier rung the rate is the same for all.
    """

    renamed: ClassVar[Mapping[str, str]] = RENAMED["budget"]

    max: Macs | None = None
    steps: Steps | None = None
    images: Images | None = None
    rungs: Annotated[int, Field(ge=1, le=12)] = 1
    reduction_factor: Annotated[int, Field(ge=2, le=1_000_000)] = 2
    even: bool = False
    mode: Mode = "stop"
    grace_rungs: Annotated[int, Field(ge=0)] = 0
    brackets: Annotated[int, Field(ge=1)] = 1
    decay: Share = 0.0

    @model_validator(mode="after")
    def _is_one_amount(self) -> BudgetSettings:
        _ = self._amount
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
        """The cumulative training at every rung, rising, in the budget's unit: multiply-accumulates, steps or images."""
        if self.even:
            return tuple(self.full * (rung + 1) // self.rungs for rung in range(self.rungs))
        return tuple(self.full // self.reduction_factor ** (self.rungs - 1 - rung) for rung in range(self.rungs))

    @property
    def _amount(self) -> tuple[Unit, int]:
        return _only("budget", {"compute": ("max", self.max), "steps": ("steps", self.steps), "images": ("images", self.images)})

    @property
    def unit(self) -> Unit:
        """What is equal for all trials at a rung."""
        return self._amount[0]

    @property
    def key(self) -> str:
        """The key of the budget's amount: `max`, `steps` or `images`."""
        return "max" if self.unit == "compute" else self.unit

    @property
    def full(self) -> int:
        """The training of a full trial, in the budget's unit: multiply-accumulates, steps or images."""
        return self._amount[1]

    def milestones_of(self, of: Cost, batch_size: int) -> tuple[int, ...]:
        """The cumulative training multiply-accumulates at every rung, for an architecture of a cost."""
        return tuple(macs_at(self.unit, mark, of, batch_size) for mark in self.milestones)

    def steps_of(self, of: Cost, batch_size: int) -> tuple[int, ...]:
        """The training step of the report at every rung, for an architecture of a cost."""
        return tuple(first_step(macs, of.step_macs(batch_size)) for macs in self.milestones_of(of, batch_size))

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
    """The `best` trials train on before they are exported and sampled.

    Attributes:
        best: The number of trials that train on.
        budget: Compute of each in the end, in multiply-accumulates; of a study whose `budget` is compute too.
        steps: Training steps of each in the end, where the study's budget is in steps.
        images: Training images that each has seen in the end, where the study's budget is in images.
        decay: Over this last share of the training that the finish adds, the learning rate falls linearly to 0.
    """

    best: Count = 1
    budget: Macs | None = None
    steps: Steps | None = None
    images: Images | None = None
    decay: Share = 0.0

    @model_validator(mode="after")
    def _is_one_amount(self) -> FinishSettings:
        _ = self._amount
        return self

    @property
    def _amount(self) -> tuple[Unit, int]:
        amounts: Mapping[Unit, tuple[str, int | None]] = {
            "compute": ("budget", self.budget),
            "steps": ("steps", self.steps),
            "images": ("images", self.images),
        }
        return _only("finish", amounts)

    @property
    def unit(self) -> Unit:
        """The unit of the finish, which is that of the study's budget."""
        return self._amount[0]

    @property
    def key(self) -> str:
        """The key of the finish's amount: `budget`, `steps` or `images`."""
        return "budget" if self.unit == "compute" else self.unit

    @property
    def full(self) -> int:
        """The training of each trial in the end, in the unit of the finish."""
        return self._amount[1]

    def macs_of(self, of: Cost, batch_size: int) -> int:
        """The cumulative training multiply-accumulates at the end of the finish, for an architecture of a cost."""
        return macs_at(self.unit, self.full, of, batch_size)
