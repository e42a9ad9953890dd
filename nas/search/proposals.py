"""New trials of a search: architectures tried first, then what the sampler proposes, each with all its replicates."""

from __future__ import annotations

from nas.runs.events import Event
from nas.runs.records import Rejected
from nas.runs.run import Run
from nas.search.searcher import Proposer
from nas.study.study import Study
from space.domains.space import Params
from space.errors import SpecError
from space.spec import ModelSpec


class Proposals:
    """What a search tries next; its state follows from the ledger's events."""

    def __init__(self, study: Study) -> None:
        assert study.search is not None, "proposals are of a search"
        self._study, self._settings, self._space = study, study.search, study.search_space
        self.proposer = Proposer(self._space, study.search, study.census.share)
        self._digests: set[str] = set()
        self._space_is_spent = False

    def exhausted(self, run: Run) -> bool:
        """Whether no new architecture will be tried."""
        return len(run.trials) >= self._settings.trials or (self._space_is_spent and self._enqueued() is None)

    def next(self, run: Run) -> Event:
        """The event that begins the next trial, or the note that the space is spent."""
        replicates = self._settings.replicates
        number = len(run.trials)
        variant, replicate = divmod(number, replicates)
        if replicate:
            last = run.trials[number - 1]
            return begin(self._study, number, variant, last.params, last.plain_spec, last.digest, replicate)
        enqueued = self._enqueued()
        if enqueued is not None:
            params = self._space.params_of(enqueued)
            return begin(self._study, number, variant, params, enqueued.model_dump(mode="json"), enqueued.digest, 0)
        proposed = self.proposer.propose(variant, self._turned_down)
        if proposed is None:
            return {"event": "spent"}
        params, rejected, attrs = proposed
        spec = self._space.spec(params)
        return begin(self._study, number, variant, params, spec.model_dump(mode="json"), spec.digest, 0, rejected, attrs)

    def take(self, event: Event) -> None:
        """Take in what was begun, or that nothing is left."""
        if event["event"] == "spent":
            self._space_is_spent = True
        elif event["event"] == "trial":
            self._digests.add(event["digest"])

    def _enqueued(self) -> ModelSpec | None:
        """The next of the architectures to try first."""
        return next((spec for spec in self._study.enqueued if spec.digest not in self._digests), None)

    def _turned_down(self, params: Params) -> dict[str, float] | None:
        try:
            spec = self._space.spec(params)
        except SpecError:
            return {"spec": 1.0}
        violations = self._space.violations(spec)
        if violations:
            return violations
        return {} if spec.digest in self._digests else None


def begin(
    study: Study,
    number: int,
    variant: int,
    params: Params | None,
    spec: Event,
    digest: str,
    replicate: int,
    rejected: list[Rejected] | None = None,
    attrs: Event | None = None,
) -> Event:
    """The event with which a trial begins."""
    return {
        "event": "trial",
        "trial": number,
        "variant": variant,
        "params": params,
        "spec": spec,
        "digest": digest,
        "seed": study.training.seed + replicate,
        "rungs": study.budget.rungs,
        "rejected": [one.model_dump() for one in rejected or []],
        **({"attrs": attrs} if attrs else {}),
    }
