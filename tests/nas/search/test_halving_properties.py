"""What holds at the rungs in any order of arrival, with any failures, and after a restart at any point."""

import copy
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.halving import SuccessiveHalving
from nas.study.budget import BudgetSettings


@dataclass
class Play:
    """A search with scripted values, without proposals: everything that happened, and what follows from it."""

    budget: BudgetSettings
    total: int
    replicates: int
    objectives: int
    events: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        self.rungs = SuccessiveHalving(self.budget)
        self.busy, self.idle, self.ended = set(), set(), {}

    def values(self, trial, rung):
        rng = random.Random(f"{trial}, {rung}")
        # Few distinct values, so that there are ties.
        return tuple(round(rng.random(), 1) for _ in range(self.objectives))

    @property
    def exhausted(self):
        return len(self.rungs.variants) == self.total

    def apply(self, event):
        self.events.append(event)
        kind, number, *_ = event
        verdict = None
        if kind == "begin":
            trials = range(number * self.replicates, (number + 1) * self.replicates)
            self.rungs.add(number, trials)
            self.idle |= set(trials)
        elif kind == "report":
            verdict = self.rungs.report(number, event[2], self.values(number, event[2]))
            if event[2] == self.budget.rungs - 1:
                self.ended[number] = "complete"
                self.busy.discard(number)
        elif kind == "fail":
            self.ended[number] = "failed"
            self.busy.discard(number)
            verdict = self.rungs.remove(number)
        elif kind == "promote":
            verdict = self.rungs.promote(number)
        if verdict:
            self.idle |= set(verdict.released) - self.busy
            self.stop(verdict.stopped)
        self.busy -= {trial for trial in self.busy if not self.rungs.may_train(trial)}
        self.stop(self.rungs.stop_unpromotable(self.exhausted).stopped)

    def stop(self, trials):
        for trial in trials:
            assert trial not in self.ended
            self.ended[trial] = "pruned"
            self.idle.discard(trial)
            self.busy.discard(trial)

    def reached(self, trial):
        return self.rungs.variant_of(trial).reported[trial]

    def hand_out(self):
        """Something for a free worker; whether there was anything."""
        if not self.idle:
            if (promoted := self.rungs.promotion(self.exhausted)) is not None:
                self.apply(("promote", promoted.number))
            elif not self.exhausted:
                self.apply(("begin", len(self.rungs.variants)))
        if not self.idle:
            return False
        trial = min(self.idle)
        self.idle.discard(trial)
        self.busy.add(trial)
        return True

    def run(self, rng, workers, failures):
        while True:
            while len(self.busy) < workers and self.hand_out():
                pass
            if not self.busy:
                return
            trial = rng.choice(sorted(self.busy))
            if rng.random() < failures:
                self.apply(("fail", trial))
            else:
                self.apply(("report", trial, self.reached(trial)))


@st.composite
def plays(draw, modes=("stop", "promote", "none"), failures=True):
    rungs, mode = draw(st.integers(1, 5)), draw(st.sampled_from(modes))
    how = {}
    if mode != "none" and rungs > 2:
        how["brackets"] = draw(st.integers(1, 2))
        how["grace_rungs"] = draw(st.integers(0, rungs - 1 - how["brackets"]))
    unit = draw(st.sampled_from(["max", "steps", "images"]))
    budget = BudgetSettings(**{unit: 10**6}, rungs=rungs, reduction_factor=draw(st.integers(2, 4)), mode=mode, **how)
    play = Play(budget, draw(st.integers(1, 25)), draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 3)))
    share = draw(st.sampled_from([0.0, 0.05, 0.3])) if failures else 0.0
    play.run(random.Random(draw(st.integers(0, 10**6))), draw(st.integers(1, 6)), share)
    return play


EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True)


@EXAMPLES
@given(plays())
def test_every_trial_ends_and_none_skips_or_repeats_a_rung(play):
    assert len(play.ended) == play.total * play.replicates
    seen = {}
    for kind, number, *rest in play.events:
        if kind == "report":
            assert rest[0] == seen.get(number, -1) + 1
            seen[number] = rest[0]
    for trial, how in play.ended.items():
        if how == "complete":
            assert seen[trial] == play.budget.rungs - 1
        elif how == "pruned":
            assert 0 <= seen[trial] < play.budget.rungs - 1


