"""The settings of an ablation: its variants, their baseline, the design that makes rows of them, and the paired seeds."""

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
"""Most components of a factorial design: k components make 2^k rows."""


class SeedSettings(Frozen):
    """The number of seeds per variant; a bare number N is a fixed plan, `min` = `max` = N.

    With `max` above `min`, seeds are sequential: after the first `min`, one seed at a time is added, and only for variants whose
    difference is still open. A difference is open until it is claimed or lies within ±margin (by tests valid under peeking, see
    `nas.stats.sequential_variances`) or, without a margin, more seeds up to `max` would most likely bring no claim.
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
        """Whether seeds may be added during the run."""
        return self.max > self.min


class VariantSettings(Frozen):
    """One row of a block, or one component that the design combines with others.

    Attributes:
        name: The row's name in tables.
        preset: The preset to start from; the block's by default. In a ladder, a row with a preset is no step of the ladder: it is
            compared with the baseline only.
        set: Dotted paths of the spec and their values, where they differ from the preset.
        row: The row's name in the published table; `name` by default.
        family: The curve that the row is a point of; the block's name by default.
    """

    name: Annotated[str, Field(min_length=1)]
    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    row: str | None = None
    family: str | None = None


class BlockSettings(Frozen):
    """Variants that are compared with one baseline, as they are (`table`) or combined by a design.

    `baseline` names one of the variants. If no variant has that name, the baseline is an extra row: the study's model, unchanged.

    The other designs make these rows:
        `ladder`: every variant adds to the one before it.
        `add-one-in`: every variant adds to the baseline.
        `leave-one-out`: the baseline has all components; every other row lacks one.
        `factorial`: every combination of components.
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
                    # Several rows share this name: one training, scored at several steps.
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
            with_preset = next((variant.name for variant in components if variant.preset), None)
            if with_preset is not None:
                raise StudyError(
                    f"'{with_preset}' has a preset, but the variants of a {self.design} design are put together; use set"
                )
        if self.design == "factorial" and len(components) > MOST_FACTORS:
            raise StudyError(
                f"{len(components)} components make {2 ** len(components)} rows; a factorial takes at most {MOST_FACTORS}"
            )
        return self


class AblationSettings(Frozen):
    """The section `ablation`: one block of variants with its keys at the top, or several blocks under `blocks`.

    Attributes:
        seeds: The paired seeds of every variant.
        metric: The metric that the claims are about. Every metric but `val_loss` needs `evaluation.fid`.
        controls: The costs at which variants are compared. `raw`: as given. `flop-matched` and `param-matched`: the width is solved
            again so that inference GFLOPs or parameters equal the baseline's.
        matched_by: The field that a control solves. `channels`: the width, then the feed-forward's ratio where the grid of widths
            misses the target by more than 1 %. `feed_forward.ratio`: only the ratio, for small models with few widths.
        blocks: The blocks.
    """

    seeds: SeedSettings = SeedSettings(min=6, max=6)
    metric: str = "val_loss"
    controls: tuple[Control, ...] = ("raw",)
    matched_by: Literal["channels", "feed_forward.ratio"] = "channels"
    blocks: Annotated[tuple[BlockSettings, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _in_blocks(cls, given: Any) -> Any:
        """Move the keys of a single block under `blocks`."""
        if not isinstance(given, dict):
            return given
        # A study that extends another sets a key to null to take it back.
        given = {key: value for key, value in given.items() if value is not None}
        known = [*BlockSettings.model_fields, *cls.model_fields]
        unknown = next((str(key) for key in given if key not in known), None)
        if unknown is not None:
            raise StudyError(f"unknown key '{unknown}'{nearest(unknown, known)}")
        block = {key: given[key] for key in given if key in BlockSettings.model_fields}
        if not block:
            return given
        if given.get("blocks") is not None:
            raise StudyError(f"{next(iter(block))} stands beside blocks; move it into one of them")
        return {**{key: value for key, value in given.items() if key not in block}, "blocks": [block]}

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
