"""Replays decide as the search itself does, and count what they spend."""

import numpy as np
import pytest

from nas.replay.curves import recorded
from nas.replay.order import Order
from nas.replay.simulator import Arrival, Rules, candidates, replay_run
from nas.runs.records import State
from nas.runs.run import read_run
from nas.search.optuna_searcher import OptunaSearcher
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.recorded import ALL_FULLY, TWO, VARIED, noisy, of_losses, seeded_loss
from tests.nas.scripted import searched

MAXIMISED = ["search.objectives=[{metric: val_loss}, {metric: params_m, direction: maximize}]"]
SEARCHES = {
    "stop": (Rules(), []),
    "promote": (Rules("promote"), []),
    "stop, grace": (Rules(grace_rungs=2), []),
    "promote, grace": (Rules("promote", grace_rungs=1), []),
    "stop, brackets": (Rules(brackets=3), []),
    "promote, brackets": (Rules("promote", grace_rungs=1, brackets=2), []),
    "stop, replicates": (Rules(), ["search.replicates=3"]),
    "promote, replicates, brackets": (Rules("promote", brackets=2), ["search.replicates=2"]),
    # Of this seed's architectures, a promotion taken a moment later than at the report would come too late for one.
    "promote, replicates": (Rules("promote"), ["search.replicates=3", "search.sampler.seed=8"]),
    "stop, two objectives": (Rules(), TWO),
    "promote, two objectives": (Rules("promote"), TWO),
    "stop, steps": (Rules("stop"), ["budget={steps: 48, rungs: 5}", "finish=null"]),
    "promote, images": (Rules("promote"), ["budget={images: 160, rungs: 5}", "finish=null"]),
    "promote, one maximised, replicates": (Rules("promote"), [*MAXIMISED, "search.replicates=2"]),
}


def heard(monkeypatch, kind):
    """What is told to an order, or to the sampler of a search, from now on; a random one does not care."""
    said = []
    for name in ("tell_waiting", "resume", "tell"):

        def told(self, number, *facts, name=name):
            said.append((name, number, *(list(one) if isinstance(one, tuple) else one for one in facts)))

        monkeypatch.setattr(kind, name, told)
    return said


@pytest.mark.parametrize(("rules", "changes"), SEARCHES.values(), ids=SEARCHES.keys())
def test_a_replay_in_the_recorded_order_decides_as_the_search_did(tiny_file, tmp_path, monkeypatch, rules, changes):
    how = [f"budget.mode={rules.mode}", f"budget.grace_rungs={rules.grace_rungs}", f"budget.brackets={rules.brackets}"]
    searched(load_study(tiny_file, [*VARIED, *changes, "budget.mode=none"]), tmp_path / "full", loss=seeded_loss)
    full = read_run(tmp_path / "full")
    record, study = recorded(full), load_study(tiny_file, [*VARIED, *changes, *how])
    in_search, in_replay = heard(monkeypatch, OptunaSearcher), heard(monkeypatch, Order)
    for workers in (1, 3):
        searched(study, tmp_path / str(workers), workers=workers, loss=seeded_loss)
        run = read_run(tmp_path / str(workers))
        trials = run.trials.values()
        assert [trial.spec.digest for trial in full.trials.values()] == [trial.spec.digest for trial in trials]
        found = replay_run(record, rules, Arrival("recorded", workers=workers))
        assert found.budget == study.budget
        (outcome,) = found.outcomes
        reached = np.repeat(outcome.reached, study.search.replicates).tolist()
        assert reached == [len(trial.reports) for trial in trials]
        assert [n == 5 for n in reached] == [trial.state is State.COMPLETE for trial in trials]
        assert 5 in reached
        assert min(reached) < 5
        assert outcome.macs == sum(trial.reports[-1].macs for trial in trials)
        winner = np.mean([trial.val_loss for trial in trials if trial.variant == run.best()[0].variant])
        assert outcome.regret == pytest.approx(winner - record.best, abs=1e-12)
    assert in_replay == in_search
    told = {"tell"} if rules.mode == "stop" else {"tell", "tell_waiting", "resume"}
    assert {"tell"} <= {name for name, *_ in in_replay} <= told


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_training_all_fully_spends_all_and_regrets_nothing(study, kind):
    found = replay_run(noisy(study, 20, 0.3), Rules("none"), Arrival(kind, workers=3, repeats=3))
    assert found.share.mean == 1
    assert found.regret.mean == 0
    assert found.kept == 1
    assert [rung.reported.mean for rung in found.rungs] == [20] * 5


@pytest.mark.parametrize("rules", [Rules(), Rules("promote"), Rules("promote", brackets=2), Rules("stop", 4), Rules("promote", 4)])
def test_curves_that_never_cross_lose_nothing(study, rules):
    record = noisy(study, 30, 0.0)
    found = replay_run(record, rules, Arrival(workers=4, repeats=10))
    assert found.regret.mean == 0
    assert found.kept == 1
    assert found.share.mean < 0.7
    for rung in found.rungs:
        assert rung.agreement.tau == pytest.approx(1)
        assert rung.agreement.low == pytest.approx(1)
        assert rung.top_regret == 0


