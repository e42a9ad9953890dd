from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from nas.rungs import Rungs, by_front


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_decisions_equal_rays_asha_on_clean_curves(reduction, seed):
    rng = np.random.default_rng(seed)
    rungs, trials = 4, 30
    budgets = [reduction**k for k in range(rungs)]
    asha = AsyncHyperBandScheduler(
        time_attr="step", metric="loss", mode="min", max_t=budgets[-1], grace_period=1, reduction_factor=reduction
    )
    ours = Rungs(rungs, reduction)
    curves = rng.uniform(0.1, 1.0, trials)[:, None] + 1 / np.array(budgets)[None] + 0.02 * rng.normal(size=(trials, rungs))
    fakes = [SimpleNamespace(trial_id=str(i)) for i in range(trials)]
    for fake in fakes:
        asha.on_trial_add(None, fake)
    alive = [(trial, 0) for trial in range(trials)]
    while alive:  # in any order of arrival
        trial, rung = alive.pop(rng.integers(len(alive)))
        result = {"step": budgets[rung], "loss": curves[trial, rung], "training_iteration": budgets[rung]}
        theirs = asha.on_trial_result(None, fakes[trial], result) == TrialScheduler.CONTINUE
        goes_on = ours.judge(trial, rung, (curves[trial, rung],))
        assert goes_on == theirs
        if goes_on:
            alive.append((trial, rung + 1))


def test_values_that_are_not_finite_never_go_on_and_are_not_compared_with():
    rungs = Rungs(2, 2)
    assert not rungs.judge(0, 0, (float("nan"),))
    assert not rungs.judge(1, 0, (float("inf"), 1.0))
    assert rungs.recorded[0] == {}
    assert rungs.judge(2, 0, (5.0,))


def test_nothing_is_reported_twice_or_skipped():
    rungs = Rungs(3, 2)
    rungs.judge(0, 0, (1.0,))
    with pytest.raises(ValueError, match="twice"):
        rungs.judge(0, 0, (1.0,))
    with pytest.raises(ValueError, match="skipped rung 1"):
        rungs.judge(0, 2, (1.0,))


def test_nothing_goes_on_from_the_last_rung():
    assert not Rungs(1, 2).judge(0, 0, (1.0,))


def test_order_by_fronts_and_crowding():
    values = np.array([[1, 5], [2, 2], [5, 1], [3, 3], [2, 6], [1.9, 2.1]])
    order = by_front(values)
    # The ends of the first front, then its middle from sparse to crowded, then what they dominate.
    assert order[:2] == [0, 2]
    assert set(order[2:4]) == {1, 5}
    assert order[4:] == [4, 3]


def test_two_objectives_keep_the_front_and_stop_what_it_dominates():
    rungs = Rungs(2, 2)
    assert rungs.judge(0, 0, (0.10, 0.03))
    assert rungs.judge(1, 0, (0.05, 0.05)), "the best loss goes on whatever it costs"
    assert not rungs.judge(2, 0, (0.20, 0.06)), "worse than both in both"
    rungs.judge(3, 0, (0.15, 0.01))
    assert not rungs.judge(4, 0, (0.16, 0.04))


@pytest.mark.parametrize("seed", range(3))
def test_the_best_loss_at_a_rung_always_goes_on(seed):
    rng = np.random.default_rng(seed)
    for objectives in (1, 2):
        rungs, best = Rungs(2, 4), np.inf
        for trial in range(60):
            values = tuple(rng.uniform(size=objectives).tolist())
            goes_on = rungs.judge(trial, 0, values)
            if values[0] < best:
                best = values[0]
                assert goes_on
