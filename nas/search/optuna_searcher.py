"""Optuna's samplers as a searcher, through ask and tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.trial import Trial as Asked

from nas.runs.records import Rejected, State
from nas.search.distributions import distribution, encoded
from nas.search.searcher import Rejects, Suggestion
from nas.study.settings import SamplerSettings, SearchSettings
from space.domains.near import feasible_near
from space.domains.space import Params, SearchSpace
from space.errors import SpecError

TRIES = 50
"""How many proposals in a row may be turned down before one is drawn uniformly from the feasible part of the space."""

DRAWS = 1000
"""How many such draws may repeat a trial before the space counts as spent."""

RARE = 0.01
"""Below this feasible share, proposals come from the feasible part of the space itself."""

NEAR, MOST_DRAWS = 2_000, 200_000
"""Of about so many feasible points, drawn for every proposal in at most so many draws, the one nearest to it is taken."""

GENERATION = ":generation"
"""How the key ends under which a genetic sampler notes a trial's generation."""

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


OPTUNA_SAMPLERS: dict[str, Callable[[SamplerSettings, int], BaseSampler]] = {
    "random": lambda settings, seed: RandomSampler(seed=seed),
    "tpe": lambda settings, seed: TPESampler(seed=seed),
    "nsga2": lambda settings, seed: NSGAIISampler(population_size=settings.population, seed=seed),
    "gp": lambda settings, seed: GPSampler(seed=seed, warn_independent_sampling=False),
}
"""By `search.sampler.kind`: Optuna's sampler of the settings and a seed."""


