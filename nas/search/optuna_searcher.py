"""A searcher on Optuna's samplers, through Optuna's ask-and-tell interface."""

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
from nas.search.searcher import Rejects, Searcher, Suggestion
from nas.study.settings import SamplerSettings, SearchSettings
from space.domains.near import feasible_near
from space.domains.space import Params, SearchSpace
from space.errors import SpecError

STARTUP = 10
"""Architectures from which tpe and gp begin to learn; for nsga2 it is the population."""

DRAWS = 1000
"""The space counts as spent when this many uniform draws all repeat a trial."""

NEAR, MOST_DRAWS = 2_000, 200_000
"""Draw at most MOST_DRAWS points to get about NEAR feasible ones; take the nearest to the proposal."""

GENERATION = ":generation"
"""The end of the key under which a genetic sampler notes a trial's generation."""

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


OPTUNA_SAMPLERS: dict[str, Callable[[SamplerSettings, int], BaseSampler]] = {
    "random": lambda settings, seed: RandomSampler(seed=seed),
    "tpe": lambda settings, seed: TPESampler(n_startup_trials=STARTUP, seed=seed),
    "nsga2": lambda settings, seed: NSGAIISampler(population_size=settings.population, seed=seed),
    "gp": lambda settings, seed: GPSampler(n_startup_trials=STARTUP, seed=seed, warn_independent_sampling=False),
}
"""By `search.sampler.kind`: Optuna's sampler of the settings and a seed."""


@dataclass
class _Observation:
    """One trial as Optuna sees it."""

    params: Params
    state: TrialState = TrialState.RUNNING
    values: Sequence[float] | None = None
    intermediate: Sequence[float] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """The sampler's notes about it, such as its generation."""
    handle: Asked | None = None
    """Its trial in the current Optuna study while it runs there, through which its end is reported."""


