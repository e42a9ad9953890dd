"""The protocol of trial sources: the suggestions of a search, or the rows and seeds of an ablation."""

from __future__ import annotations

from typing import Any, Protocol

from nas.runs.events import Event, SpaceSpent, TrialBegan
from nas.runs.records import Rejected
from nas.runs.run import Run
from nas.search.halving import SuccessiveHalving
from nas.study.nuisance import Candidate
from nas.study.study import Study
from space.domains.space import Params


class TrialSource(Protocol):
    """Gives the next trial; its state follows from the events of the ledger."""

    def exhausted(self, run: Run) -> bool:
        """Whether no new trial begins now; the end of running trials may change that."""

    def next(self, run: Run) -> TrialBegan | SpaceSpent:
        """The event with which the next trial begins, or the note that the space is spent."""

    def take(self, event: Event, run: Run, halving: SuccessiveHalving) -> None:
        """Apply an event, after it was applied to the run and the rungs."""


def trial_began(
    study: Study,
    number: int,
    candidate: Candidate,
    *,
    variant: int,
    seed: int,
    params: Params | None = None,
    rejected: tuple[Rejected, ...] = (),
    attrs: dict[str, Any] | None = None,
) -> TrialBegan:
    """The event with which a trial begins; `seed` is added to the study's seed."""
    return TrialBegan(
        trial=number,
        variant=variant,
        params=params,
        spec=candidate.spec,
        digest=candidate.spec.digest,
        seed=study.training.seed + seed,
        rungs=study.budget.rungs,
        rejected=rejected,
        attrs=attrs or {},
        training=dict(candidate.training),
    )
