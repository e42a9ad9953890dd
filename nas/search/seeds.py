"""New trials of an ablation: every row with the same seeds, and more seeds where a difference is not settled."""

from __future__ import annotations

from collections import Counter

from nas.runs.events import Event, SpaceSpent, TrialBegan
from nas.runs.records import State
from nas.runs.run import Run, final_value
from nas.search.halving import SuccessiveHalving
from nas.search.sources import trial_began
from nas.stats.sequential import looks, settled
from nas.study.rows import Comparison, comparisons
from nas.study.study import Study
from space.spec import ModelSpec

FUTILE = 0.1
"""The conditional power at the last look below which a row gets no more seeds."""

CONFIDENCE = 0.95
"""The confidence of all claims of a block under a control together."""

Pair = tuple[str, int]
"""An architecture's digest, and the index of its seed, from 0."""


class PairedSeeds:
    """The trial source of an ablation; its state follows from the ledger's events.

    All rows are trained with one seed before any row with the next, so that an interrupted run has whole pairs. Rows of equal
    architecture share their trials. With sequential seeds, the next seed begins once all trials have ended. Only the rows whose
    difference to their reference is not settled get it, and those references.
    """

    def __init__(self, study: Study) -> None:
        assert study.ablation is not None, "pairs are of an ablation"
        self._study, self._seeds, self._metric = study, study.ablation.seeds, study.ablation.metric
        self._specs: dict[str, ModelSpec] = {row.spec.digest: row.spec for row in study.rows}
        self._asked = comparisons(study.rows)
        self._begun: dict[Pair, int] = {}
        self._planned: list[Pair] = [(digest, seed) for seed in range(self._seeds.min) for digest in self._specs]
        self._next, self._count = 0, self._seeds.min

    def exhausted(self, run: Run) -> bool:
        """Whether no new trial begins now; with sequential seeds, the end of running trials may change that."""
        return self._due(run) is None

    def next(self, run: Run) -> TrialBegan | SpaceSpent:
        """The event with which the next trial begins."""
        due = self._due(run)
        assert due is not None, "asked when exhausted"
        digest, seed = due
        number = len(run.trials)
        return trial_began(self._study, number, self._specs[digest], variant=number, seed=seed)

    def take(self, event: Event, run: Run, halving: SuccessiveHalving) -> None:
        """Note which architecture has begun with which seed."""
        if isinstance(event, TrialBegan):
            self._begun[event.digest, event.seed - self._study.training.seed] = event.trial

    def _due(self, run: Run) -> Pair | None:
        while True:
            while self._next < len(self._planned) and self._planned[self._next] in self._begun:
                self._next += 1
            if self._next < len(self._planned):
                return self._planned[self._next]
            if self._count >= self._seeds.max or not self._all_ended(run):
                return None
            open_digests = self._open(run)
            if not open_digests:
                self._count = self._seeds.max
                return None
            self._planned += [(digest, self._count) for digest in self._specs if digest in open_digests]
            self._count += 1

    def _all_ended(self, run: Run) -> bool:
        return all(run.trials[self._begun[pair]].state is not State.RUNNING for pair in self._planned)

    def _open(self, run: Run) -> set[str]:
        """The architectures of rows whose difference is not settled after `_count` seeds, and of their references."""
        digests: set[str] = set()
        sizes = Counter(asked.holm_family for asked in self._asked)
        for asked in self._asked:
            if not self._is_settled(run, asked, (1 - CONFIDENCE) / sizes[asked.holm_family]):
                digests |= {asked.row.spec.digest, asked.reference.spec.digest}
        return digests

    def _is_settled(self, run: Run, asked: Comparison, alpha: float) -> bool:
        if asked.row.spec.digest == asked.reference.spec.digest:
            return True
        pairs = [self._difference(run, asked, seed) for seed in range(self._count)]
        if (asked.row.spec.digest, self._count - 1) not in self._begun:
            # A row without the last seed was settled before it.
            return True
        differences = [difference for difference in pairs if difference is not None]
        # Trials that fail again and again would not settle it with more seeds either.
        if len(differences) < 3:
            return self._count > 2 * self._seeds.min
        return settled(differences, looks(self._seeds.min, self._seeds.max), alpha, self._seeds.margin)

    def _difference(self, run: Run, asked: Comparison, seed: int) -> float | None:
        """None where one of the two trials has not begun, or has failed."""
        value, reference = (self._value(run, compared.spec.digest, seed) for compared in (asked.row, asked.reference))
        return None if value is None or reference is None else value - reference

    def _value(self, run: Run, digest: str, seed: int) -> float | None:
        number = self._begun.get((digest, seed))
        return final_value(run.trials[number], self._metric) if number is not None else None
