"""Pruning rules: what happens to an architecture at a rung where it is judged. A new rule is a class here and a line in `RULES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas.search.variants import Decision, Values, Variant
from nas.stats.pareto import by_front
from nas.study.choices import Mode
from space.choices.table import covering

if TYPE_CHECKING:
    from nas.search.halving import SuccessiveHalving


class PruningRule(Protocol):
    """Decides through `SuccessiveHalving.let_on` and `.stop`; a variant that it does neither to waits."""

    def judge(self, halving: SuccessiveHalving, variant: Variant, others: Sequence[Values]) -> Decision:
        """A variant has arrived at a rung below the last; `others` are the values of its bracket that were there before it."""

    def promotion(self, halving: SuccessiveHalving, exhausted: bool) -> Variant | None:
        """The waiting variant to promote next; `exhausted` says that no new variant can begin."""

    def stop_unpromotable(self, halving: SuccessiveHalving, exhausted: bool) -> Decision:
        """Stop the waiting variants that cannot be promoted any more."""

    def extend(self, halving: SuccessiveHalving, complete: Sequence[Variant], best: set[int]) -> Decision:
        """The budget grows: decide on the variants that were complete; `best` are the numbers of the best 1/reduction_factor."""


class StopRule:
    """Judge on arrival, as ASHA does (Li et al., MLSys 2020).

    With one objective a variant trains on when it is no worse than the best 1/reduction_factor of those that were at the rung
    before it, as in Ray's ASHAScheduler. With two, all are ordered by front and crowding, and it trains on when at most
    1/reduction_factor of the others come before it.
    """

    def judge(self, halving: SuccessiveHalving, variant: Variant, others: Sequence[Values]) -> Decision:
        """Let it on, or stop it."""
        return halving.let_on(variant) if not others or self._among_best(halving, variant, others) else halving.stop(variant)

    def _among_best(self, halving: SuccessiveHalving, variant: Variant, others: Sequence[Values]) -> bool:
        values, factor = variant.means[-1], halving.budget.reduction_factor
        if len(values) == 1:
            return values[0] <= float(np.percentile([other[0] for other in others], 100 / factor))
        order = by_front(np.array([*others, values]))
        return order.index(len(others)) <= len(others) / factor

    def promotion(self, halving: SuccessiveHalving, exhausted: bool) -> Variant | None:
        """None: nothing waits."""
        return None

    def stop_unpromotable(self, halving: SuccessiveHalving, exhausted: bool) -> Decision:
        """None: nothing waits."""
        return Decision()

    def extend(self, halving: SuccessiveHalving, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Judge what was complete where it is."""
        decision = Decision()
        for variant in complete:
            decision += halving.let_on(variant) if variant.number in best else halving.stop(variant)
        return decision


class PromoteRule:
    """Let variants wait, and promote the best (delayed promotion, Hyper-Tune, Li et al., VLDB 2022).

    A waiting variant is promoted when it is among the best ⌊n/reduction_factor⌋ of the n at its rung and fewer than that were
    promoted from there. Once nothing more can come to a rung, its best max(1, ⌊n/reduction_factor⌋) are promoted whatever happened
    before, and the rest is stopped. So the final best of a rung are promoted in any order of arrival, and at most twice as many.
    """

    def judge(self, halving: SuccessiveHalving, variant: Variant, others: Sequence[Values]) -> Decision:
        """It waits."""
        return Decision()

    def promotion(self, halving: SuccessiveHalving, exhausted: bool) -> Variant | None:
        """The candidate of the highest rung that has one."""
        best: tuple[int, Variant] | None = None
        for bracket in range(halving.budget.brackets):
            for rung, _, candidate in self._candidates(halving, bracket, exhausted):
                if candidate is not None and (best is None or rung > best[0]):
                    best = rung, candidate
        return best[1] if best else None

    def stop_unpromotable(self, halving: SuccessiveHalving, exhausted: bool) -> Decision:
        """Where nothing more can come to a rung and its best have all reached the next, or failed on the way, stop the rest."""
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

    def extend(self, halving: SuccessiveHalving, complete: Sequence[Variant], best: set[int]) -> Decision:
        """They wait at what was the last rung."""
        return Decision()

    def _candidates(self, halving: SuccessiveHalving, bracket: int, exhausted: bool) -> list[tuple[int, bool, Variant | None]]:
        """For every judged rung but the last: whether nothing more can come to it, and the variant to promote from it."""
        budget = halving.budget
        candidates: list[tuple[int, bool, Variant | None]] = []
        closed = exhausted
        for rung in range(budget.first_judged(bracket), budget.rungs - 1):
            closed = closed and not halving.coming[bracket, : rung + 1].any()
            order = halving.order(bracket, rung)
            best = order[: halving.best_count(order) if closed else len(order) // budget.reduction_factor]
            variants = map(halving.variants.__getitem__, best)
            candidate = next((variant for variant in variants if variant.waits and variant.allowed == rung + 1), None)
            if not closed and candidate and sum(halving.variants[number].allowed > rung + 1 for number in order) >= len(best):
                candidate = None
            candidates.append((rung, closed, candidate))
            closed = closed and candidate is None
        return candidates


class NoPruning:
    """Everything trains to the last rung."""

    def judge(self, halving: SuccessiveHalving, variant: Variant, others: Sequence[Values]) -> Decision:
        """Let it on."""
        return halving.let_on(variant)

    def promotion(self, halving: SuccessiveHalving, exhausted: bool) -> Variant | None:
        """None: nothing waits."""
        return None

    def stop_unpromotable(self, halving: SuccessiveHalving, exhausted: bool) -> Decision:
        """None: nothing waits."""
        return Decision()

    def extend(self, halving: SuccessiveHalving, complete: Sequence[Variant], best: set[int]) -> Decision:
        """Let everything on to the new last rung."""
        decision = Decision()
        for variant in halving.variants.values():
            while not variant.over and variant.allowed < halving.budget.rungs:
                decision += halving.let_on(variant)
        return decision


RULES: Mapping[str, PruningRule] = covering(Mode, {"stop": StopRule(), "promote": PromoteRule(), "none": NoPruning()})
"""By `budget.mode`."""
