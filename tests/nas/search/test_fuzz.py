"""Random searches: modes, replicates, brackets, failures, lost workers, restarts at torn ledgers, top-ups and raised budgets."""

import copy
import random
from collections import Counter

import numpy as np
import pytest
import yaml

from nas.runs.layout import LEDGER
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import Failure, State
from nas.search.controller import Search
from nas.study.load import load_study
from tests.conftest import TINY
from tests.nas.scripted import Counting, report

SMALL = {"heads": [1, 2], "attention.similarity": ["dot", "cosine"], "feed_forward.kind": ["mlp", "conv"]}
LARGE = {
    "channels": [8, 16, 24, 32],
    "heads": [1, 2],
    "feed_forward.kind": ["mlp", "conv"],
    "feed_forward.ratio": {"float": [1, 4]},
}
ENQUEUED = [{}, {"heads": 2}, {"feed_forward.ratio": 5}, {"feed_forward.kind": "conv"}]


OBJECTIVES = [
    [{"metric": "val_loss"}],
    [{"metric": "val_loss"}, {"metric": "gflops"}],
    [{"metric": "params_m"}, {"metric": "val_loss"}],
    [{"metric": "gflops"}, {"metric": "val_loss"}, {"metric": "params_m", "direction": "maximize"}],
]


def random_study(rng):
    plain = copy.deepcopy(TINY)
    rungs, reduction_factor, mode = rng.randint(1, 4), rng.choice([2, 3]), rng.choice(["stop", "promote", "none"])
    unit = rng.choice(["max", "steps", "images"])
    plain["budget"] = {
        unit: amount(unit, rungs, reduction_factor),
        "rungs": rungs,
        "reduction_factor": reduction_factor,
        "mode": mode,
    }
    if mode != "none" and rungs > 2:
        brackets = rng.randint(1, 2)
        plain["budget"] |= {"brackets": brackets, "grace_rungs": rng.randint(0, rungs - 1 - brackets)}
    replicates = rng.choice([1, 1, 2, 3])
    plain["search"] = {
        "space": SMALL if rng.random() < 0.3 else LARGE,
        "constraints": {"gflops": {"max": 0.02}},
        "replicates": replicates,
        "trials": replicates * rng.randint(1, 10),
        "sampler": {"kind": rng.choice(["random", "random", "tpe", "nsga2"]), "population": 3},
        "objectives": rng.choice(OBJECTIVES),
        "enqueue": rng.sample(ENQUEUED, rng.randint(0, 2)),
    }
    plain["finish"] = None
    return plain


def amount(unit, rungs, reduction_factor):
    times = reduction_factor ** (rungs - 1)
    return {"max": f"{100 * times} MFLOPs", "steps": 2 * times, "images": 7 * times}[unit]


def changed_study(rng, plain):
    """More trials, fewer, or a larger budget, as a run may go on with."""
    search, budget = plain["search"], plain["budget"]
    if rng.random() < 0.4:
        search["trials"] += search["replicates"] * rng.randint(1, 6)
    if rng.random() < 0.2:
        search["trials"] = search["replicates"]
    if rng.random() < 0.4:
        budget["rungs"] += 1
        unit = next(iter(budget))
        budget[unit] = amount(unit, budget["rungs"], budget["reduction_factor"])
    if rng.random() < 0.3:
        search["enqueue"] = [*search["enqueue"], {"feed_forward.ratio": rng.choice([5, 6])}]


def loss(plan, rung):
    drawn = np.random.default_rng([int(plan.spec.digest, 16) % 2**32, plan.seed, rung]).uniform(0.1, 1)
    # Few distinct values, so that there are ties.
    return round(float(drawn), 1) + 1 / (rung + 1)


def carry_out(search, rng, shares, events):
    """Workers that fail, die and run out of memory at random; whether it ended by itself within so many events."""
    busy, workers = {}, rng.randint(1, 5)
    for _ in range(events):
        while len(busy) < workers and (plan := search.next_plan()) is not None:
            assert plan.number not in busy, "handed out to two workers"
            assert plan.reported == len(search.run.trials[plan.number].reports)
            busy[plan.number] = [plan, plan.reported]
        if not busy:
            return True
        number = rng.choice(sorted(busy))
        plan, rung = busy[number]
        what = rng.choices(["fail", "memory", "lost", "report"], [*shares, 1])[0]
        if what == "report":
            busy[number][1] += 1
            if search.report(report(plan, rung, loss(plan, rung))):
                continue
        elif what == "lost":
            search.lost(number, "node gone")
        else:
            search.fail(Failure(trial=number, reason=what, out_of_memory=what == "memory"))
        del busy[number]
    return False


def check(search, study):
    """What holds at any time: rungs in their order, a ledger that says it all, and progress that counts the same."""
    run = search.run
    for trial in run.trials.values():
        assert [r.rung for r in trial.reports] == list(range(len(trial.reports)))
        if trial.state is State.COMPLETE:
            assert len(trial.reports) == study.budget.rungs
        if trial.state is State.PRUNED:
            assert 0 < len(trial.reports) < study.budget.rungs
            assert study.budget.mode != "none"
    progress = Counting().take_all(read_events(search.ledger.folder))
    states = Counter(trial.state for trial in run.trials.values())
    assert {state: progress.ended[state] for state in progress.ended} == {state: states[state] for state in progress.ended}
    waiting = [number for number in search._state.running if not search._halving.may_train(number)]
    assert (progress.waiting, progress.running) == (len(waiting), states[State.RUNNING] - len(waiting))
    best = [trial.number for trial in run.best(1)]
    assert [place[-1] for place in progress.complete[:1]] == best


def facts_of(search):
    rungs = search._halving
    return (
        {number: vars(variant) for number, variant in rungs.variants.items()},
        (rungs._at, rungs.coming.tolist()),
        [rungs.order(bracket, rung) for bracket in range(rungs.budget.brackets) for rung in range(rungs.budget.rungs)],
        {number: (trial.state, len(trial.reports), trial.rungs) for number, trial in search.run.trials.items()},
        (search._state.running, search._state.ending, search._state.alone, +search._state.losses),
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_random_search_ends_well(seed, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 500)
    rng = random.Random(seed)
    plain, folder = random_study(rng), tmp_path / "run"
    shares = [rng.choice([0, 0, 0.05, 0.3]), rng.choice([0, 0.05]), rng.choice([0, 0.05, 0.2])]
    phases = rng.randint(1, 4)
    for phase in range(phases):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(plain))
        study = load_study(tmp_path / "study.yaml")
        ledger = Ledger(folder)
        search = Search(study, ledger)
        last = phase == phases - 1
        ended = carry_out(search, rng, shares, 20_000 if last or rng.random() < 0.3 else rng.randint(0, 40))
        assert ended or not last
        check(search, study)
        if ended and search.gave_up is None:
            assert not search.may_come
            assert not search.run.in_state(State.RUNNING)
        ledger.close()
        before = (folder / LEDGER).read_bytes()
        ledger = Ledger(folder)
        again = Search(study, ledger)
        ledger.close()
        assert (folder / LEDGER).read_bytes() == before, "a restart adds nothing"
        assert facts_of(again) == facts_of(search)
        if not ended and rng.random() < 0.5:
            lines = before.splitlines(keepends=True)
            (folder / LEDGER).write_bytes(b"".join(lines[: rng.randint(1, len(lines))]) + b'{"torn')
        changed_study(rng, plain)
