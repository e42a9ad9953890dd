"""Which recorded architecture a sampler has tried next."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nas.replay import order as arrival
from nas.replay import simulator as replays
from nas.replay.curves import Recorded
from nas.replay.simulator import Arrival, Rules, replay_run
from nas.study.load import load_study
from tests.nas.recorded import ALL_FULLY, TWO, noisy, of_losses


@pytest.fixture
def orders(monkeypatch):
    """The orders that replays were made with."""
    made = []

    def kept(*args):
        made.append(arrival.order_of(*args))
        return made[-1]

    monkeypatch.setattr(replays, "order_of", kept)
    return made


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_samplers_are_told_of_true_states(study, orders, mode):
    record = noisy(study, 24, 0.5)
    found = replay_run(record, Rules(mode), Arrival("tpe", workers=2, repeats=1))
    (outcome,) = found.outcomes
    asked = orders[0]._searcher.study().trials
    told = {
        json.dumps(t.params, sort_keys=True): t
        for t in asked
        if t.state.name != "FAIL" and not (t.state.name == "PRUNED" and t.constraints)
    }
    assert len(told) == 24, "besides them only proposals that were moved"
    for place, n in zip(outcome.tried, outcome.reached, strict=True):
        curve = record.curves[place]
        trial = told[json.dumps(curve.params, sort_keys=True)]
        assert trial.state.name == ("COMPLETE" if n == 5 else "PRUNED")
        assert n < 5 or trial.values == [curve.losses[-1]]
        assert trial.intermediate_values == dict(enumerate(curve.losses[:n]))


@pytest.mark.parametrize("sampler", ["nsga2", "gp"])
def test_every_sampler_tries_every_architecture_once(tiny_file, sampler):
    study = load_study(tiny_file, [*ALL_FULLY, *TWO])
    record = noisy(study, 14, 0.5)
    gflops = np.random.default_rng(0).uniform(size=14).tolist()
    both = [replace(c, values=(tuple((v[0], g) for v in c.values[0]),)) for c, g in zip(record.curves, gflops, strict=True)]
    found = replay_run(Recorded(study, tuple(both)), Rules("none"), Arrival(sampler, repeats=1))
    assert sorted(found.outcomes[0].tried) == list(range(14))


def test_a_proposal_is_moved_to_the_nearest_left(study):
    record = noisy(study, 20, 0.5)
    order = arrival.Proposed(record, "random", 0)
    places = [order.next(number) for number in range(20)]
    assert sorted(places) == list(range(20))
    space = arrival.RecordedSpace(study, {place: curve.params for place, curve in enumerate(record.curves)})
    assert space.rejects(record.curves[7].params) is None
    assert space.take(record.curves[7].params) == 7
    assert space.rejects(record.curves[7].params) == {}, "a repetition breaks no constraint"
    assert "gflops" in space.rejects({"channels": 32, "heads": 1, "feed_forward.kind": "conv", "feed_forward.ratio": 4.0})
    assert 7 not in [space.take(space.points(np.random.default_rng(0), 0).params(0)) for _ in range(19)]


def test_architectures_from_outside_the_space_go_first(study):
    record = noisy(study, 12, 0.5)
    outside = [replace(c, params=None) if place in (4, 9) else c for place, c in enumerate(record.curves)]
    found = replay_run(Recorded(study, tuple(outside)), Rules("promote"), Arrival("tpe", repeats=2))
    for outcome in found.outcomes:
        assert outcome.tried[:2] == (4, 9)
        assert sorted(outcome.tried) == list(range(12))


def test_a_sampler_that_learns_needs_fewer_trials(study):
    record = noisy(study, 120, 0.0)
    space = {"heads": [1, 2], "channels": [8, 16, 24, 32]}
    wanted = [abs(c.params["feed_forward.ratio"] - 2) + 0.3 * space["channels"].index(c.params["channels"]) for c in record.curves]
    learnable = of_losses(study, np.array(wanted)[:, None] + 1 / np.arange(1, 6))
    chance, learnt = (replay_run(learnable, Rules("none"), Arrival(kind, trials=25, repeats=6)) for kind in ("random", "tpe"))
    assert learnt.regret.mean < 0.5 * chance.regret.mean