@dataclass
class _Told:
    """One trial as Optuna is to see it."""

    params: Params
    state: TrialState = TrialState.RUNNING
    values: Sequence[float] | None = None
    intermediate: Sequence[float] = ()
    violations: Mapping[str, float] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler noted of it, such as its generation."""
    handle: Asked | None = None
    """Through which it can be told while it runs in the present Optuna study."""


class OptunaSearcher:
    """Proposes points of a space and learns from how their trials end.

    The sampler is made anew for every question, seeded by (seed, question), and sees the list of what it was told. So a proposal
    depends on the seed and on that list, not on when the process was started: after a restart the same history gives the same
    proposals. Proposals outside the constraints are turned down and told so; where under 1 % of the space is feasible (`share`),
    and for a sampler that is slow to ask, they are moved to the nearest of some points drawn from the feasible part instead.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings, share: float = 1.0) -> None:
        self.space, self.settings = space, settings
        self._moves = share < RARE or settings.sampler.kind == "gp"
        self._near_draws = int(np.clip(NEAR / max(share, 1e-9), NEAR, MOST_DRAWS))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {parameter.name: distribution(parameter.domain) for parameter in space.parameters}
        self._list: list[_Told] = []
        self._of: dict[int, _Told] = {}
        self._current: optuna.Study | None = None

    def suggest(self, number: int, rejects: Rejects) -> Suggestion | None:
        """See `Searcher.suggest`."""
        if self.settings.sampler.kind == "nsga2":
            # It keeps the parents of a generation in another order than it finds them in, so it must not remember them either.
            self._current = None
        rejected: list[Rejected] = []
        repeated: list[_Told] = []
        found: Params | None = None
        while found is None and len(rejected) < (1 if self._moves else TRIES):
            told = self._ask()
            violations = rejects(told.params)
            if violations is None:
                self._list.append(told)
                found, self._of[number] = told.params, told
                continue
            rejected.append(Rejected(params=told.params, violations=violations))
            self._list.append(told)
            if violations:
                self._reject(told, violations)
            else:
                # Left running while asking again: a sampler keeps away from points that are being tried.
                repeated.append(told)
        for told in repeated:
            self._reject(told, {})
        if found is None:
            near = rejected[-1].params if self._moves else None
            found = self._draw(number, rejects, near)
            if found is None:
                return None
            self._of[number] = self._again(found)
        return Suggestion(found, tuple(rejected), dict(self._of[number].attrs))

    def replay(self, number: int, params: Params, rejected: Sequence[Rejected], attrs: Mapping[str, Any]) -> None:
        """See `Searcher.replay`."""
        for one in rejected:
            state = TrialState.PRUNED if one.violations else TrialState.FAIL
            self._list.append(_Told(one.params, state, violations=one.violations))
        self._of[number] = _Told(params, attrs=attrs)
        self._list.append(self._of[number])
        self._current = None

    def tell(self, number: int, state: State, values: Sequence[float], intermediate: Sequence[float]) -> None:
        """See `Searcher.tell`."""
        told = self._of[number]
        waited = told.handle is None and told.state is TrialState.PRUNED and list(told.intermediate) == list(intermediate)
        if waited and state is State.PRUNED:
            # It was told so when it began to wait at the rung.
            return
        told.state, told.values = _STATES[state], list(values) if state is State.COMPLETE else None
        # Optuna has no intermediate values for several objectives.
        told.intermediate = list(intermediate) if len(self.settings.objectives) == 1 else []
        if told.handle is None or self._current is None:
            self._current = None
            return
        for rung, value in enumerate(told.intermediate):
            told.handle.report(value, rung)
        self._current.tell(told.handle, told.values, state=told.state)
        told.handle = None

    def tell_waiting(self, number: int, intermediate: Sequence[float]) -> None:
        """See `Searcher.tell_waiting`: until it is promoted, it counts as pruned there."""
        self.tell(number, State.PRUNED, (), intermediate)

    def resume(self, number: int) -> None:
        """See `Searcher.resume`."""
        told = self._of[number]
        told.state, told.values, told.intermediate = TrialState.RUNNING, None, []
        self._current = None

    def forget_attrs(self) -> None:
        """See `Searcher.forget_attrs`: generations of architectures that were complete for the smaller budget mean nothing now."""
        for told in self._list:
            told.attrs = {}
        self._current = None

    def __contains__(self, number: int) -> bool:
        return number in self._of

    def study(self) -> optuna.Study:
        """What was told, as an Optuna study."""
        if self._current is None:
            self._current = self._empty()
            for told in self._list:
                told.handle = None
            self._current.add_trials([self._frozen(told) for told in self._list])
        return self._current

    def _empty(self) -> optuna.Study:
        return optuna.create_study(directions=[objective.direction for objective in self.settings.objectives])

    def _frozen(self, told: _Told) -> FrozenTrial:
        return create_trial(
            state=told.state,
            values=told.values,
            params={name: encoded(value) for name, value in told.params.items()},
            distributions={name: self._distributions[name] for name in told.params},
            intermediate_values=dict(enumerate(told.intermediate)),
            system_attrs=dict(told.attrs),
            constraints=dict(told.violations) or None,
        )

    def _ask(self, params: Params | None = None) -> _Told:
        """A new running trial: what the sampler proposes, or known values."""
        # A random sampler does not look at what was told, so the study need not be made again for it.
        random = self.settings.sampler.kind == "random"
        study = self._empty() if random else self.study()
        if params is not None:
            study.enqueue_trial({name: encoded(value) for name, value in params.items()})
        study.sampler = self._sampler(len(self._list))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            asked = study.ask()
            suggested = self._suggest(asked)
        noted = study.get_trials(deepcopy=False)[asked.number].system_attrs
        attrs = {name: value for name, value in noted.items() if name.endswith(GENERATION)}
        return _Told(suggested, attrs=attrs, handle=None if random else asked)

    def _again(self, params: Params) -> _Told:
        told = self._ask(params)
        self._list.append(told)
        return told

    def _sampler(self, question: int) -> BaseSampler:
        settings = self.settings.sampler
        seed = int(np.random.SeedSequence([settings.seed, question]).generate_state(1)[0])
        return OPTUNA_SAMPLERS[settings.kind](settings, seed)

    def _reject(self, told: _Told, violations: Mapping[str, float]) -> None:
        # A pruned trial with a broken constraint is what a sampler takes for infeasible; a repetition teaches nothing.
        told.state, told.violations = TrialState.PRUNED if violations else TrialState.FAIL, violations
        if told.handle is None:
            self._current = None
            return
        for name, amount in violations.items():
            told.handle.set_constraint(name, amount)
        self.study().tell(told.handle, state=told.state)
        told.handle = None

    def _suggest(self, asked: Asked) -> Params:
        params: Params = {}
        for parameter in self.space.parameters:
            if not self.space.active(parameter, params):
                continue
            name, domain = parameter.name, parameter.domain
            if domain.choice is not None:
                chosen = asked.suggest_categorical(name, [encoded(value) for value in domain.choice])
                params[name] = next(value for value in domain.choice if encoded(value) == chosen)
            elif domain.int_ is not None:
                reached = self._distributions[name]
                assert isinstance(reached, IntDistribution), "made from the same domain"
                params[name] = asked.suggest_int(name, reached.low, reached.high, step=reached.step, log=reached.log)
            else:
                assert domain.float_ is not None
                params[name] = asked.suggest_float(name, *domain.float_, log=domain.log)
        return params

    def _draw(self, number: int, rejects: Rejects, near: Params | None) -> Params | None:
        """A new feasible point: the nearest to a wanted one among some, or one drawn uniformly."""
        rng = np.random.default_rng([self.settings.sampler.seed, number])
        if near is not None:
            for params in feasible_near(self.space, near, rng, self._near_draws):
                if rejects(params) is None:
                    return params
        with suppress(SpecError):
            for params in islice(self.space.feasible(rng), DRAWS):
                if rejects(params) is None:
                    return params
        return None
