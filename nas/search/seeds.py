"""New trials of an ablation: every row with the same seeds, and more seeds where a difference is not settled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nas.runs.events import Event, SpaceSpent, TrialBegan
from nas.runs.records import State
from nas.runs.run import Run, final_value
from nas.search.halving import SuccessiveHalving
from nas.search.sources import trial_began
from nas.stats.hierarchical import RowVariances
from nas.stats.sequential import FUTILE, looks, prospects, settled
from nas.stats.sequential_variances import SequentialVariances
from nas.study.nuisance import Candidate
from nas.study.rows import comparisons, families
from nas.study.study import Study
from space.array import Array
from space.spec import ModelSpec

CONFIDENCE = 0.95
"""The confidence of all claims of a table together."""

Pair = tuple[str, int]
"""An architecture's digest, and the index of its seed, from 0."""


class PairedSeeds:
    """The trial source of an ablation; its state follows from the ledger's events.

    All rows are trained with one seed before any row with the next, so that an interrupted run has whole pairs. Rows of equal
    architecture share their trials. With sequential seeds, the next seed begins once all trials have ended. Only the rows whose
    difference to their reference is not settled get it, and those references. A difference is settled for good: by a claim, by
    the margin, or for futility. Each decision follows from the values of the seeds before it, whatever was trained since.
    """

    def __init__(self, study: Study) -> None:
        assert study.ablation is not None, "pairs are of an ablation"
        self._study, self._seeds, self._metric = study, study.ablation.seeds, study.ablation.metric
        self._specs: dict[str, ModelSpec] = {row.spec.digest: row.spec for row in study.rows}
        self._tables = _tables(study)
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
        return trial_began(self._study, number, Candidate(self._specs[digest], {}), variant=number, seed=seed)

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
        for table in self._tables:
            values = np.array([[self._value(run, digest, seed) for seed in range(self._count)] for digest in table.digests])
            table.open = [pair for pair in table.open if not self._is_settled(values, table, *pair)]
            digests |= {table.digests[place] for pair in table.open for place in pair}
        return digests

    def _is_settled(self, values: Array, table: _Table, row: int, reference: int) -> bool:
        differences = values[row] - values[reference]
        differences = differences[~np.isnan(differences)]
        # Trials that fail again and again would not settle it with more seeds either.
        if len(differences) < 3:
            return self._count > 2 * self._seeds.min
        planned, margin = looks(self._seeds.min, self._seeds.max), self._seeds.margin
        if len(set(table.digests)) < 3:
            # One comparison has no other rows to share a spread with.
            if settled(differences, planned, table.alpha, margin):
                return True
            hope = prospects(differences, planned, table.alpha)
        else:
            tests = SequentialVariances(values, 0, planned, table.variances)
            low, high, p_value = tests.compare(row, reference, 1 - table.alpha)
            if p_value < table.alpha or (margin is not None and -margin < low and high < margin):
                return True
            hope = tests.prospects(row, reference, table.alpha)
        # With a margin, "no difference that matters" is an answer too, which takes more seeds.
        return margin is None and hope < FUTILE

    def _value(self, run: Run, digest: str, seed: int) -> float:
        """NaN where the trial has not begun, or has failed."""
        number = self._begun.get((digest, seed))
        value = final_value(run.trials[number], self._metric) if number is not None else None
        return value if value is not None and math.isfinite(value) else math.nan


@dataclass
class _Table:
    """A block under a control: its rows' architectures, the baseline's first, and the comparisons that seeds are added for."""

    digests: list[str]
    comparisons: int
    """All comparisons that are corrected together."""
    open: list[tuple[int, int]]
    """Those that are not settled, as places of a row and its reference."""
    variances: dict[int, RowVariances] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """The level of one comparison."""
        return (1 - CONFIDENCE) / self.comparisons


def _tables(study: Study) -> list[_Table]:
    tables = []
    for family, corrected in families(study.rows).items():
        asked = [pair for pair in comparisons(study.rows) if pair.holm_family == family]
        baseline = next(row for row in study.rows if row.block == family[0] and row.is_baseline)
        rows = [baseline, *(pair.row for pair in asked)]
        pairs = [(rows.index(pair.row), rows.index(pair.reference)) for pair in asked]
        digests = [row.spec.digest for row in rows]
        # Rows of equal architecture cannot differ.
        pairs = [(row, reference) for row, reference in pairs if digests[row] != digests[reference]]
        tables.append(_Table(digests, len(corrected), pairs))
    return tables
