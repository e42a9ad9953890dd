"""The rows of an ablation: one architecture per variant and control, and the reference that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nas.study.ablation import MATCHED, AblationSettings, BlockSettings, Control, VariantSettings
from space.costs.cost import cost
from space.costs.matching import Match, match_cost, match_width
from space.errors import Location, Mistakes, StudyError, ToolkitError
from space.spec import ModelSpec

Make = Callable[[str | None, Mapping[str, Any]], ModelSpec]
"""Builds the study's model from a preset (None: the study's) and changes by dotted path."""


@dataclass(frozen=True)
class Row:
    """A variant under a control. Rows with equal architectures share their trials."""

    block: str
    variant: str
    control: Control
    spec: ModelSpec
    baseline: str
    """The name of the block's baseline; equal to `variant` for the baseline itself."""
    previous: str | None
    """In a ladder, the variant that this one adds to."""
    components: tuple[str, ...]
    """The names of its components, for a design that combines them."""
    family: str
    published: str | None
    """The published table to show beside the block; `label` is the row's name in it."""
    label: str
    match: Match | None = None
    """The result of matching its cost to the baseline's; None under the control `raw`."""

    @property
    def is_baseline(self) -> bool:
        """Whether the other rows of the block are compared with this one."""
        return self.variant == self.baseline


Family = tuple[str, Control]
"""A block and a control: one table, whose comparisons are corrected together."""


@dataclass(frozen=True)
class Comparison:
    """A row and its reference: the baseline, or the row before it in a ladder."""

    row: Row
    reference: Row

    @property
    def holm_family(self) -> Family:
        """The block and control, whose comparisons are corrected together."""
        return self.row.block, self.row.control


def rows_of(ablation: AblationSettings, make: Make) -> tuple[Row, ...]:
    """All rows, block by block, each baseline first; raises Mistakes with every row that cannot be built or matched."""
    rows: list[Row] = []
    mistakes: list[tuple[Location, str]] = []
    for index, block in enumerate(ablation.blocks):
        try:
            rows += _rows_of_block(block, ablation, make)
        except Mistakes as error:
            mistakes += [(("blocks", index, *at), what) for at, what in error.each]
        except StudyError as error:
            mistakes.append((("blocks", index), str(error)))
    if mistakes:
        raise Mistakes(mistakes)
    return tuple(rows)


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """The comparisons that seeds are added for: every row except the baselines, with the row before in a ladder or the baseline."""
    by_name = {(row.block, row.variant, row.control): row for row in rows}
    return [_comparison(row, row.previous or row.baseline, by_name) for row in rows if not row.is_baseline]


def families(rows: Sequence[Row]) -> dict[Family, list[Comparison]]:
    """The comparisons that are tested and corrected together: all of one table, which is a block under a control.

    These are every row with the baseline, and in a ladder every row with the row before too (the first step is both, and counts
    once). Rows of equal architecture count, although they cannot differ.
    """
    by_name = {(row.block, row.variant, row.control): row for row in rows}
    found: dict[Family, list[Comparison]] = {}
    for row in rows:
        if not row.is_baseline:
            references = dict.fromkeys([row.baseline, row.previous or row.baseline])
            found.setdefault((row.block, row.control), []).extend(_comparison(row, name, by_name) for name in references)
    return found


def _comparison(row: Row, reference: str, by_name: Mapping[tuple[str, str, Control], Row]) -> Comparison:
    # A control matches the others to the baseline, so the baseline exists once, as its `raw` row.
    return Comparison(row, by_name[row.block, reference, "raw" if reference == row.baseline else row.control])


def names_of(rows: Sequence[Row]) -> dict[str, str]:
    """A name for every architecture, by digest: the variant of its first row, with block and control where there are others."""
    blocks = len({row.block for row in rows})
    names: dict[str, str] = {}
    for row in rows:
        name = f"{row.block}: {row.variant}" if blocks > 1 else row.variant
        # A name may hold any text, and lines of a console are lines.
        names.setdefault(row.spec.digest, " ".join((name if row.control == "raw" else f"{name}, {row.control}").split()))
    return names


@dataclass(frozen=True)
class _Draft:
    """A row whose architecture is not built yet."""

    name: str
    changes: dict[str, Any]
    components: tuple[str, ...] = ()
    previous: str | None = None
    of: VariantSettings | None = None
    preset: str | None = None
    """The preset to start from; None: the block's."""