@pytest.mark.parametrize("mode", ["stop", "promote"])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_spent_is_counted(study, mode, sampler):
    record = noisy(study, 25, 2.0, seed=1)
    stretches = np.diff([0, *study.budget.milestones])
    found = replay_run(record, Rules(mode, grace_rungs=1), Arrival(sampler, workers=3, repeats=4))
    assert found.regret.mean > 0, "with such noise the best is lost now and then"
    assert found.kept < 1
    for outcome in found.outcomes:
        assert sorted(outcome.tried) == list(range(25))
        assert min(outcome.reached) == 2, "the first rung judges nobody, the second stops some"
        assert outcome.macs == sum(stretches[:n].sum() for n in outcome.reached)
        assert outcome.macs < record.full_macs
        best = min(record.curves[place].losses[-1] for place, n in zip(outcome.tried, outcome.reached, strict=True) if n == 5)
        assert outcome.regret == best - record.best
    reported = [np.mean([sum(n > rung for n in one.reached) for one in found.outcomes]) for rung in range(5)]
    assert [rung.reported.mean for rung in found.rungs] == pytest.approx(reported)
    assert found.macs.mean == pytest.approx(found.share.mean * record.full_macs)
    spent = [one.macs / record.full_macs for one in found.outcomes]
    assert (found.share.mean, found.share.sd) == pytest.approx((np.mean(spent), np.std(spent, ddof=1)))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_equal_seeds_give_equal_replays(study, sampler):
    record = noisy(study, 20, 0.5)
    first, again, other = (
        replay_run(record, Rules("promote"), Arrival(sampler, workers=2, repeats=2, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.outcomes != other.outcomes
    assert first.outcomes[0].tried != first.outcomes[1].tried


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_a_rung_of_grace_decides_as_one_rung_fewer_does(study, mode):
    record = noisy(study, 30, 1.0)
    order = Arrival(repeats=5)
    graced, fewer = replay_run(record, Rules(mode, grace_rungs=2), order), replay_run(record, Rules(mode, rungs=3), order)
    assert [one.macs for one in graced.outcomes] == [one.macs for one in fewer.outcomes]
    assert graced.regret == fewer.regret


def test_workers_share_the_time_that_was_recorded(study):
    seconds = np.arange(1, 9)[:, None] * np.arange(1, 6) / 5
    record = of_losses(study, np.ones((8, 5)), seconds)
    taken = {
        workers: replay_run(record, Rules("none"), Arrival("recorded", workers=workers)).outcomes[0].end
        for workers in (1, 2, 3, 20)
    }
    # Two workers: 1+3+5+7 and 2+4+6+8; three: 1+4+7, 2+5+8, 3+6.
    assert taken == pytest.approx({1: 36, 2: 20, 3: 15, 20: 8})
    by_compute = replay_run(record, Rules("none"), Arrival("recorded", workers=2, clock="compute"))
    assert by_compute.outcomes[0].end == 4 * study.budget.max
    assert by_compute.hours is None


# The rungs.


def test_another_reduction_takes_the_recorded_rungs_that_fit(study):
    record = noisy(study, 12, 0.5)
    milestones = study.budget.milestones
    for reduction_factor, used in {2: (0, 1, 2, 3, 4), 4: (0, 2, 4), 8: (1, 4), 32: (4,)}.items():
        found = replay_run(record, Rules(reduction_factor=reduction_factor), Arrival(repeats=1))
        assert found.budget.milestones == tuple(milestones[rung] for rung in used)
        assert [rung.agreement for rung in found.rungs] == [record.agreements[rung] for rung in used]
    assert replay_run(record, Rules(reduction_factor=4, rungs=2), Arrival(repeats=1)).budget.milestones == milestones[2::2]


@pytest.mark.parametrize(
    ("rules", "order", "sentence"),
    [
        (
            Rules(reduction_factor=3),
            Arrival(),
            "reduction 3 does not fit the run, whose rungs are each the next divided by 2; take 2",
        ),
        (Rules(reduction_factor=4, rungs=4), Arrival(), "4 rungs of reduction 4 are more than the run has: of its 5, 3 fit"),
        (Rules("none", grace_rungs=1), Arrival(), "mode none judges nowhere"),
        (Rules(grace_rungs=4), Arrival(), "grace_rungs 4 and brackets 1 leave the last bracket without a rung"),
        (Rules(), Arrival(trials=13), "13 trials are more than the 12 recorded"),
    ],
)
def test_rules_that_do_not_fit_are_refused(study, rules, order, sentence):
    with pytest.raises(ToolkitError, match=sentence):
        replay_run(noisy(study, 12, 0.5), rules, order)


def test_trials_are_whole_architectures(tiny_file, tmp_path):
    record = recorded(searched(load_study(tiny_file, [*ALL_FULLY, "search.replicates=2"]), tmp_path / "run").run)
    assert replay_run(record, Rules(), Arrival(trials=6, repeats=1)).trials == 6
    assert len(replay_run(record, Rules(), Arrival(trials=6, repeats=1)).outcomes[0].tried) == 3
    with pytest.raises(ToolkitError, match="7 trials are no whole number of architectures with 2 replicates"):
        replay_run(record, Rules(), Arrival(trials=7))


def test_the_candidates_are_those_that_fit(study, tiny_file):
    found = candidates(noisy(study, 8, 0.5))
    assert found[0] == Rules("none", 2)
    assert found[1:] == [
        Rules(mode, reduction_factor, None, grace_rungs)
        for mode in ("stop", "promote")
        for reduction_factor in (2, 4)
        for grace_rungs in (0, 1)
    ]
    of_three = load_study(tiny_file, [*ALL_FULLY, "budget.rungs=2", "budget.reduction_factor=3"])
    assert candidates(noisy(of_three, 8, 0.5)) == [Rules("none", 3), Rules("stop", 3), Rules("promote", 3)]
    with pytest.raises(ToolkitError, match="do not fit the run's 1 rungs"):
        candidates(noisy(load_study(tiny_file, [*ALL_FULLY, "budget.rungs=1"]), 8, 0.5))