class OptunaSearcher(Searcher):
    """Suggests points of a space and learns from how their trials end.

    Every proposal gets a new sampler, seeded by (seed, number of observations before it), which sees all observations. So a
    proposal depends on the seed and on the observations alone: after a restart, the same history gives the same proposals.

    The first architectures are drawn uniformly from the feasible part of the space, until the sampler has trained ones to learn
    from; a random one is drawn so always. A later proposal that is outside the constraints, or repeats an architecture, is moved to
    the nearest of a sample of feasible points. Samplers learn from what was trained alone.

    `share` is the feasible share of the space.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings, share: float = 1.0) -> None:
        self.space, self.settings = space, settings
        self._near_draws = int(np.clip(NEAR / max(share, 1e-9), NEAR, MOST_DRAWS))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {parameter.name: distribution(parameter.domain) for parameter in space.parameters}
        self._list: list[_Observation] = []
        self._of: dict[int, _Observation] = {}
        self._current: optuna.Study | None = None

    def suggest(self, number: int, rejects: Rejects) -> Suggestion | None:
        """See `Searcher.suggest`."""
        if self.settings.sampler.kind == "nsga2":
            # NSGA-II would use its cached parents of a generation, whose order differs from that after a restart.
            self._current = None
        rejected: tuple[Rejected, ...] = ()
        near: Params | None = None
        if not self._starts:
            observation = self._ask()
            self._list.append(observation)
            near, violations = observation.params, rejects(observation.params)
            if violations is None:
                self._of[number] = observation
                return Suggestion(near, (), dict(observation.attrs))
            self._forget(observation)
            rejected = (Rejected(params=near, violations=violations),)
        params = self._draw(number, rejects, near)
        if params is None:
            return None
        self._of[number] = self._enqueue(params)
        return Suggestion(params, rejected, dict(self._of[number].attrs))

    @property
    def _starts(self) -> bool:
        """Whether the sampler has too little to learn from, so that points are drawn uniformly from the feasible part."""
        settings = self.settings.sampler
        if settings.kind == "random":
            return True
        # Optuna's tpe learns from pruned trials too.
        states = (TrialState.COMPLETE, TrialState.PRUNED) if settings.kind == "tpe" else (TrialState.COMPLETE,)
        learned = sum(observation.state in states for observation in self._list)
        return learned < (settings.population if settings.kind == "nsga2" else STARTUP)

    def replay(self, number: int, params: Params, rejected: Sequence[Rejected], attrs: Mapping[str, Any]) -> None:
        """See `Searcher.replay`."""
        for point in rejected:
            self._list.append(_Observation(point.params, TrialState.FAIL))
        self._of[number] = _Observation(params, attrs=attrs)
        self._list.append(self._of[number])
        self._current = None

    def tell(self, number: int, state: State, values: Sequence[float], intermediate: Sequence[float]) -> None:
        """See `Searcher.tell`."""
        observation = self._of[number]
        waited = (
            observation.handle is None
            and observation.state is TrialState.PRUNED
            and list(observation.intermediate) == list(intermediate)
        )
        if waited and state is State.PRUNED:
            # `tell_waiting` has recorded it as pruned already.
            return
        observation.state, observation.values = _STATES[state], list(values) if state is State.COMPLETE else None
        # Optuna has no intermediate values for several objectives.
        observation.intermediate = list(intermediate) if len(self.settings.objectives) == 1 else []
        if observation.handle is None or self._current is None:
            self._current = None
            return
        for rung, value in enumerate(observation.intermediate):
            observation.handle.report(value, rung)
        self._current.tell(observation.handle, observation.values, state=observation.state)
        observation.handle = None

    def tell_waiting(self, number: int, intermediate: Sequence[float]) -> None:
        """See `Searcher.tell_waiting`. Until it is promoted, the architecture counts as pruned."""
        self.tell(number, State.PRUNED, (), intermediate)

    def resume(self, number: int) -> None:
        """See `Searcher.resume`."""
        observation = self._of[number]
        observation.state, observation.values, observation.intermediate = TrialState.RUNNING, None, []
        self._current = None

    def forget_attrs(self) -> None:
        """See `Searcher.forget_attrs`. The generations noted under the smaller budget no longer hold."""
        for observation in self._list:
            observation.attrs = {}
        self._current = None

    def __contains__(self, number: int) -> bool:
        return number in self._of

    def study(self) -> optuna.Study:
        """All observations as an Optuna study."""
        if self._current is None:
            self._current = self._empty()
            for observation in self._list:
                observation.handle = None
            self._current.add_trials([self._frozen(observation) for observation in self._list])
        return self._current

    def _empty(self) -> optuna.Study:
        return optuna.create_study(directions=[objective.direction for objective in self.settings.objectives])

    def _frozen(self, observation: _Observation) -> FrozenTrial:
        return create_trial(
            state=observation.state,
            values=observation.values,
            params={name: encoded(value) for name, value in observation.params.items()},
            distributions={name: self._distributions[name] for name in observation.params},
            intermediate_values=dict(enumerate(observation.intermediate)),
            system_attrs=dict(observation.attrs),
        )

    def _ask(self, params: Params | None = None) -> _Observation:
        """A new running trial, with the given values or else the sampler's proposal."""
        # A random sampler ignores observations, so an empty study is enough for it.
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
        return _Observation(suggested, attrs=attrs, handle=None if random else asked)

    def _enqueue(self, params: Params) -> _Observation:
        """A new running trial with the given values, added to the observations."""
        observation = self._ask(params)
        self._list.append(observation)
        return observation

    def _sampler(self, question: int) -> BaseSampler:
        settings = self.settings.sampler
        seed = int(np.random.SeedSequence([settings.seed, question]).generate_state(1)[0])
        return OPTUNA_SAMPLERS[settings.kind](settings, seed)

    def _forget(self, observation: _Observation) -> None:
        """Let a rejected point fail, which samplers ignore: they learn from what was trained alone."""
        observation.state = TrialState.FAIL
        if observation.handle is None:
            self._current = None
            return
        self.study().tell(observation.handle, state=observation.state)
        observation.handle = None

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
                integers = self._distributions[name]
                assert isinstance(integers, IntDistribution), "made from the same domain"
                params[name] = asked.suggest_int(name, integers.low, integers.high, step=integers.step, log=integers.log)
            else:
                assert domain.float_ is not None
                params[name] = asked.suggest_float(name, *domain.float_, log=domain.log)
        return params

    def _draw(self, number: int, rejects: Rejects, near: Params | None) -> Params | None:
        """A new feasible point: the nearest to `near` in a sample, or else one drawn uniformly; None when all repeat a trial."""
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
