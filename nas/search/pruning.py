"""Pruning rules: each decides whether an architecture stops, waits or trains on at a judged rung.

A new rule is a class here and a line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from nas.search.variants import Decision, Standings, Values, Variant
from nas.stats.pareto import by_front
from nas.study.choices import Mode
from space.choices.table import covering


class PruningRule(Protocol):
    """Decides through `SuccessiveHalving.let_on` and `.stop`. A variant waits when neither is called.

    `nas.study.choices.WAITS` says of which rules that may be so.
    """

    def judge(self, halving: Standings, variant: Variant, others: Sequence[Values]) -> Decision:
        """Judge a variant that arrives below the last rung; `others` are its bracket's values that were at the rung before."""

    def promotion(self, halving: Standings, exhausted: bool) -> Variant | None:
        """The waiting variant to promote next; `exhausted` says that no new variant can begin."""

    def stop_unpromotable(self, halving: Standings, exhausted: bool) -> Decision:
        """Stop the waiting variants that cannot be promoted any more."""

    def extend(self, halving: Standings, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Judge the variants that were complete before the budget grew; `best` are the numbers of the best 1/kept_one_in."""


class _NothingWaits:
    """What the rules have in common under which no variant waits."""

    def promotion(self, halving: Standings, exhausted: bool) -> Variant | None:
        """None: nothing waits."""
        return None

    def stop_unpromotable(self, halving: Standings, exhausted: bool) -> Decision:
        """None: nothing waits."""
        return Decision()


class StopRule(_NothingWaits):
    """Judge on arrival, as ASHA does (Li et al., MLSys 2020).

    With one objective, a variant trains on when it is no worse than the 1/kept_one_in quantile of the variants that were at
    the rung before it, as in Ray's ASHAScheduler. With more, all are ordered by Pareto front and crowding distance, and a variant
    trains on when at most 1/kept_one_in of the others rank before it.
    """

    def judge(self, halving: Standings, variant: Variant, others: Sequence[Values]) -> Decision:
        """Let the variant train on, or stop it."""
        return halving.let_on(variant) if not others or self._among_best(halving, variant, others) else halving.stop(variant)

    def _among_best(self, halving: Standings, variant: Variant, others: Sequence[Values]) -> bool:
        values, factor = variant.means[-1], halving.budget.kept_one_in
        if len(values) == 1:
            return values[0] <= float(np.percentile([other[0] for other in others], 100 / factor))
        order = by_front(np.array([*others, values]))
        return order.index(len(others)) <= len(others) / factor

    def extend(self, halving: Standings, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Judge the complete variants at their rung."""
        decision = Decision()
        for variant in complete:
            decision += halving.let_on(variant) if variant.number in best else halving.stop(variant)
        return decision


class PromoteRule:
    """Let variants wait, and promote the best (delayed promotion, Hyper-Tune, Li et al., VLDB 2022).

    A waiting variant is promoted when it is among the best k = ⌊n/kept_one_in⌋ of the n at its rung, and fewer than k were
    promoted from there. A rung is closed when no more variants can come to it. Then its best max(1, k) are promoted whatever was
    promoted before, and the rest is stopped. So the final best of a rung are promoted in any order of arrival, and at most twice
    as many variants in all.
    """

    def judge(self, halving: Standings, variant: Variant, others: Sequence[Values]) -> Decision:
        """Let the variant wait."""
        return Decision()

    def promotion(self, halving: Standings, exhausted: bool) -> Variant | None:
        """The candidate of the highest rung that has one."""
        best: tuple[int, Variant] | None = None
        for bracket in range(halving.budget.brackets):
            for rung, _, candidate in self._candidates(halving, bracket, exhausted):
                if candidate is not None and (best is None or rung > best[0]):
                    best = rung, candidate
        return best[1] if best else None

    def stop_unpromotable(self, halving: Standings, exhausted: bool) -> Decision:
        """Stop the rest at every closed rung whose best have all reached the next rung or failed on the way."""
        decision = Decision()
        for bracket in range(halving.budget.brackets) if exhausted else ():
            for rung, closed, candidate in self._candidates(halving, bracket, exhausted):
                if closed and candidate is None and not halving.coming[bracket, rung + 1]:
                    order = halving.order(bracket, rung)
                    for number in order[halving.best_count(order) :]:
                        variant = halving.variants[number]
                        if variant.waits and variant.allowed == rung + 1:
                            decision += halving.stop(variant)
        return Decision(stopped=decision.stopped)

    def extend(self, halving: Standings, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Let the complete variants wait at the rung that was the last."""
        return Decision()

    def _candidates(self, halving: Standings, bracket: int, exhausted: bool) -> list[tuple[int, bool, Variant | None]]:
        """Per judged rung but the last: the rung, whether it is closed, and the variant to promote from it, if any."""
        budget = halving.budget
        candidates: list[tuple[int, bool, Variant | None]] = []
        closed = exhausted
        for rung in range(budget.first_judged(bracket), budget.rungs - 1):
            closed = closed and not halving.coming[bracket, : rung + 1].any()
            order = halving.order(bracket, rung)
            best = order[: halving.best_count(order) if closed else len(order) // budget.kept_one_in]
            variants = map(halving.variants.__getitem__, best)
            candidate = next((variant for variant in variants if variant.waits and variant.allowed == rung + 1), None)
            if not closed and candidate and sum(halving.variants[number].allowed > rung + 1 for number in order) >= len(best):
                candidate = None
            candidates.append((rung, closed, candidate))
            closed = closed and candidate is None
        return candidates


class NoPruning(_NothingWaits):
    """Every variant trains to the last rung."""

    def judge(self, halving: Standings, variant: Variant, others: Sequence[Values]) -> Decision:
        """Let the variant train on."""
        return halving.let_on(variant)

    def extend(self, halving: Standings, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Let every variant train to the new last rung."""
        decision = Decision()
        for variant in halving.variants.values():
            while not variant.over and variant.allowed < halving.budget.rungs:
                decision += halving.let_on(variant)
        return decision


RULES: Mapping[str, PruningRule] = covering(Mode, {"stop": StopRule(), "promote": PromoteRule(), "none": NoPruning()})
"""By `budget.mode`."""