def _rows_of_block(block: BlockSettings, ablation: AblationSettings, make: Make) -> list[Row]:
    drafts = list(_drafts(block))
    names = [draft.name for draft in drafts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise StudyError(f"two rows are called '{twice}'; rename the variant of that name")
    drafts.sort(key=lambda draft: draft.name != block.baseline)
    mistakes: dict[str, tuple[Location, str]] = {}
    """By its reason: rows that hold the same component fail for the same reason, which is told once."""
    built: dict[str, ModelSpec] = {}
    for draft in drafts:
        changes = dict(draft.changes)
        while draft.name not in built:
            try:
                built[draft.name] = make(draft.preset or block.preset, changes)
            except ToolkitError as error:
                what = f"'{draft.name}' cannot be built: {error}"
                mistakes.setdefault(str(error), (_place_of(draft, block, str(error)), what))
                refused = next((path for path in changes if path in str(error)), None)
                if refused is None:
                    break
                # Without the value that is refused, the next one is found.
                del changes[refused]
    if mistakes:
        raise Mistakes(list(mistakes.values()))
    rows: list[Row] = []
    target = cost(built[block.baseline])
    for control in ablation.controls:
        for draft in drafts:
            if control != "raw" and draft.name == block.baseline:
                continue
            metric, match = MATCHED.get(control), None
            if metric:
                try:
                    match = _matched(built[draft.name], getattr(target, metric), metric, ablation.matched_by)
                except ToolkitError as error:
                    what = f"'{draft.name}' cannot be matched to the baseline's {metric}: {error}"
                    mistakes.setdefault(what, (_place_of(draft, block, str(error)), what))
                    continue
            of = draft.of
            row = Row(
                block=block.name,
                variant=draft.name,
                control=control,
                spec=match.spec if match else built[draft.name],
                baseline=block.baseline,
                previous=draft.previous,
                components=draft.components,
                family=(of.family if of and of.family else block.name),
                published=block.published,
                label=(of.row if of and of.row else draft.name),
                match=match,
            )
            rows.append(row)
    if mistakes:
        raise Mistakes(list(mistakes.values()))
    return rows


def _place_of(draft: _Draft, block: BlockSettings, reason: str) -> Location:
    """The keys of the value that a reason speaks of, among those that the row is made of; of its variant where it names none."""
    parts = [index for index, variant in enumerate(block.variants) if variant is draft.of or variant.name in draft.components]
    for index in parts:
        path = next((path for path in block.variants[index].set if path in reason), None)
        if path is not None:
            return "variants", index, "set", path
    own = [index for index in parts if block.variants[index] is draft.of] or parts
    return ("variants", own[0]) if own else ()


def _matched(spec: ModelSpec, target: float, metric: str, by: str) -> Match:
    return match_width(spec, target, metric) if by == "channels" else match_cost(spec, target, by, metric)


def _drafts(block: BlockSettings) -> Iterator[_Draft]:
    """The rows of a design, in the order of the table."""
    baseline = next((variant for variant in block.variants if variant.name == block.baseline), None)
    others = [variant for variant in block.variants if variant is not baseline]
    base = baseline.set if baseline else {}
    first = _Draft(block.baseline, dict(base), of=baseline, preset=baseline.preset if baseline else None)
    if block.design == "ladder":
        yield from _ladder(block, first)
    elif block.design in ("table", "add-one-in"):
        yield first
        for variant in others:
            if block.design == "table" or variant.preset:
                # Such a variant is complete; the others are changes to the baseline.
                yield _Draft(variant.name, dict(variant.set), of=variant, preset=variant.preset)
            else:
                yield _Draft(variant.name, {**base, **variant.set}, (variant.name,), of=variant, preset=first.preset)
    elif block.design == "leave-one-out":
        names = tuple(variant.name for variant in others)
        yield _Draft(block.baseline, _together(others), names)
        for left in others:
            kept = [variant for variant in others if variant is not left]
            yield _Draft(f"without {left.name}", _together(kept), tuple(variant.name for variant in kept), of=left)
    else:
        for count in range(len(others) + 1):
            for chosen in combinations(others, count):
                names = tuple(variant.name for variant in chosen)
                yield _Draft(" + ".join(names) or block.baseline, _together(chosen), names, of=chosen[0] if count == 1 else None)


def _ladder(block: BlockSettings, first: _Draft) -> Iterator[_Draft]:
    """The baseline, then variants that each add to the one before; a variant with its own preset is not part of that chain."""
    if all(variant.name != block.baseline for variant in block.variants):
        yield first
    changes, previous = dict(first.changes), block.baseline
    components: tuple[str, ...] = ()
    for variant in block.variants:
        if variant.name == block.baseline:
            yield first
        elif variant.preset:
            yield _Draft(variant.name, dict(variant.set), of=variant, preset=variant.preset)
        else:
            changes, components = {**changes, **variant.set}, (*components, variant.name)
            yield _Draft(variant.name, dict(changes), components, previous, variant, first.preset)
            previous = variant.name


def _together(variants: Sequence[VariantSettings]) -> dict[str, Any]:
    """The combined changes of several components; raises StudyError when two of them set the same path."""
    changes: dict[str, Any] = {}
    for variant in variants:
        clash = next((path for path in variant.set if path in changes), None)
        if clash is not None:
            raise StudyError(f"'{variant.name}' and another component both set {clash}, so they cannot be put together")
        changes |= variant.set
    return changes
