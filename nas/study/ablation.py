"""The settings of an ablation: which variants are compared with which baseline, by which design, with how many paired seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

import space.published as printed
from nas.study.metrics import SCORES
from space.document import nearest
from space.errors import StudyError, ToolkitError
from space.frozen import Frozen

Design = Literal["ladder", "add-one-in", "leave-one-out", "factorial", "table"]
Control = Literal["raw", "flop-matched", "param-matched"]

MATCHED: dict[Control, str] = {"flop-matched": "gflops", "param-matched": "params_m"}
"""The cost that a control holds equal to the baseline's."""

MOST_FACTORS = 6
"""A factorial design has 2 to the power of its components as rows."""


class SeedSettings(Frozen):
    """How many seeds every variant is trained with; a bare number stands for as many, planned beforehand.

    With `max` above `min` more are trained one by one, but only for variants whose difference is still open: whose interval (valid
    under peeking, see `nas.stats.sequential`) holds 0 and, where a `margin` is given, reaches beyond ±margin.
    """

    min: Annotated[int, Field(ge=1, le=1000)]
    max: Annotated[int, Field(ge=1, le=1000)]
    margin: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        return {"min": given, "max": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _rises(self) -> SeedSettings:
        if self.max < self.min:
            raise StudyError(f"seeds.max {self.max} is below seeds.min {self.min}; exchange them")
        if self.sequential and self.min < 3:
            raise StudyError(f"seeds.min {self.min} is too few to decide on more: take at least 3")
        if self.margin is not None and not self.sequential:
            raise StudyError("seeds.margin says when to stop adding seeds; give seeds.max above seeds.min, or remove it")
        return self

    @property
    def sequential(self) -> bool:
        """Whether seeds are added while the run goes on."""
        return self.max > self.min


class VariantSettings(Frozen):
    """One row, or one component of a design that puts components together.

    `set` holds dotted paths of the spec that differ. With a `preset` the row starts from that one in place of the block's; in a
    ladder such a row stands beside the others and is compared with the baseline alone. `row` is the row of the published table to
    show beside it, where it has another name there; `family` the curve that it is a point of, its block's by default.
    """

    name: Annotated[str, Field(min_length=1)]
    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    row: str | None = None
    family: str | None = None


class BlockSettings(Frozen):
    """Variants that are compared with one baseline: by themselves (`table`) or put together by a design.

    `baseline` names one of the variants; where none has that name, it is a row of its own, the model as it is. `ladder`: every
    variant adds to the one before it. `add-one-in`: each adds to the baseline. `leave-one-out`: the baseline has all of them, each
    row all but one. `factorial`: every combination.
    """

    name: str = ""
    design: Design = "table"
    preset: str | None = None
    baseline: Annotated[str, Field(min_length=1)] = "baseline"
    variants: Annotated[tuple[VariantSettings, ...], Field(min_length=1)]
    published: str | None = None

    @field_validator("published")
    @classmethod
    def _is_known(cls, given: str | None) -> str | None:
        if given is not None and given not in printed.table_names():
            raise StudyError(f"no published table '{given}'{nearest(given, printed.table_names())}")
        return given

    @model_validator(mode="after")
    def _rows_are_printed(self) -> BlockSettings:
        for variant in self.variants:
            if variant.row is not None:
                if self.published is None:
                    raise StudyError(f"'{variant.name}' has a row, but the block names no published table; add published")
                table = printed.published_table(self.published)
                if any(variant.row == row.printed for row in table.rows):
                    # One name for several rows: a training that was scored at several steps.
                    continue
                try:
                    table.row(variant.row)
                except ToolkitError as error:
                    raise StudyError(f"'{variant.name}': {error}") from None
        return self

    @model_validator(mode="after")
    def _fits(self) -> BlockSettings:
        names = [variant.name for variant in self.variants]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise StudyError(f"the variant '{twice}' stands twice; rename one")
        components = [variant for variant in self.variants if variant.name != self.baseline]
        if not components:
            raise StudyError(f"there is nothing to compare with the baseline '{self.baseline}'; add a variant")
        if self.design == "ladder":
            first = next(variant.name for variant in self.variants if not variant.preset or variant.name == self.baseline)
            if self.baseline in names and first != self.baseline:
                raise StudyError(f"a ladder starts from its baseline, but '{first}' stands before '{self.baseline}'; put it after")
        if self.design in ("leave-one-out", "factorial"):
            if len(components) < len(names):
                raise StudyError(
                    f"the baseline '{self.baseline}' of a {self.design} design is a row of its own; take a name that no variant has"
                )
            own = next((variant.name for variant in components if variant.preset), None)
            if own is not None:
                raise StudyError(f"'{own}' has a preset, but the variants of a {self.design} design are put together; use set")
        if self.design == "factorial" and len(components) > MOST_FACTORS:
            raise StudyError(
                f"{len(components)} components make {2 ** len(components)} rows; a factorial takes at most {MOST_FACTORS}"
            )
        return self


class AblationSettings(Frozen):
    """What is compared: one block of variants, written straight away, or several under `blocks`.

    `controls` says at which cost: `raw` as given; `flop-matched` and `param-matched` with the width solved again so that inference
    GFLOPs or parameters equal the baseline's: the `channels`, and the feed-forward's ratio where their grid is too coarse for
    1 %; or the ratio alone with `matched_by: feed_forward.ratio`, which serves small models, whose few widths lie far apart.
    `metric` is what the claims are about; but for `val_loss` it needs `evaluation.fid`.
    """

    seeds: SeedSettings = SeedSettings(min=6, max=6)
    metric: str = "val_loss"
    controls: tuple[Control, ...] = ("raw",)
    matched_by: Literal["channels", "feed_forward.ratio"] = "channels"
    blocks: Annotated[tuple[BlockSettings, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _in_blocks(cls, given: Any) -> Any:
        """One block's own keys, gathered under `blocks`."""
        if not isinstance(given, dict):
            return given
        # What a study that extends another has set to null is as if it were not there.
        given = {key: value for key, value in given.items() if value is not None}
        known = [*BlockSettings.model_fields, *cls.model_fields]
        unknown = next((str(key) for key in given if key not in known), None)
        if unknown is not None:
            raise StudyError(f"unknown key '{unknown}'{nearest(unknown, known)}")
        own = {key: given[key] for key in given if key in BlockSettings.model_fields}
        if not own:
            return given
        if given.get("blocks") is not None:
            raise StudyError(f"{next(iter(own))} stands beside blocks; move it into one of them")
        return {**{key: value for key, value in given.items() if key not in own}, "blocks": [own]}

    @field_validator("metric")
    @classmethod
    def _is_measured(cls, given: str) -> str:
        if given not in SCORES:
            raise StudyError(f"'{given}' is not measured of a trial; known: {', '.join(SCORES)}")
        return given

    @model_validator(mode="after")
    def _fits(self) -> AblationSettings:
        if "raw" not in self.controls:
            raise StudyError("controls leave out raw, which a matched cost is compared with; add it")
        if len(set(self.controls)) < len(self.controls):
            raise StudyError(f"controls name one twice ({', '.join(self.controls)}); remove one")
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise StudyError("two blocks have the same name; every block of several needs one of its own")
        return self
