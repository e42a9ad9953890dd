from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from nas.search.halving import Decision, SuccessiveHalving
from nas.search.pruning import RULES, StopRule
from nas.stats.pareto import by_front, fronts
from nas.study.budget import BudgetSettings
from nas.study.choices import WAITS


def rungs_of(rungs, reduction_factor=2, **how):
    return SuccessiveHalving(
        BudgetSettings(max=reduction_factor ** (rungs - 1) * 10, rungs=rungs, reduction_factor=reduction_factor, **how)
    )


def begun(rungs, count, replicates=1):
    for variant in range(count):
        rungs.add(variant, range(variant * replicates, (variant + 1) * replicates))
    return rungs


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_stop_decides_as_rays_asha_on_clean_curves(reduction_factor, seed):
    rng = np.random.default_rng(seed)
    rungs, trials = 4, 30
    budgets = [reduction_factor**k for k in range(rungs)]
    asha = AsyncHyperBandScheduler(
        time_attr="step", metric="loss", mode="min", max_t=budgets[-1], grace_period=1, reduction_factor=reduction_factor
    )
    ours = begun(rungs_of(rungs, reduction_factor), trials)
    curves = rng.uniform(0.1, 1.0, trials)[:, None] + 1 / np.array(budgets)[None] + 0.02 * rng.normal(size=(trials, rungs))
    fakes = [SimpleNamespace(trial_id=str(i)) for i in range(trials)]
    for fake in fakes:
        asha.on_trial_add(None, fake)
    alive = [(trial, 0) for trial in range(trials)]
    while alive:  # in any order of arrival
        trial, rung = alive.pop(rng.integers(len(alive)))
        result = {"step": budgets[rung], "loss": curves[trial, rung], "training_iteration": budgets[rung]}
        theirs = asha.on_trial_result(None, fakes[trial], result) == TrialScheduler.CONTINUE
        ours.report(trial, rung, (curves[trial, rung],))
        assert ours.may_train(trial) == theirs
        if theirs:
            alive.append((trial, rung + 1))


def test_nothing_is_reported_twice_or_skipped():
    rungs = begun(rungs_of(3), 1)
    rungs.report(0, 0, (1.0,))
    for rung in (0, 2):
        with pytest.raises(ValueError, match="its next is 1"):
            rungs.report(0, rung, (1.0,))


