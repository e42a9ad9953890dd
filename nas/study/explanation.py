"""The ablations that explain a winner: its differences from the baseline taken back and added one at a time, at equal GFLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nas.study.derived import fresh_ablation
from nas.study.followups import FRESH_SEEDS
from nas.study.study import Study
from space.costs.cost import cost
from space.costs.matching import TOLERANCE, match_cost, match_width
from space.errors import SpecError, StudyError
from space.spec import ModelSpec

TAKEN_BACK, ADDED, SIMPLIFIED = "taken back", "added", "simplified"
"""The tables: the winner without each difference, the baseline with each, and the simplified winner."""

EXPLAIN_SEEDS, SIMPLIFY_SEEDS = FRESH_SEEDS + 1000, FRESH_SEEDS + 2000
"""The first seeds of an explanation and of its simplified winner, counted from the study's."""

WIDTH = "channels"
"""The width, which follows from everything else at equal GFLOPs."""


@dataclass(frozen=True)
class Explained:
    """A winner, the baseline at its GFLOPs, and what separates them."""

    name: str
    """Of the winner, such as `trial 7`."""
    winner: ModelSpec
    baseline_name: str
    baseline: ModelSpec
    differences: Mapping[str, tuple[Any, Any]]
    """By path: the baseline's value and the winner's. Without the width, unless nothing else differs."""
    left_out: tuple[str, ...] = ()
    """Differences that are not taken back, with what the search's own trials say of them."""

    @cached_property
    def taken_back(self) -> dict[str, ModelSpec]:
        """The winner, and the winner without each difference, by row."""
        rows = {path: self._changed(self.winner, {path: self.differences[path][0]}) for path in self.differences}
        return {self.name: self.winner} | {f"without {path}": spec for path, spec in rows.items() if spec is not None}

    @cached_property
    def added(self) -> dict[str, ModelSpec]:
        """The baseline, the baseline with each difference, and the winner, by row."""
        rows = {path: self._changed(self.baseline, {path: self.differences[path][1]}) for path in self.differences}
        named = {f"with {path}": spec for path, spec in rows.items() if spec is not None}
        return {self.baseline_name: self.baseline, **named, self.name: self.winner}

    @property
    def mismatch(self) -> float:
        """The largest relative difference of a row's GFLOPs from the winner's: no width or ratio comes nearer."""
        target = cost(self.winner).gflops
        return max(abs(cost(spec).gflops / target - 1) for spec in (*self.taken_back.values(), *self.added.values()))

    def without(self, paths: Sequence[str]) -> ModelSpec | None:
        """The winner with several differences taken back; None where that cannot be built."""
        return self._changed(self.winner, {path: self.differences[path][0] for path in paths})

    def _changed(self, spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec | None:
        try:
            return at_gflops(spec.replace(changes), cost(self.winner).gflops, tuple(changes))
        except SpecError:
            return None


def at_gflops(spec: ModelSpec, target: float, kept: Sequence[str] = ()) -> ModelSpec:
    """The spec at GFLOPs within 1 % of a target, or as near as it comes; its width changes, or else the feed-forward's ratio.

    Args:
        spec: The spec.
        target: The GFLOPs.
        kept: Paths that must not change to get there.

    Raises:
        SpecError: Where no width can be built.
    """
    if abs(cost(spec).gflops / target - 1) <= TOLERANCE:
        return spec
    if WIDTH in kept:
        return match_cost(spec, target, "feed_forward.ratio").spec
    if "feed_forward.ratio" in kept:
        return match_cost(spec, target).spec
    return match_width(spec, target).spec


def explanation_study(study: Study, explained: Explained) -> Study:
    """The ablation with the tables `taken back` and `added`.

    Raises:
        StudyError: If nothing separates the winner from the baseline, or the ablation would be refused.
    """
    if not explained.differences:
        raise StudyError(f"{explained.name} is {explained.baseline_name} itself, so there is nothing to explain")
    blocks = {name: rows for name, rows in {TAKEN_BACK: explained.taken_back, ADDED: explained.added}.items() if len(rows) > 1}
    return _followup(study, "explain", f"What makes {explained.name} differ from {explained.baseline_name}?", blocks, EXPLAIN_SEEDS)


def simplified_study(study: Study, explained: Explained, simplified: ModelSpec) -> Study:
    """The ablation that compares the simplified winner with the baseline and with the winner, on seeds of its own."""
    blocks = {
        f"{SIMPLIFIED}, against {explained.baseline_name}": {
            explained.baseline_name: explained.baseline,
            SIMPLIFIED: simplified,
            explained.name: explained.winner,
        },
        f"{SIMPLIFIED}, against {explained.name}": {explained.name: explained.winner, SIMPLIFIED: simplified},
    }
    question = f"Is {explained.name} as good without its passengers?"
    return _followup(study, "simplify", question, blocks, SIMPLIFY_SEEDS, study.confirm.seeds.model_dump() if study.confirm else 6)


def _followup(
    study: Study, what: str, question: str, blocks: Mapping[str, Mapping[str, ModelSpec]], seed: int, seeds: Any = None
) -> Study:
    explain = study.explain
    assert explain is not None, "asked of a study without explain"
    return fresh_ablation(study, what, question, blocks, seed, seeds or explain.seeds.model_dump())
