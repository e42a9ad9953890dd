"""Rungs: which architectures go on, compared at equal training compute (asynchronous successive halving, Li et al., MLSys 2020)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.search.pareto import by_front
from nas.study.settings import BudgetSettings

Values = tuple[float, ...]
"""One finite value an objective, all to be minimised."""


@dataclass
class Variant:
    """One architecture on its way up: its trials (replicates), and how many rungs they may report at."""

    number: int
    allowed: int
    reported: dict[int, int]
    """By trial, at how many rungs it has reported; trials that failed are gone."""
    values: dict[int, list[Values]] = field(default_factory=dict)
    means: list[Values] = field(default_factory=list)
    """The mean over its trials at every rung that all of them have reached."""
    over: bool = False

    @property
    def waits(self) -> bool:
        """Whether every trial stands at the last rung allowed."""
        return not self.over and bool(self.reported) and len(self.means) == self.allowed


@dataclass(frozen=True)
class Decision:
    """Trials that may now train on though they had to stop, and trials that are stopped for good."""

    released: tuple[int, ...] = ()
    stopped: tuple[int, ...] = ()

    def __add__(self, other: Decision) -> Decision:
        return Decision(self.released + other.released, self.stopped + other.stopped)


class SuccessiveHalving:
    """What every architecture reached at every rung, and the decisions that follow; all of it can be rebuilt from the ledger.

    The trials of a variant report one rung after the other and are judged together, by their means, from the variant's first
    judged rung on: `grace_rungs` for the first bracket, one later for each bracket after it. What failed is compared with no
    longer.

    Mode `stop` judges a variant as soon as it stands at a rung, against those of its bracket that stood there before it. With one
    objective it goes on when it is no worse than their best 1/reduction, as in Ray's ASHAScheduler; with two, all are ordered by
    front and crowding, and it goes on when at most 1/reduction of the others come before it.

    Mode `promote` lets it wait. A waiting variant is promoted when it is among the best ⌊n/reduction⌋ of the n that stand at the
    rung and fewer than that were promoted from there (delayed promotion, Hyper-Tune, Li et al., VLDB 2022). Once nothing more can
    come to a rung, its best max(1, ⌊n/reduction⌋) are promoted whatever happened before and the rest is stopped. So the final best
    of a rung go on in any order of arrival, and at most twice as many go on altogether.
    """

    def __init__(self, budget: BudgetSettings) -> None:
        self.budget, self.count, self.reduction_factor = budget, budget.rungs, budget.reduction_factor
        self.variants: dict[int, Variant] = {}
        self._of: dict[int, Variant] = {}
        self._standing: list[list[dict[int, Values]]] = [[{} for _ in range(self.count)] for _ in range(budget.brackets)]
        self._coming = np.zeros((budget.brackets, self.count), dtype=int)
        """How many variants are on their way to a rung."""
        self._orders: list[list[list[int] | None]] = [[[] for _ in range(self.count)] for _ in range(budget.brackets)]
        """Who stands at a rung, best first; None where that is to be found anew."""

    def variant_of(self, trial: int) -> Variant:
        """The variant that a trial is a replicate of."""
        return self._of[trial]

    def add(self, number: int, trials: Sequence[int]) -> None:
        """A new variant: its trials may train up to its first judged rung."""
        judged = self._first_judged(number)
        variant = Variant(number, judged + 1, dict.fromkeys(trials, 0), {trial: [] for trial in trials})
        self.variants[number] = variant
        self._of |= dict.fromkeys(trials, variant)
        self._coming[self._bracket(number), : variant.allowed] += 1

    def may_train(self, trial: int) -> bool:
        """Whether a trial has a rung to go to."""
        variant = self._of[trial]
        return not variant.over and trial in variant.reported and variant.reported[trial] < variant.allowed

    def report(self, trial: int, rung: int, values: Values) -> Decision:
        """Take in a trial's values at its next rung. Raises ValueError when it reports there twice or skips one."""
        variant = self._of[trial]
        if rung != variant.reported[trial]:
            raise ValueError(f"trial {trial} reported at rung {rung}, but its next is {variant.reported[trial]}")
        variant.reported[trial] += 1
        variant.values[trial].append(values)
        return self._arrive(variant)

    def remove(self, trial: int) -> Decision:
        """A trial failed; its variant goes by what is left of it, and is compared with no longer when nothing is."""
        variant = self._of[trial]
        if variant.reported.pop(trial, None) is None or variant.over:
            return Decision()
        if variant.reported:
            return self._arrive(variant)
        self._close(variant)
        bracket = self._bracket(variant.number)
        for rung, values in enumerate(variant.means):
            del self._standing[bracket][rung][variant.number]
            if len(values) > 1:
                self._orders[bracket][rung] = None
            else:
                self._order(bracket, rung).remove(variant.number)
        return Decision()

    def end(self, trial: int) -> None:
        """A trial was stopped for good; its variant with it."""
        if not self._of[trial].over:
            self._close(self._of[trial])

    def promotion(self, exhausted: bool) -> Variant | None:
        """The variant to promote next, of the highest rung that has one; `exhausted` says that no new variant can begin."""
        if self.budget.mode != "promote":
            return None
        best: tuple[int, Variant] | None = None
        for bracket in range(self.budget.brackets):
            for rung, _, found in self._candidates(bracket, exhausted):
                if found is not None and (best is None or rung > best[0]):
                    best = rung, found
        return best[1] if best else None

    def promote(self, number: int) -> Decision:
        """Let a waiting variant train to its next rung."""
        variant = self.variants[number]
        if not variant.waits:
            raise ValueError(f"variant {number} does not wait at a rung")
        return self._let_on(variant)

    def stop_unpromotable(self, exhausted: bool) -> Decision:
        """Stop what waits at a rung that nothing more can come to, once its best have all reached the next or failed on the way."""
        stopped: list[int] = []
        if self.budget.mode == "promote" and exhausted:
            for bracket in range(self.budget.brackets):
                for rung, closed, candidate in self._candidates(bracket, exhausted):
                    if closed and candidate is None and not self._coming[bracket, rung + 1]:
                        order = self._order(bracket, rung)
                        for number in order[self._best_count(order) :]:
                            variant = self.variants[number]
                            if variant.waits and variant.allowed == rung + 1:
                                stopped += self._stop(variant).stopped
        return Decision(stopped=tuple(stopped))

    def extend(self, budget: BudgetSettings) -> Decision:
        """Go on to a larger budget whose first rungs are the present ones: what stood at the last rung is judged there now."""
        last, self.budget, self.count = self.count - 1, budget, budget.rungs
        added = budget.rungs - 1 - last
        for standing, orders in zip(self._standing, self._orders, strict=True):
            standing += [{} for _ in range(added)]
            orders += [[] for _ in range(added)]
        self._coming = np.pad(self._coming, ((0, 0), (0, added)))
        verdict = Decision()
        for bracket, rungs in enumerate(self._standing):
            order = self._order(bracket, last)
            for number in rungs[last]:
                variant = self.variants[number]
                variant.over = False
                if budget.mode == "stop":
                    verdict += self._let_on(variant) if number in order[: self._best_count(order)] else self._stop(variant)
        if budget.mode == "none":
            for variant in self.variants.values():
                while not variant.over and variant.allowed < self.count:
                    verdict += self._let_on(variant)
        return verdict

    def _bracket(self, number: int) -> int:
        return number % self.budget.brackets

    def _first_judged(self, number: int) -> int:
        last = self.count - 1
        return last if self.budget.mode == "none" else min(self.budget.grace_rungs + self._bracket(number), last)

    def _arrive(self, variant: Variant) -> Decision:
        """Note the rungs that all trials of a variant have reached, and judge it when it stands at the last one allowed."""
        reached = min(variant.reported.values())
        for rung in range(len(variant.means), reached):
            values = [variant.values[trial][rung] for trial in variant.reported]
            variant.means.append(tuple(float(mean) for mean in np.mean(values, axis=0)))
            self._coming[self._bracket(variant.number), rung] -= 1
        if not variant.waits:
            self._stand(variant)
            return Decision()
        others = list(self._standing[self._bracket(variant.number)][variant.allowed - 1].values())
        self._stand(variant)
        if variant.allowed == self.count:
            self._close(variant)
            return Decision()
        if self.budget.mode == "promote":
            return Decision()
        return self._let_on(variant) if not others or self._among_best(variant.means[-1], others) else self._stop(variant)

    def _stand(self, variant: Variant) -> None:
        bracket = self._bracket(variant.number)
        for rung, values in enumerate(variant.means):
            standing = self._standing[bracket][rung]
            if variant.number in standing:
                continue
            standing[variant.number] = values
            if len(values) > 1:
                self._orders[bracket][rung] = None
            else:
                insort(self._order(bracket, rung), variant.number, key=lambda number: (standing[number], number))

    def _among_best(self, values: Values, others: list[Values]) -> bool:
        if len(values) == 1:
            return values[0] <= float(np.percentile([other[0] for other in others], 100 / self.reduction_factor))
        order = by_front(np.array([*others, values]))
        return order.index(len(others)) <= len(others) / self.reduction_factor

    def _let_on(self, variant: Variant) -> Decision:
        self._coming[self._bracket(variant.number), variant.allowed] += 1
        variant.allowed += 1
        return Decision(released=tuple(variant.reported))

    def _stop(self, variant: Variant) -> Decision:
        self._close(variant)
        return Decision(stopped=tuple(variant.reported))

    def _close(self, variant: Variant) -> None:
        self._coming[self._bracket(variant.number), len(variant.means) : variant.allowed] -= 1
        variant.over = True

    def _candidates(self, bracket: int, exhausted: bool) -> list[tuple[int, bool, Variant | None]]:
        """For every rung judged but the last: whether nothing more can come to it, and the variant to promote from it."""
        found: list[tuple[int, bool, Variant | None]] = []
        closed = exhausted
        first = self._first_judged(bracket)
        for rung in range(first, self.count - 1):
            closed = closed and not self._coming[bracket, : rung + 1].any()
            order = self._order(bracket, rung)
            best = order[: self._best_count(order) if closed else len(order) // self.reduction_factor]
            candidate = next((v for v in map(self.variants.__getitem__, best) if v.waits and v.allowed == rung + 1), None)
            if not closed and candidate and sum(self.variants[number].allowed > rung + 1 for number in order) >= len(best):
                candidate = None
            found.append((rung, closed, candidate))
            closed = closed and candidate is None
        return found

    def _best_count(self, order: list[int]) -> int:
        return max(1, len(order) // self.reduction_factor)

    def _order(self, bracket: int, rung: int) -> list[int]:
        """The variants that stand at a rung, or went on from it, best first; equal ones by number."""
        order = self._orders[bracket][rung]
        if order is None:
            standing = sorted(self._standing[bracket][rung].items())
            places = by_front(np.array([values for _, values in standing])) if standing else []
            order = [standing[place][0] for place in places]
            self._orders[bracket][rung] = order
        return order
