"""The search's decisions, driven by scripted losses: no model is trained here."""

import shutil
from contextlib import closing

import numpy as np
import pytest

from nas.data.header import Header
from nas.data.writer import StoreWriter
from nas.runs.layout import LEDGER
from nas.runs.ledger import Ledger
from nas.runs.records import State
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.search.optuna_searcher import OptunaSearcher
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import carry_out, facts, loss_of, report, searched

VARIED = [
    "search.space={channels: [8, 16, 24, 32], heads: [1, 2], feed_forward.kind: [mlp, conv], feed_forward.ratio: {float: [1, 4]}}",
    "search.constraints={gflops: {max: 0.02}}",
    "search.trials=14",
]


@pytest.fixture
def study(tiny_file):
    return load_study(tiny_file, VARIED)


@pytest.mark.parametrize("objectives", ["[{metric: val_loss}]", "[{metric: val_loss}, {metric: gflops}]"])
@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_search_ends_with_every_trial_in_its_true_state(tiny_file, tmp_path, kind, objectives):
    study = load_study(tiny_file, [*VARIED, f"search.objectives={objectives}", f"search.sampler.kind={kind}"])
    search = searched(study, tmp_path / "run", workers=3, failing=(4,))
    trials = search.run.trials.values()
    assert len(trials) == 14
    assert search.run.trials[4].state is State.FAILED
    states = {trial.state for trial in trials}
    assert states == {State.COMPLETE, State.PRUNED, State.FAILED}
    for trial in trials:
        assert not search.study.search_space.violations(trial.spec), "nothing outside the constraints is trained"
        if trial.state is State.COMPLETE:
            assert len(trial.reports) == 3
        if trial.state is State.PRUNED:
            assert 1 <= len(trial.reports) < 3
    assert len({trial.spec.digest for trial in trials}) == 14, "nothing is trained twice"


def test_equal_seeds_give_equal_runs(study, tmp_path):
    searched(study, tmp_path / "a")
    searched(study, tmp_path / "b")
    assert facts(tmp_path / "a") == facts(tmp_path / "b")


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9, 15])
def test_decisions_after_a_restart_equal_those_without_one(study, tmp_path, stop_after):
    searched(study, tmp_path / "whole")
    searched(study, tmp_path / "parts", stop_after=stop_after)
    searched(study, tmp_path / "parts")
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


def test_a_crash_between_any_two_lines_loses_nothing(study, tmp_path):
    searched(study, tmp_path / "whole")
    expected = facts(tmp_path / "whole")
    lines = (tmp_path / "whole" / LEDGER).read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines), 2):
        folder = tmp_path / f"kept-{kept}"
        folder.mkdir()
        (folder / LEDGER).write_bytes(b"".join(lines[:kept]) + b'{"torn')
        searched(study, folder)
        assert facts(folder) == expected


def test_a_crash_with_several_trials_running_keeps_every_decision(study, tmp_path):
    """Workers report in another order after a restart, so the runs differ; but nothing is lost, repeated or judged anew."""
    searched(study, tmp_path / "whole", workers=3)
    lines = (tmp_path / "whole" / LEDGER).read_bytes().splitlines(keepends=True)
    for kept in range(2, len(lines), 4):
        folder = tmp_path / f"kept-{kept}"
        folder.mkdir()
        (folder / LEDGER).write_bytes(b"".join(lines[:kept]))
        before = facts(folder)
        search = searched(study, folder, workers=3)
        assert facts(folder)[:kept] == before
        assert len(search.run.trials) == 14
        assert not search.run.in_state(State.RUNNING)
        for trial in search.run.trials.values():
            assert [r.rung for r in trial.reports] == list(range(len(trial.reports)))


def test_topping_up_trains_the_missing_part_alone(study, tiny_file, tmp_path):
    searched(load_study(tiny_file, [*VARIED, "search.trials=6"]), tmp_path / "run")
    before = facts(tmp_path / "run")
    searched(study, tmp_path / "run")
    after = facts(tmp_path / "run")
    assert after[: len(before)] == before
    assert {event["trial"] for event in after[len(before) :] if "trial" in event} == set(range(6, 14))
    assert read_run(tmp_path / "run").study.model_dump() == study.model_dump()


