"""Asynchronous successive halving: compares architectures after equal training (Li et al., MLSys 2020)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np

from nas.search.pruning import RULES
from nas.search.variants import Decision, Values, Variant
from nas.stats.pareto import by_front
from nas.study.budget import BudgetSettings


class SuccessiveHalving:
    """The values of every architecture at every rung, and the decisions that follow; a ledger's events rebuild both.

    The trials of a variant report at one rung after the other. From the first judged rung of its bracket on, a variant is judged
    by the means over its trials. Failed trials are left out. The budget's pruning rule (`nas.search.pruning`) judges; this class
    keeps track of which variant is at which rung.
    """

    def __init__(self, budget: BudgetSettings) -> None:
        self.budget, self.rule = budget, RULES[budget.mode]
        self.variants: dict[int, Variant] = {}
        self._of: dict[int, Variant] = {}
        self._at: list[list[dict[int, Values]]] = [[{} for _ in range(budget.rungs)] for _ in range(budget.brackets)]
        """Per bracket and rung: the values of the variants that have reached it, by variant number."""
        self.coming = np.zeros((budget.brackets, budget.rungs), dtype=int)
        """Per bracket and rung: the number of variants that may still reach it with the rungs that they are allowed."""
        self._orders: list[list[list[int] | None]] = [[[] for _ in range(budget.rungs)] for _ in range(budget.brackets)]
        """Per bracket and rung: the variants that have reached it, best first; None where the order must be recomputed."""

    def variant_of(self, trial: int) -> Variant:
        """The variant that a trial is a replicate of."""
        return self._of[trial]

    def add(self, number: int, trials: Sequence[int]) -> None:
        """Add a variant. Its trials may train up to its first judged rung."""
        bracket = self.budget.bracket_of(number)
        allowed = self.budget.first_judged(bracket) + 1
        variant = Variant(number, allowed, dict.fromkeys(trials, 0), {trial: [] for trial in trials})
        self.variants[number] = variant
        self._of |= dict.fromkeys(trials, variant)
        self.coming[bracket, :allowed] += 1

    def may_train(self, trial: int) -> bool:
        """Whether a trial may train to another rung."""
        variant = self._of[trial]
        return not variant.over and trial in variant.reported and variant.reported[trial] < variant.allowed

    def report(self, trial: int, rung: int, values: Values) -> Decision:
        """Record a trial's values at its next rung, and judge its variant when all its trials are there.

        Args:
            trial: The trial's number.
            rung: The rung, from 0.
            values: One per objective, to be minimised, scores before costs.

        Returns:
            The trials that may train on, and those that are stopped.

        Raises:
            ValueError: When the trial reports at a rung twice or skips one.
        """
        variant = self._of[trial]
        if rung != variant.reported[trial]:
            raise ValueError(f"trial {trial} reported at rung {rung}, but its next is {variant.reported[trial]}")
        variant.reported[trial] += 1
        variant.values[trial].append(values)
        return self._arrive(variant)

    def remove(self, trial: int) -> Decision:
        """Remove a trial that failed.

        Its variant is judged by the trials that are left. A variant without any is no longer compared with others.
        """
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
        """End the variant of a trial that was stopped for good."""
        if not self._of[trial].over:
            self._close(self._of[trial])

    def promotion(self, exhausted: bool) -> Variant | None:
        """The waiting variant to promote next, if any; `exhausted` says that no new variant can begin."""
        return self.rule.promotion(self, exhausted)

    def promote(self, number: int) -> Decision:
        """Let a waiting variant train to its next rung. Raises ValueError when it does not wait."""
        variant = self.variants[number]
        if not variant.waits:
            raise ValueError(f"variant {number} does not wait at a rung")
        return self.let_on(variant)

    def stop_unpromotable(self, exhausted: bool) -> Decision:
        """Stop the waiting variants that cannot be promoted any more."""
        return self.rule.stop_unpromotable(self, exhausted)

    def extend(self, budget: BudgetSettings) -> Decision:
        """Switch to a larger budget whose first rungs are the present ones.

        Variants that were complete are now judged at the rung that was the last.
        """
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

    # Called by pruning rules.

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
        """The number of variants in the best 1/kept_one_in of an order, at least one."""
        return max(1, len(order) // self.budget.kept_one_in)

    def order(self, bracket: int, rung: int) -> list[int]:
        """The variants that have reached a rung, best first; equal ones by number."""
        order = self._orders[bracket][rung]
        if order is None:
            at = sorted(self._at[bracket][rung].items())
            ranks = by_front(np.array([values for _, values in at])) if at else []
            order = [at[rank][0] for rank in ranks]
            self._orders[bracket][rung] = order
        return order

    # Which variant is at which rung.

    def _arrive(self, variant: Variant) -> Decision:
        """Enter the rungs that all trials of a variant have reached, and judge it at the last rung that it is allowed."""
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