@EXAMPLES
@given(plays())
def test_a_value_at_a_rung_never_changes_and_is_of_that_rung_alone(play):
    replicates = play.replicates
    for variant in play.rungs.variants.values():
        for trial, values in variant.values.items():
            assert values == [play.values(trial, rung) for rung in range(len(values))]
        for rung, mean in enumerate(variant.means):
            # Over the replicates that were there when all had reached the rung: each of them has a value for it.
            there = [play.values(t, rung) for t, values in variant.values.items() if len(values) > rung]
            assert len(there) <= replicates
            for column, found in enumerate(mean):
                assert min(v[column] for v in there) - 1e-12 <= found <= max(v[column] for v in there) + 1e-12


@EXAMPLES
@given(plays(failures=False))
def test_the_best_of_a_rung_is_never_stopped_there(play):
    for bracket in range(play.budget.brackets):
        of_bracket = [v for v in play.rungs.variants.values() if v.number % play.budget.brackets == bracket]
        for rung in range(play.budget.rungs - 1):
            there = [v for v in of_bracket if len(v.means) > rung]
            if there:
                best = min(v.means[rung][0] for v in there)
                assert any(len(v.means) > rung + 1 for v in there if v.means[rung][0] == best)


@EXAMPLES
@given(plays(modes=("promote",), failures=False))
def test_promotion_takes_the_final_best_and_at_most_twice_as_many(play):
    budget = play.budget
    for bracket in range(budget.brackets):
        for rung in range(budget.grace_rungs + bracket, budget.rungs - 1):
            order = play.rungs.order(bracket, rung)
            share = max(1, len(order) // budget.reduction_factor)
            went_on = {number for number in order if len(play.rungs.variants[number].means) > rung + 1}
            assert set(order[:share]) <= went_on, "whatever the order of arrival"
            assert len(went_on) <= 2 * share


@EXAMPLES
@given(plays(), st.data())
def test_after_a_restart_the_decisions_are_those_without_one(play, data):
    kept = data.draw(st.integers(0, len(play.events)))
    again = Play(play.budget, play.total, play.replicates, play.objectives)
    for event in play.events[:kept]:
        again.apply(event)
    for event in play.events[kept:]:
        if event[0] == "promote":
            assert again.rungs.promotion(again.exhausted).number == event[1]
        elif event[0] in ("report", "fail"):
            assert again.rungs.may_train(event[1])
        again.apply(event)
    assert again.ended == play.ended
    assert {n: vars(v) for n, v in again.rungs.variants.items()} == {n: vars(v) for n, v in play.rungs.variants.items()}


@EXAMPLES
@given(plays(modes=("promote",), failures=False))
def test_one_worker_and_many_promote_the_same_best(play):
    if play.budget.rungs < 2:
        return
    alone = Play(play.budget, play.total, play.replicates, play.objectives)
    alone.run(random.Random(0), 1, 0.0)
    for bracket in range(play.budget.brackets):
        rung = play.budget.grace_rungs + bracket
        orders = [p.rungs.order(bracket, rung) for p in (alone, play)]
        assert orders[0] == orders[1], "all stand at the first judged rung in the end"
        share = max(1, len(orders[0]) // play.budget.reduction_factor)
        for p in (alone, play):
            assert all(len(p.rungs.variants[number].means) > rung + 1 for number in orders[0][:share])


def test_a_judgement_does_not_reach_back():
    """A trial that arrives later than another is not judged with what the other reports on higher rungs."""
    rungs = SuccessiveHalving(BudgetSettings(max=100, rungs=3))
    for variant in range(2):
        rungs.add(variant, [variant])
    rungs.report(0, 0, (0.5,))
    before = copy.deepcopy(rungs._at[0][0])
    rungs.report(0, 1, (0.1,))
    assert rungs._at[0][0] == before
    with pytest.raises(ValueError, match="does not wait"):
        rungs.promote(1)
