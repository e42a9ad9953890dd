"""What a searcher is: it suggests points of a space and learns from how their trials end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nas.runs.records import Rejected, State
from space.domains.space import Params

Rejects = Callable[[Params], dict[str, float] | None]
"""None for a point that may be trained; otherwise the constraints that it breaks and by how much, none for a repetition."""


@dataclass(frozen=True)
class Suggestion:
    """A point to train, the points that were rejected before it, and the searcher's notes, which the ledger keeps."""

    params: Params
    rejected: tuple[Rejected, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Searcher(Protocol):
    """Suggests architectures by number and is told how they end; its suggestions follow from its seed and what it was told.

    A new searcher is a class with these methods and a line in `nas.search.proposals.SEARCHERS`.
    """

    def suggest(self, number: int, rejects: Rejects) -> Suggestion | None:
        """A point for the architecture of this number, which counts as running until it is told; None when the space is spent."""

    def replay(self, number: int, params: Params, rejected: Sequence[Rejected], attrs: Mapping[str, Any]) -> None:
        """Take in a suggestion made before a restart, or an architecture that is not the searcher's own."""

    def tell(self, number: int, state: State, values: Sequence[float], intermediate: Sequence[float]) -> None:
        """An architecture ended: `values` of the objectives when COMPLETE, and the first objective at every rung reached."""

    def tell_waiting(self, number: int, intermediate: Sequence[float]) -> None:
        """An architecture waits at a rung."""

    def resume(self, number: int) -> None:
        """An architecture that waited, or was complete for a smaller budget, trains on."""

    def forget_attrs(self) -> None:
        """A larger budget begins."""

    def __contains__(self, number: int) -> bool:
        """Whether an architecture is known, by its number."""