def test_another_study_is_refused_with_the_difference(study, tiny_file, tmp_path):
    searched(study, tmp_path / "run", stop_after=2)
    before = (tmp_path / "run" / LEDGER).read_bytes()
    changed = load_study(tiny_file, [*VARIED, "training.learning_rate=0.5"])
    ledger = Ledger(tmp_path / "run")
    with pytest.raises(ToolkitError, match=r"holds another study \(training.learning_rate: 0.001 → 0.5\)"):
        Search(changed, ledger)
    assert (tmp_path / "run" / LEDGER).read_bytes() == before


def test_a_store_that_was_copied_to_another_place_is_gone_on_with(tiny_file, tmp_path):
    plan = Header(
        samples=40, shape=(16, 8, 8), content="pixels", dtype="uint8", codec="pixel-unshuffle-4", class_names=(), source="x"
    )

    def written(name, value):
        writer = StoreWriter(tmp_path / name, plan)
        writer.write(np.full((40, 16, 8, 8), value, np.uint8), np.arange(40) % 2)
        writer.finish(("a", "b"))
        return f"data={{source: {tmp_path / name}, held_out: 0.5}}"

    first, other = written("store", 1), written("other", 2)
    shutil.copytree(tmp_path / "store", tmp_path / "staged")
    staged = f"data={{source: {tmp_path / 'staged'}, codec: pixel-unshuffle-4, held_out: 0.5}}"
    searched(load_study(tiny_file, [*VARIED, first]), tmp_path / "run", stop_after=2)
    before = facts(tmp_path / "run")
    search = searched(load_study(tiny_file, [*VARIED, staged]), tmp_path / "run")
    assert facts(tmp_path / "run")[: len(before)] == before
    assert search.run.study.data.source == str(tmp_path / "staged")
    assert read_run(tmp_path / "run").study.data.source == str(tmp_path / "staged")
    assert len(search.run.in_state(State.COMPLETE)) > 0
    for change, message in ((other, "holds another study"), (staged.replace("0.5", "0.25"), r"\(data.held_out: 0.5 → 0.25\)")):
        with closing(Ledger(tmp_path / "run")) as ledger, pytest.raises(ToolkitError, match=message):
            Search(load_study(tiny_file, [*VARIED, change]), ledger)


def test_a_spent_space_ends_the_search(tiny_file, tmp_path):
    study = load_study(tiny_file, ["search.trials=50"])
    search = searched(study, tmp_path / "run")
    # heads × similarity × kind, all of them feasible.
    assert len(search.run.trials) == 8
    before = facts(tmp_path / "run")
    assert before[-1] == {"event": "spent"}
    assert searched(study, tmp_path / "run").handed_out
    assert facts(tmp_path / "run") == before


def test_the_finish_goes_on_from_where_it_stands(tiny, tmp_path):
    ledger = Ledger(tmp_path / "run")
    search = Search(tiny, ledger)
    carry_out(search)
    (plan,) = search.finish_plans()
    assert plan.number == search.run.best()[0].number
    assert plan.reported == 3
    assert plan.milestones[-1] == 300_000_000
    assert search.report(report(plan, 3))
    (rest,) = search.finish_plans()
    assert rest.milestones == plan.milestones[1:]
    for rung in range(4, 4 + len(rest.milestones)):
        goes_on = search.report(report(rest, rung))
    assert not goes_on
    assert search.complete
    assert search.run.trials[plan.number].val_loss == loss_of(plan, 2), "the ranking stays at equal compute"


def test_the_sampler_is_told_what_is_true(study, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(OptunaSearcher, "tell", lambda self, number, *what: told.setdefault(number, what))
    search = searched(study, tmp_path / "run", workers=2, failing=(3,))
    for number, trial in search.run.trials.items():
        state, values, intermediate = told[number]
        assert state is trial.state
        assert list(intermediate) == [r.val_loss for r in trial.reports]
        assert values == ((trial.val_loss,) if state is State.COMPLETE else ())