def test_nothing_goes_on_from_the_last_rung():
    rungs = begun(rungs_of(1), 1)
    assert rungs.report(0, 0, (1.0,)) == Decision()
    assert not rungs.may_train(0)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_fronts_are_what_their_definition_says(objectives):
    def dominates(a, b):
        return (a <= b).all() and (a < b).any()

    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.integers(0, rng.integers(2, 8), size=(rng.integers(1, 14), objectives)).astype(float)
        left = list(range(len(values)))
        for front in fronts(values):
            assert set(front) == {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
            left = [i for i in left if i not in front]
        assert not left


def test_order_by_fronts_and_crowding():
    order = by_front(np.array([[1, 5], [2, 2], [5, 1], [3, 3], [2, 6], [1.9, 2.1]]))
    # The ends of the first front, then its middle from sparse to crowded, then what they dominate.
    assert order[:2] == [0, 2]
    assert set(order[2:4]) == {1, 5}
    assert order[4:] == [4, 3]


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_order_of_objectives_decides_nothing_but_ties(objectives):
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.uniform(size=(12, objectives))
        for columns in permutations(range(1, objectives)):
            assert by_front(values[:, [0, *columns]]) == by_front(values)


@pytest.mark.parametrize(("objectives", "goes_on"), [(2, False), (3, True)])
def test_what_is_best_by_a_third_objective_goes_on(objectives, goes_on):
    rungs = begun(rungs_of(2), 4)
    for trial, values in enumerate([(0.10, 0.03, 3.0), (0.20, 0.06, 3.0), (0.15, 0.05, 3.0), (0.30, 0.07, 1.0)]):
        rungs.report(trial, 0, values[:objectives])
    assert rungs.may_train(0)
    assert rungs.may_train(3) == goes_on


def test_two_objectives_keep_the_front_and_stop_what_it_dominates():
    rungs = begun(rungs_of(2), 5)

    def goes_on(trial, values):
        rungs.report(trial, 0, values)
        return rungs.may_train(trial)

    assert goes_on(0, (0.10, 0.03))
    assert goes_on(1, (0.05, 0.05)), "the best loss goes on whatever it costs"
    assert not goes_on(2, (0.20, 0.06)), "worse than both in both"
    goes_on(3, (0.15, 0.01))
    assert not goes_on(4, (0.16, 0.04))


def test_grace_lets_all_pass_its_rungs():
    rungs = begun(rungs_of(3, grace_rungs=1), 2)
    rungs.report(0, 0, (1.0,))
    rungs.report(1, 0, (9.0,))
    assert rungs.may_train(1), "nothing is judged at the first rung"
    rungs.report(0, 1, (1.0,))
    assert rungs.report(1, 1, (9.0,)).stopped == (1,)


def test_each_bracket_is_judged_by_itself_one_rung_later():
    rungs = begun(rungs_of(3, brackets=2), 4)
    for trial, loss in enumerate([1.0, 5.0, 2.0, 9.0]):
        rungs.report(trial, 0, (loss,))
    assert [rungs.may_train(trial) for trial in range(4)] == [True, True, False, True], "bracket 1 is not judged at rung 0"
    rungs.report(1, 1, (5.0,))
    assert rungs.may_train(1), "the first of its bracket, whatever the other one has"
    rungs.report(3, 1, (9.0,))
    assert not rungs.may_train(3)


def test_mode_none_judges_nowhere():
    rungs = begun(rungs_of(3, mode="none"), 2)
    for rung in range(2):
        for trial, loss in enumerate([1.0, 9.0]):
            rungs.report(trial, rung, (loss,))
            assert rungs.may_train(trial)


def test_replicates_are_judged_together_by_their_mean():
    rungs = begun(rungs_of(2), 2, replicates=2)
    rungs.report(0, 0, (1.0,))
    assert not rungs.may_train(0), "it waits for the other seed"
    assert rungs.report(1, 0, (3.0,)).released == (0, 1)
    assert rungs.report(2, 0, (0.5,)) == Decision()
    assert rungs.report(3, 0, (9.0,)).stopped == (2, 3), "a lucky seed does not carry its architecture"


def test_a_replicate_that_fails_holds_nobody_up():
    rungs = begun(rungs_of(2), 1, replicates=3)
    rungs.report(0, 0, (1.0,))
    rungs.report(1, 0, (2.0,))
    assert rungs.remove(2).released == (0, 1)
    assert rungs.variants[0].means == [(1.5,)]


def test_what_failed_is_compared_with_no_longer():
    rungs = begun(rungs_of(3), 2)
    rungs.report(0, 0, (1.0,))
    rungs.remove(0)
    rungs.report(1, 0, (2.0,))
    assert rungs.may_train(1)


def test_promotion_waits_until_enough_stand_at_a_rung_then_takes_the_best():
    rungs = begun(rungs_of(3, mode="promote"), 4)
    rungs.report(0, 0, (5.0,))
    assert not rungs.may_train(0)
    assert rungs.promotion(exhausted=False) is None, "one of one is no comparison"
    rungs.report(1, 0, (4.0,))
    assert rungs.promotion(exhausted=False).number == 1
    assert rungs.promote(1).released == (1,)
    assert rungs.promotion(exhausted=False) is None, "half of two have gone on"
    rungs.report(2, 0, (3.0,))
    rungs.report(3, 0, (2.0,))
    assert rungs.promotion(exhausted=False).number == 3
    rungs.promote(3)
    assert rungs.promotion(exhausted=False) is None, "not before all are in"
    # Nothing more comes to rung 0: trial 2 is among the best two of four, though two have gone on.
    assert rungs.promotion(exhausted=True).number == 2
    assert rungs.stop_unpromotable(exhausted=False).stopped == ()
    rungs.promote(2)
    for trial in (1, 2, 3):
        assert rungs.stop_unpromotable(exhausted=True).stopped == (), "those ahead may still fail"
        rungs.report(trial, 1, (float(trial),))
    assert rungs.stop_unpromotable(exhausted=True).stopped == (0,)


def test_promotion_prefers_the_highest_rung():
    rungs = begun(rungs_of(3, mode="promote"), 8)
    for trial in range(4):
        rungs.report(trial, 0, (float(trial),))
    for trial in (0, 1):
        rungs.promote(trial)
        rungs.report(trial, 1, (float(trial),))
    for trial in range(4, 8):
        rungs.report(trial, 0, (float(trial - 10),))
    assert rungs.promotion(exhausted=False).number == 0
    rungs.promote(0)
    assert rungs.promotion(exhausted=False).number == 4


def test_the_best_of_a_rung_goes_on_even_alone():
    rungs = begun(rungs_of(2, reduction_factor=4, mode="promote"), 1)
    rungs.report(0, 0, (1.0,))
    assert rungs.promotion(exhausted=True).number == 0


def test_a_larger_budget_judges_what_stood_at_the_last_rung():
    larger = BudgetSettings(max=40, rungs=3)
    for mode, released, stopped in (("stop", (1,), (0,)), ("none", (0, 1), ()), ("promote", (), ())):
        rungs = begun(rungs_of(2, mode=mode), 2)
        for rung in range(2):
            for trial, loss in ((0, 2.0), (1, 1.0)):
                if rung == 0 or rungs.may_train(trial):
                    rungs.report(trial, rung, (loss,))
            while (variant := rungs.promotion(exhausted=False)) is not None:
                rungs.promote(variant.number)
        if mode == "promote":
            continue
        verdict = rungs.extend(larger.model_copy(update={"mode": mode}))
        assert (verdict.released, verdict.stopped) == (released, stopped)
        assert rungs.may_train(1)


def test_a_larger_budget_promotes_the_best_of_the_last_rung():
    rungs = begun(rungs_of(1, mode="promote"), 2)
    for trial, loss in ((0, 2.0), (1, 1.0)):
        rungs.report(trial, 0, (loss,))
    rungs.extend(BudgetSettings(max=20, rungs=2, mode="promote"))
    assert rungs.promotion(exhausted=True).number == 1
    rungs.promote(1)
    rungs.report(1, 1, (0.5,))
    assert rungs.stop_unpromotable(exhausted=True).stopped == (0,)


def test_what_may_wait_is_what_the_rules_promote():
    waiting = {mode for mode, rule in RULES.items() if type(rule).promotion is not StopRule.promotion}
    assert {mode for mode, waits in WAITS.items() if waits} == waiting == {"promote"}
    assert WAITS.keys() == RULES.keys()


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_the_share_that_is_kept_is_said_once(monkeypatch, mode):
    monkeypatch.setattr(BudgetSettings, "kept_one_in", property(lambda budget: 4))
    budget = BudgetSettings(max=800, rungs=2, reduction_factor=2, mode=mode)
    assert budget.milestones == (400, 800), "how far the rungs are apart is another matter"
    assert budget.share_promoted(0) == 1 / 4
    halving = SuccessiveHalving(budget)
    assert halving.best_count(list(range(8))) == 2
    for number in range(9):
        halving.add(number, [number])
    for number in range(8):
        halving.report(number, 0, (float(number),))
    if mode == "promote":
        for best in (0, 1):
            assert halving.promotion(exhausted=False).number == best
            halving.promote(best)
        assert halving.promotion(exhausted=False) is None
    else:
        assert halving.report(8, 0, (1.8,)).stopped == (8,), "the best quarter of 0 to 7 ends at 1.75"
