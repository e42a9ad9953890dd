"""The protocol of searchers, which suggest points of a space and learn from how their trials end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nas.runs.records import Rejected, State
from space.domains.space import Params

Rejects = Callable[[Params], dict[str, float] | None]
"""Why a point is rejected: by how much it breaks which constraints, empty for a repetition; None when it may be trained."""


@dataclass(frozen=True)
class Suggestion:
    """A point to train, the points that were rejected before it, and the searcher's notes, which the ledger keeps."""

    params: Params
    rejected: tuple[Rejected, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Searcher(Protocol):
    """Suggests architectures, each under a number, and learns how they end.

    Its suggestions follow from its seed and the calls so far alone. A new searcher is a subclass with all these methods, for one
    that was forgotten would learn nothing without a word, and a line in `nas.search.proposals.SEARCHERS`. One that has no use for
    a report says so by a method that does nothing.
    """

    @abstractmethod
    def suggest(self, number: int, rejects: Rejects) -> Suggestion | None:
        """A point for the architecture of this number, which is running from now on; None when the space is spent."""

    @abstractmethod
    def replay(self, number: int, params: Params, rejected: Sequence[Rejected], attrs: Mapping[str, Any]) -> None:
        """Add a suggestion that was made before a restart, or an architecture that the searcher did not suggest."""

    @abstractmethod
    def tell(self, number: int, state: State, values: Sequence[float], intermediate: Sequence[float]) -> None:
        """Report that an architecture ended.

        Args:
            number: The architecture's number.
            state: COMPLETE, PRUNED or FAILED.
            values: One per objective; used only when the state is COMPLETE.
            intermediate: The score at every rung that was reached; with several, the first.
        """

    @abstractmethod
    def tell_waiting(self, number: int, intermediate: Sequence[float]) -> None:
        """Report that an architecture waits at a rung; `intermediate` is as in `tell`."""

    @abstractmethod
    def resume(self, number: int) -> None:
        """Report that an architecture which waited, or was complete for a smaller budget, trains on."""

    @abstractmethod
    def forget_attrs(self) -> None:
        """Drop the notes on earlier suggestions, because a larger budget begins."""

    @abstractmethod
    def __contains__(self, number: int) -> bool:
        """Whether the searcher knows the architecture of this number."""
