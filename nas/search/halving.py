"""Successive halving: which architectures train on, compared at equal training compute (asynchronous; Li et al., MLSys 2020)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np

from nas.search.pruning import RULES
from nas.search.variants import Decision, Values, Variant
from nas.stats.pareto import by_front
from nas.study.settings import BudgetSettings


class SuccessiveHalving:
    """What every architecture reached at every rung, and the decisions that follow; all of it can be rebuilt from the ledger.

    The trials of a variant report at one rung after the other and are judged together, by their means, from the first judged rung
    of the variant's bracket on. Failed trials are no longer compared. How a variant is judged is its budget's pruning rule
    (`nas.search.pruning`); this class counts who is where.
    """

    def __init__(self, budget: BudgetSettings) -> None:
        self.budget, self.rule = budget, RULES[budget.mode]
        self.variants: dict[int, Variant] = {}
        self._of: dict[int, Variant] = {}
        self._at: list[list[dict[int, Values]]] = [[{} for _ in range(budget.rungs)] for _ in range(budget.brackets)]
        """By bracket and rung: the values of the variants that are there, or trained on from there."""
        self.coming = np.zeros((budget.brackets, budget.rungs), dtype=int)
        """By bracket and rung: how many variants are on their way there."""
        self._orders: list[list[list[int] | None]] = [[[] for _ in range(budget.rungs)] for _ in range(budget.brackets)]
        """By bracket and rung: the variants there, best first; None where the order has to be computed again."""

    def variant_of(self, trial: int) -> Variant:
        """The variant that a trial is a replicate of."""
        return self._of[trial]

    def add(self, number: int, trials: Sequence[int]) -> None:
        """A new variant: its trials may train up to its first judged rung."""
        bracket = self.budget.bracket_of(number)
        allowed = self.budget.first_judged(bracket) + 1
        variant = Variant(number, allowed, dict.fromkeys(trials, 0), {trial: [] for trial in trials})
        self.variants[number] = variant
        self._of |= dict.fromkeys(trials, variant)
        self.coming[bracket, :allowed] += 1

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
        bracket = self.budget.bracket_of(variant.number)
        for rung, values in enumerate(variant.means):
            del self._at[bracket][rung][variant.number]
            if len(values) > 1:
                self._orders[bracket][rung] = None
            else:
                self.order(bracket, rung).remove(variant.number)
        return Decision()

    def end(self, trial: int) -> None:
        """A trial was stopped for good; its variant with it."""
        if not self._of[trial].over:
            self._close(self._of[trial])

    def promotion(self, exhausted: bool) -> Variant | None:
        """The waiting variant to promote next, if there is one; `exhausted` says that no new variant can begin."""
        return self.rule.promotion(self, exhausted)

    def promote(self, number: int) -> Decision:
        """Let a waiting variant train to its next rung."""
        variant = self.variants[number]
        if not variant.waits:
            raise ValueError(f"variant {number} does not wait at a rung")
        return self.let_on(variant)

    def stop_unpromotable(self, exhausted: bool) -> Decision:
        """Stop the waiting variants that cannot be promoted any more."""
        return self.rule.stop_unpromotable(self, exhausted)

    def extend(self, budget: BudgetSettings) -> Decision:
        """Take a larger budget whose first rungs are the present ones: variants that were complete are judged there now."""
        last, added = self.budget.rungs - 1, budget.rungs - self.budget.rungs
        self.budget = budget
        for at, orders in zip(self._at, self._orders, strict=True):
            at += [{} for _ in range(added)]
            orders += [[] for _ in range(added)]
        self.coming = np.pad(self.coming, ((0, 0), (0, added)))
        complete: list[Variant] = []
        best: set[int] = set()
        for bracket, rungs in enumerate(self._at):
            order = self.order(bracket, last)
            best |= set(order[: self.best_count(order)])
            complete += [self.variants[number] for number in rungs[last]]
        for variant in complete:
            variant.over = False
        return self.rule.extend(self, complete, best)

    # What pruning rules use.

    def let_on(self, variant: Variant) -> Decision:
        """Let a variant train to its next rung."""
        self.coming[self.budget.bracket_of(variant.number), variant.allowed] += 1
        variant.allowed += 1
        return Decision(released=tuple(variant.reported))

    def stop(self, variant: Variant) -> Decision:
        """Stop a variant for good."""
        self._close(variant)
        return Decision(stopped=tuple(variant.reported))

    def best_count(self, order: list[int]) -> int:
        """How many of an order are its best 1/reduction_factor, at least one."""
        return max(1, len(order) // self.budget.reduction_factor)

    def order(self, bracket: int, rung: int) -> list[int]:
        """The variants that are at a rung, or trained on from it, best first; equal ones by number."""
        order = self._orders[bracket][rung]
        if order is None:
            at = sorted(self._at[bracket][rung].items())
            ranks = by_front(np.array([values for _, values in at])) if at else []
            order = [at[rank][0] for rank in ranks]
            self._orders[bracket][rung] = order
        return order

    # Who is where.

    def _arrive(self, variant: Variant) -> Decision:
        """Note the rungs that all trials of a variant have reached, and judge it when it is at the last one allowed."""
        bracket = self.budget.bracket_of(variant.number)
        for rung in range(len(variant.means), min(variant.reported.values())):
            values = [variant.values[trial][rung] for trial in variant.reported]
            variant.means.append(tuple(float(mean) for mean in np.mean(values, axis=0)))
            self.coming[bracket, rung] -= 1
        others = list(self._at[bracket][variant.allowed - 1].values()) if variant.waits else []
        self._note(variant)
        if not variant.waits:
            return Decision()
        if variant.allowed == self.budget.rungs:
            self._close(variant)
            return Decision()
        return self.rule.judge(self, variant, others)

    def _note(self, variant: Variant) -> None:
        """Enter a variant at the rungs that it has reached."""
        bracket = self.budget.bracket_of(variant.number)
        for rung, values in enumerate(variant.means):
            at = self._at[bracket][rung]
            if variant.number in at:
                continue
            at[variant.number] = values
            if len(values) > 1:
                self._orders[bracket][rung] = None
            else:
                insort(self.order(bracket, rung), variant.number, key=lambda number: (at[number], number))

    def _close(self, variant: Variant) -> None:
        self.coming[self.budget.bracket_of(variant.number), len(variant.means) : variant.allowed] -= 1
        variant.over = True
