"""New trials of a search: first the enqueued architectures, then a searcher's suggestions, each with all its replicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from nas.runs.events import Event, Promoted, Reported, SpaceSpent, StudyChanged, TrialBegan, TrialEnded
from nas.runs.records import State
from nas.runs.run import Run, TrialResult, objective_values
from nas.search.halving import SuccessiveHalving
from nas.search.optuna_searcher import OPTUNA_SAMPLERS, OptunaSearcher
from nas.search.searcher import Searcher
from nas.search.sources import trial_began
from nas.study.choices import SearcherKind
from nas.study.nuisance import Candidate, candidate_key
from nas.study.settings import SearchSettings
from nas.study.study import Study
from space.choices.table import covering
from space.domains.space import Params, SearchSpace
from space.errors import SpecError

MakeSearcher = Callable[[SearchSpace, SearchSettings, float], Searcher]

SEARCHERS: Mapping[str, MakeSearcher] = covering(SearcherKind, {**dict.fromkeys(OPTUNA_SAMPLERS, OptunaSearcher)})
"""By `search.sampler.kind`: the searcher of a space, its settings, and the share of the space that is feasible."""


class Proposals:
    """The trial source of a search. It asks the searcher for suggestions, and reports to it how architectures end."""

    def __init__(self, study: Study) -> None:
        assert study.search is not None, "proposals are of a search"
        self._study, self._settings, self._space = study, study.search, study.search_space
        self.searcher = SEARCHERS[study.search.sampler.kind](self._space, study.search, study.census.share)
        self._known: set[str] = set()
        """The keys of all candidates so far."""
        self._space_is_spent = False
        self._rungs: int | None = None
        """The number of rungs of the budget at the last event; None before the first."""

    def exhausted(self, run: Run) -> bool:
        """Whether no new architecture will be tried."""
        return len(run.trials) >= self._settings.trials or (self._space_is_spent and self._enqueued() is None)

    def next(self, run: Run) -> TrialBegan | SpaceSpent:
        """The event of the last architecture's next replicate, or else of a new architecture's first trial."""
        number = len(run.trials)
        variant, replicate = divmod(number, self._settings.replicates)
        if replicate:
            last = run.trials[number - 1]
            again = Candidate(last.spec, last.training)
            return trial_began(self._study, number, again, variant=variant, seed=replicate, params=last.params)
        enqueued = self._enqueued()
        if enqueued is not None:
            return trial_began(self._study, number, enqueued, variant=variant, seed=0, params=self._params_of(enqueued))
        suggestion = self.searcher.suggest(variant, self._rejects)
        if suggestion is None:
            return SpaceSpent()
        return trial_began(
            self._study,
            number,
            self._study.candidate(suggestion.params),
            variant=variant,
            seed=0,
            params=suggestion.params,
            rejected=suggestion.rejected,
            attrs=dict(suggestion.attrs),
        )

    def take(self, event: Event, run: Run, halving: SuccessiveHalving) -> None:
        """Note new architectures, and pass on to the searcher what an event means for it."""
        match event:
            case SpaceSpent():
                self._space_is_spent = True
            case TrialBegan():
                self._known.add(candidate_key(event.digest, event.training))
                first = event.trial % self._settings.replicates == 0
                if first and event.params is not None and event.variant not in self.searcher:
                    self.searcher.replay(event.variant, event.params, event.rejected, event.attrs)
            case Promoted():
                if event.variant in self.searcher:
                    self.searcher.resume(event.variant)
            case Reported():
                trial = run.trials[event.trial]
                if len(trial.reports) <= trial.rungs:
                    self._tell_waiting(trial.variant, halving)
            case TrialEnded():
                trial = run.trials[event.trial]
                if trial.state is State.FAILED:
                    self._tell_waiting(trial.variant, halving)
                self._tell_end(trial, run, halving)
            case StudyChanged():
                self._take_budget(halving)
        self._rungs = halving.budget.rungs

    def _take_budget(self, halving: SuccessiveHalving) -> None:
        """After the budget has grown, tell the searcher that complete architectures train on, or wait at the former last rung."""
        if halving.budget.rungs == self._rungs:
            return
        self.searcher.forget_attrs()
        for number, variant in halving.variants.items():
            if len(variant.means) == self._rungs and number in self.searcher:
                self.searcher.resume(number)
                self._tell_waiting(number, halving)

    def _tell_waiting(self, number: int, halving: SuccessiveHalving) -> None:
        """Tell the searcher when an architecture waits at a rung."""
        variant = halving.variants[number]
        if variant.waits and number in self.searcher:
            self.searcher.tell_waiting(number, [mean[0] for mean in variant.means])

    def _tell_end(self, trial: TrialResult, run: Run, halving: SuccessiveHalving) -> None:
        """Tell the searcher when all replicates of an architecture have ended; its values are the means over complete replicates.

        The architecture is COMPLETE when all replicates are, PRUNED when one of them is, and FAILED otherwise.
        """
        first = trial.variant * self._settings.replicates
        replicates = [run.trials.get(first + replicate) for replicate in range(self._settings.replicates)]
        ended = [other for other in replicates if other is not None and other.state is not State.RUNNING]
        if trial.variant not in self.searcher or len(ended) < len(replicates):
            return
        complete = [other for other in ended if other.state is State.COMPLETE]
        states = {other.state for other in ended}
        state = State.COMPLETE if states == {State.COMPLETE} else State.PRUNED if State.PRUNED in states else State.FAILED
        by_trial = [objective_values(self._study, other, other.search_reports[-1]) for other in complete]
        means = halving.variant_of(trial.number).means
        values = tuple(fmean(column) for column in zip(*by_trial, strict=True))
        self.searcher.tell(trial.variant, state, values, [mean[0] for mean in means])

    def _enqueued(self) -> Candidate | None:
        """The next enqueued candidate that has not begun."""
        return next((candidate for candidate in self._study.enqueued if candidate.key not in self._known), None)

    def _params_of(self, candidate: Candidate) -> Params | None:
        """The point of the space that a candidate is; None for one from outside."""
        params = self._space.params_of(candidate.spec, self._study.tuned_of(candidate))
        # A setting whose condition does not hold has the study's value, also where the candidate has another one.
        return params if params is not None and self._study.candidate(params).key == candidate.key else None

    def _rejects(self, params: Params) -> dict[str, float] | None:
        try:
            candidate = self._study.candidate(params)
        except SpecError:
            return {"spec": 1.0}
        violations = self._space.violations(candidate.spec)
        if violations:
            return violations
        return {} if candidate.key in self._known else None
