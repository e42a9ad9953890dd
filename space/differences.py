"""The differences between two specs: the values that make one architecture of the other, by dotted path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from space.errors import SpecError
from space.paths import PER_STAGE_PATHS, plain_value
from space.spec import ModelSpec, spec_paths
from space.stage import at_stage, stage_place

_AT_TIMES_WITHOUT_EFFECT = (
    "attention.tokens",
    "attention.factor",
    "attention.downsampler",
    "attention.kernel",
    "feed_forward.ratio",
    "feed_forward.reparam",
    "feed_forward.branches",
    "skip",
)
"""Paths at which two specs of one architecture may differ; a difference at any other path is one of the architectures."""


class Difference(NamedTuple):
    """A value in which two specs differ: a dotted path as `ModelSpec.replace` takes it, and the values of either spec."""

    path: str
    """Such as `attention.tokens`, or `depths.encoder-1` for a stage."""
    old: Any
    new: Any


def diff(a: ModelSpec, b: ModelSpec) -> list[Difference]:
    """What separates two specs, in the order of a spec's fields and of its stages.

    A value per stage is named by its stage (`depths.encoder-1`), unless all stages share it or the specs have other numbers of
    stages. Values that change nothing of the architecture are left out, such as `feed_forward.reparam` where b's feed-forward is an
    MLP. So `a.replace({one.path: one.new for one in diff(a, b)})` has b's digest, and without one of the differences it is b with
    that one taken back. What such a part makes may not be buildable, as heads without the channels that they divide; `replace` then
    says why.

    >>> from space import preset
    >>> [tuple(one) for one in diff(preset("u-dit-s"), preset("u-dit-s").replace({"depths.2": 4, "heads": 2}))]
    [('depths.bottleneck', 8, 4), ('heads', 4, 2)]
    """
    if a.digest == b.digest:
        return []
    kept, before = list(_raw(a, b)), 0
    # Without one value another may be without effect.
    while len(kept) != before:
        before = len(kept)
        # From the last on: what a choice means comes after it, such as `attention.factor` after `attention.tokens`.
        for one in reversed([one for one in kept if one.path.startswith(_AT_TIMES_WITHOUT_EFFECT)]):
            others = [other for other in kept if other is not one]
            if _digest(a, others) == b.digest:
                kept = others
    return kept


def _raw(a: ModelSpec, b: ModelSpec) -> Iterator[Difference]:
    """All values that differ, whether or not they have an effect."""
    stages, other_stages = len(a.depths), len(b.depths)
    for path in spec_paths():
        old, new = plain_value(path, a.value_at(path), stages), plain_value(path, b.value_at(path), other_stages)
        if stages != other_stages and isinstance(a.value_at(path), tuple):
            # As long as the other spec has stages, or not at all, it has to be set even where the value is the same.
            old = list(a.value_at(path))
        if old == new:
            continue
        if path not in PER_STAGE_PATHS or stages != other_stages or not (isinstance(old, list) or isinstance(new, list)):
            yield Difference(path, old, new)
            continue
        for index in range(stages):
            before, after = at_stage(a.value_at(path), index), at_stage(b.value_at(path), index)
            if before != after:
                yield Difference(f"{path}.{stage_place(index, stages).name}", before, after)


def _digest(spec: ModelSpec, changes: Sequence[Difference]) -> str | None:
    try:
        return spec.replace({one.path: one.new for one in changes}).digest
    except SpecError:
        return None
