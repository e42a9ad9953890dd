"""The settings of what follows a search: the confirmation of its best with fresh seeds, and the explanation of the winner."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nas.study.ablation import SeedSettings
from space.errors import StudyError
from space.frozen import Frozen

FRESH_SEEDS = 2000
"""The first seed of a confirmation, counted from the study's: beyond those of its search and of a calibration."""

MOST_CANDIDATES = 100
"""Most candidates of a confirmation; every further one makes a difference harder to claim."""


class AgainstSettings(Frozen):
    """The architecture that candidates are compared with: a preset, by default the study's, and values by dotted path."""

    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class ConfirmSettings(Frozen):
    """The section `confirm`: the best architectures of a search and a baseline are trained anew, with seeds that it never used.

    The best of many noisy values is too good: by 1 to 2 standard deviations of a training seed for the best of 60. So the values of
    the search choose the candidates, and are never part of what is claimed of them.

    Attributes:
        best: The number of candidates, the best of the search.
        against: The baseline: the study's `model`, or another preset or values.
        seeds: The seeds of every candidate and of the baseline, the same for all; as in an ablation they may be sequential.
        budget: The training of each: compute such as `1.5 TFLOPs`, or steps where the study's budget is in steps. None is the
            search's.
    """

    best: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] = 3
    against: Literal["model"] | AgainstSettings = "model"
    seeds: SeedSettings = SeedSettings(min=6, max=6)
    budget: int | str | None = None

    @model_validator(mode="after")
    def _has_pairs(self) -> ConfirmSettings:
        if self.seeds.min < 2:
            raise StudyError("seeds: one seed has no interval, so it confirms nothing; take at least 2, better 6")
        return self

    @property
    def baseline(self) -> AgainstSettings:
        """The preset and values of the baseline, over the study's model."""
        return AgainstSettings() if isinstance(self.against, str) else self.against


class ExplainSettings(Frozen):
    """The section `explain`: which of the differences between the winner and the baseline carry its gain; `true` is all defaults.

    Attributes:
        seeds: The paired seeds of every row; more are added where a difference is open.
        most: The most differences that are taken back one at a time. Of more, those are kept that matter most in the search's own
            trials.
    """

    seeds: SeedSettings = SeedSettings(min=3, max=6)
    most: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] = 8

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {} if given is True else given
