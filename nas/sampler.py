"""Proposals from Optuna through ask and tell; the only module that imports it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial as Asked
from optuna.trial import TrialState

from nas.records import Rejected, State
from nas.settings import SearchSettings
from space.errors import SpecError
from space.search_space import Params, SearchSpace

TRIES = 50
"""How many proposals in a row may be turned down before one is drawn uniformly from the feasible part of the space."""

DRAWS = 1000
"""How many such draws may repeat a trial before the space counts as spent."""

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


class Proposer:
    """Proposes points of a space and learns from how their trials end.

    The sampler is made anew for every question, seeded by (seed, question), so a proposal depends on the seed and on
    what has been told, not on when the process was started: after a restart the same history gives the same
    proposals.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings) -> None:
        self.space, self.settings = space, settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=[objective.direction for objective in settings.objectives])
        self._running: dict[int, Asked] = {}

    def propose(
        self, number: int, turned_down: Callable[[Params], dict[str, float] | None]
    ) -> tuple[Params, list[Rejected]] | None:
        """Values for a trial, and the proposals turned down before it; None when no new feasible point is found.

        `turned_down` gives None for a point that may be trained, otherwise the constraints it breaks (none for a
        repetition). The sampler is told of every point turned down. The trial counts as running until `end` is called
        with its number.
        """
        rejected: list[Rejected] = []
        repeated: list[Asked] = []
        found: Params | None = None
        while found is None and len(rejected) < TRIES:
            asked = self._ask()
            params = self._suggest(asked)
            violations = turned_down(params)
            if violations is None:
                found, self._running[number] = params, asked
                continue
            rejected.append(Rejected(params=params, violations=violations))
            if violations:
                self._reject(asked, violations)
            else:
                # Left running while asking again: a sampler keeps away from points that are being tried.
                repeated.append(asked)
        for asked in repeated:
            self._reject(asked, {})
        if found is None:
            found = self._draw(number, turned_down)
            if found is None:
                return None
            self._running[number] = self._again(found)
        return found, rejected

    def replay(self, number: int, params: Params, rejected: Sequence[Rejected]) -> None:
        """Take in a proposal made before a restart."""
        for one in rejected:
            self._reject(self._again(one.params), one.violations)
        self._running[number] = self._again(params)

    def end(self, number: int, state: State, values: Sequence[float], intermediate: Sequence[float]) -> None:
        """Tell how a trial ended: `values` of the objectives when COMPLETE, the first objective at every rung reached."""
        asked = self._running.pop(number)
        if len(self.settings.objectives) == 1:
            # Optuna has no intermediate values for several objectives.
            for rung, value in enumerate(intermediate):
                asked.report(value, rung)
        self._study.tell(asked, list(values) if state is State.COMPLETE else None, state=_STATES[state])

    def _ask(self) -> Asked:
        self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        return self._study.ask()

    def _again(self, params: Params) -> Asked:
        """A running trial with known values."""
        self._study.enqueue_trial({name: _encoded(value) for name, value in params.items()})
        asked = self._study.ask()
        self._suggest(asked)
        return asked

    def _sampler(self, question: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self.settings.sampler.seed, question]).generate_state(1)[0])
        if self.settings.sampler.kind == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed)

    def _reject(self, asked: Asked, violations: dict[str, float]) -> None:
        for name, amount in violations.items():
            asked.set_constraint(name, amount)
        # A pruned trial with a broken constraint is what a sampler takes for infeasible; a repetition teaches nothing.
        self._study.tell(asked, state=TrialState.PRUNED if violations else TrialState.FAIL)

    def _suggest(self, asked: Asked) -> Params:
        params: Params = {}
        for parameter in self.space.parameters:
            if not self.space.active(parameter, params):
                continue
            name, domain = parameter.name, parameter.domain
            if domain.choice is not None:
                chosen = asked.suggest_categorical(name, [_encoded(value) for value in domain.choice])
                params[name] = next(value for value in domain.choice if _encoded(value) == chosen)
            elif domain.int_ is not None:
                params[name] = asked.suggest_int(name, *domain.int_, step=domain.step, log=domain.log)
            else:
                assert domain.float_ is not None
                params[name] = asked.suggest_float(name, *domain.float_, log=domain.log)
        return params

    def _draw(self, number: int, turned_down: Callable[[Params], dict[str, float] | None]) -> Params | None:
        rng = np.random.default_rng([self.settings.sampler.seed, number])
        for _ in range(DRAWS):
            try:
                params = self.space.sample_params(rng)
            except SpecError:
                return None
            if turned_down(params) is None:
                return params
        return None


def _encoded(value: Any) -> str | int | float | bool:
    """A value as Optuna can store it; lists become JSON text."""
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
