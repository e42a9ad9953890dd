"""A variant's progress along the rungs, and the decisions about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nas.study.budget import BudgetSettings
from space.array import Array

Values = tuple[float, ...]
"""One finite value per objective, all to be minimised, scores before costs."""


@dataclass
class Variant:
    """One architecture with all its trials (replicates), and the number of rungs at which they may report."""

    number: int
    allowed: int
    reported: dict[int, int]
    """Per trial: the number of rungs at which it has reported; failed trials are removed."""
    values: dict[int, list[Values]] = field(default_factory=dict)
    means: list[Values] = field(default_factory=list)
    """The means over its trials, one per rung that all of them have reached."""
    over: bool = False

    @property
    def waits(self) -> bool:
        """Whether every trial has reported at the last rung allowed."""
        return not self.over and bool(self.reported) and len(self.means) == self.allowed


@dataclass(frozen=True)
class Decision:
    """Trials that were waiting and may train on, and trials that are stopped for good."""

    released: tuple[int, ...] = ()
    stopped: tuple[int, ...] = ()

    def __add__(self, other: Decision) -> Decision:
        return Decision(self.released + other.released, self.stopped + other.stopped)


class Standings(Protocol):
    """The variants at the rungs, as a pruning rule sees them; `nas.search.halving.SuccessiveHalving` keeps them."""

    budget: BudgetSettings
    variants: dict[int, Variant]
    coming: Array
    """(brackets, rungs): how many variants are on their way to a rung."""

    def order(self, bracket: int, rung: int) -> list[int]:
        """The numbers of the variants that are at a rung, or trained on from it, best first."""

    def best_count(self, order: list[int]) -> int:
        """How many of an order are its best 1/kept_one_in, at least one."""

    def let_on(self, variant: Variant) -> Decision:
        """Let a variant train to its next rung."""

    def stop(self, variant: Variant) -> Decision:
        """Stop a variant for good."""
