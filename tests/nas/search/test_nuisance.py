"""Searches that tune training settings beside the architectures, driven by scripted losses."""

import json

import numpy as np
import optuna
import pytest
import torch

from analysis import load, ranking_table, render
from nas.replay.curves import recorded
from nas.replay.simulator import Arrival, Rules, replay_run
from nas.reporting.estimate import estimate
from nas.runs.layout import CHECKPOINT
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import State, TrialPlan
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.search.optuna_export import export_run
from nas.study.load import load_study
from nas.training.checkpoint import write_checkpoint
from nas.training.trial import Trial
from space import ToolkitError, cost
from tests.nas.scripted import VARIED, carry_out, facts, loss_of, searched, status

RATE, BATCH = "training.learning_rate", "training.batch_size"
TUNED = [
    "search.space={heads: [1, 2], training.learning_rate: {float: [1e-4, 1e-2], log: true}, training.batch_size: [2, 4, 8]}",
    "search.constraints={gflops: {max: 0.02}}",
    "search.trials=16",
    "finish=null",
]
TWO_BY_TWO = ["search.space={heads: [1, 2], training.learning_rate: [1e-3, 3e-3]}", "search.trials=9", "finish=null"]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 2000)


def by_rate(plan, rung):
    """The best rate is 2e-3, for every architecture."""
    return loss_of(plan, rung) / 10 + abs(np.log10(plan.training.get(RATE, 1e-3) / 2e-3))


def test_one_architecture_with_different_rates_is_different_candidates(tiny_file, tmp_path):
    search = searched(load_study(tiny_file, TWO_BY_TWO), tmp_path / "run", loss=by_rate)
    trials = search.run.trials.values()
    # Both heads with both rates, each once; then the space is spent.
    assert sorted((trial.params["heads"], trial.params[RATE]) for trial in trials) == [
        (heads, rate) for heads in (1, 2) for rate in (0.001, 0.003)
    ]
    assert len({trial.digest for trial in trials}) == 2
    assert [trial.training for trial in trials if trial.params[RATE] == 0.001] == [{}, {}], "the study's own rate"
    assert len(search.run.standings()) == sum(trial.state is State.COMPLETE for trial in trials) > 1
    assert search.run.best()[0].params[RATE] == 0.003


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_restart_at_any_report_proposes_the_same(tiny_file, tmp_path, sampler):
    study = load_study(tiny_file, [*TUNED, f"search.sampler.kind={sampler}", "search.trials=13"])
    whole = searched(study, tmp_path / "whole", loss=by_rate)
    rates = [trial.params[RATE] for trial in whole.run.trials.values()]
    assert len(set(rates)) == 13
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-2
    for stop in (0, 5, 17):
        folder = tmp_path / f"stopped-{stop}"
        searched(study, folder, loss=by_rate, stop_after=stop)
        searched(study, folder, loss=by_rate)
        assert facts(folder) == facts(tmp_path / "whole")


def test_the_sampler_learns_the_rate(tiny_file, tmp_path):
    trials = searched(load_study(tiny_file, [*TUNED, "search.trials=40"]), tmp_path / "run", loss=by_rate).run.trials
    off = [abs(np.log10(trial.params[RATE] / 2e-3)) for trial in trials.values()]
    # A uniform draw is off by 0.5 in the median.
    assert np.median(off[20:]) < 0.25


def test_a_proposal_that_is_moved_into_the_constraints_keeps_its_settings(tiny_file, tmp_path):
    changes = ["search.space.channels={int: [8, 32], step: 4}", "search.constraints={gflops: {min: 0.015}}", "budget.max=1 GFLOPs"]
    search = searched(load_study(tiny_file, [*TUNED, *changes]), tmp_path / "run", loss=by_rate)
    moved = [trial for trial in search.run.trials.values() if trial.rejected and trial.rejected[-1].violations]
    assert len(moved) > 2
    for trial in moved:
        wanted = trial.rejected[-1].params
        assert (trial.params[RATE], trial.params[BATCH]) == (wanted[RATE], wanted[BATCH])
        assert trial.params["channels"] != wanted["channels"]


def test_replicates_share_their_settings(tiny_file, tmp_path):
    study = load_study(tiny_file, [*TUNED, "search.replicates=2"])
    search = searched(study, tmp_path / "run", workers=3, loss=by_rate)
    for number, trial in search.run.trials.items():
        assert trial.training == search.run.trials[number - number % 2].training
    assert {standing.seeds for standing in search.run.standings()} == {2}


def test_rungs_count_the_steps_of_a_trial_s_own_batch(tiny_file, tmp_path):
    study = load_study(
        tiny_file, [*TUNED, "search.enqueue=[{training.batch_size: 8}, {training.batch_size: 2}]", "search.trials=2"]
    )
    plans = []
    carry_out(Search(study, Ledger(tmp_path / "run")), loss=lambda plan, rung: plans.append(plan) or 0.5)
    for size, plan in ((8, plans[0]), (2, next(plan for plan in plans if plan.number == 1))):
        assert plan.training == {BATCH: size}
        assert plan.milestones == study.budget.milestones
        assert TrialPlan.model_validate_json(plan.model_dump_json()) == plan
        trial = Trial(plan, study)
        assert trial.step_macs == cost(plan.spec).step_macs(size)
        report = trial.advance()
        assert report.images == size * report.step
        assert plan.milestones[0] <= report.macs < plan.milestones[0] + trial.step_macs


def test_a_budget_in_steps_is_so_many_steps_of_a_trial_s_own_batch(tiny_file, tmp_path):
    study = load_study(tiny_file, [*TUNED, "search.enqueue=[{training.batch_size: 8}]"])
    study = study.model_copy(update={"budget": study.budget.model_copy(update={"max": None, "steps": 40})})
    plan = Search(study, Ledger(tmp_path / "run")).next_plan()
    assert plan.milestones == tuple(steps * cost(plan.spec).step_macs(8) for steps in (10, 20, 40))


def test_the_enqueued_may_set_them_also_from_outside_the_space(tiny_file, tmp_path):
    enqueue = [
        "{training.learning_rate: 2e-3}",  # inside
        "{training.learning_rate: 0.5, heads: 1}",  # no rate of the space
        "{training.weight_decay: 0.1}",  # not searched
        "{}",
        "{training.learning_rate: 0.001}",  # the one before, as the study has this rate
    ]
    study = load_study(tiny_file, [*TUNED, f"search.enqueue=[{', '.join(enqueue)}]"])
    search = searched(study, tmp_path / "run", loss=by_rate)
    first = [search.run.trials[number] for number in range(5)]
    assert first[0].params == {"heads": study.base.heads, RATE: 0.002, BATCH: 4}
    assert first[0].training == {RATE: 0.002}
    assert [trial.params for trial in first[1:3]] == [None, None]
    assert [trial.training for trial in first[1:4]] == [{RATE: 0.5}, {"training.weight_decay": 0.1}, {}]
    assert first[4].params is not None
    assert first[4].training
    frame = load(search.run).trials.set_index("trial")
    assert frame.loc[1, f"param.{RATE}"] == 0.5
    assert frame["param.training.weight_decay"].tolist()[:4] == [0, 0, 0.1, 0], "what a trial was trained with, own or not"


def test_a_setting_whose_condition_does_not_hold_is_the_study_s(tiny_file, tmp_path):
    space = "{heads: [1, 2], training.learning_rate: {when: {heads: 2}, choice: [2e-3, 3e-3]}}"
    study = load_study(
        tiny_file, [f"search.space={space}", "search.enqueue=[{heads: 1, training.learning_rate: 2e-3}]", "finish=null"]
    )
    trials = list(searched(study, tmp_path / "run").run.trials.values())
    assert (trials[0].params, trials[0].training) == (None, {RATE: 0.002})
    assert sorted((trial.params["heads"], trial.training.get(RATE)) for trial in trials[1:]) == [(1, None), (2, 0.002), (2, 0.003)]


def with_checkpoints(search, folder):
    for trial in search.run.trials.values():
        if trial.reports:
            held = {"digest": trial.spec.digest, "step": trial.reports[-1].step, "reports": []}
            write_checkpoint(folder / "trials" / trial.name / CHECKPOINT, {"x": torch.zeros(1)}, held)


def test_reuse_goes_by_the_settings_whichever_study_they_come_from(tiny_file, tmp_path):
    whole = ["finish=null", "budget.mode=none"]
    at_two = load_study(tiny_file, ["search.space={heads: [1, 2]}", "training.learning_rate=2e-3", *whole])
    with_checkpoints(searched(at_two, tmp_path / "fixed", loss=by_rate), tmp_path / "fixed")
    enqueue = "search.enqueue=[{heads: 1, training.learning_rate: 2e-3}, {heads: 1}, {heads: 1, training.learning_rate: 4e-3}]"
    search = searched(load_study(tiny_file, [*TUNED, *whole, enqueue, "search.trials=3"]), tmp_path / "tuned", loss=by_rate)
    with_checkpoints(search, tmp_path / "tuned")
    assert [bool(search.run.trials[number].reused) for number in range(3)] == [True, False, False]
    # And back: the study's own rate, one of another run's tuned ones, and one that no run has.
    for rate, taken in ((1e-3, True), (4e-3, True), (5e-3, False)):
        again = load_study(tiny_file, ["search.space={heads: [1]}", f"training.learning_rate={rate}", *whole, "search.trials=1"])
        assert bool(searched(again, tmp_path / f"rate-{rate}").run.trials[0].reused) == taken


def test_a_ledger_without_own_settings_has_no_word_of_them(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path / "run")
    assert '"training.' not in (tmp_path / "run" / "ledger.jsonl").read_text()
    assert all("training" not in event.plain() for event in read_events(tmp_path / "run") if event.event == "trial")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"training.seed": 3}, "training.seed cannot be tuned"),
        ({RATE: -1}, f"{RATE} cannot be -1"),
        ({RATE: None}, f"{RATE} cannot be None"),
    ],
)
def test_a_ledger_with_settings_that_cannot_be_is_refused(tiny_file, tmp_path, own, message):
    searched(load_study(tiny_file, TWO_BY_TWO), tmp_path / "run")
    path = tmp_path / "run" / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    at = next(number for number, line in enumerate(lines) if line["event"] == "trial")
    lines[at]["training"] = own
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ToolkitError, match=rf"ledger.jsonl:{at + 1}: .*{message}"):
        read_run(tmp_path / "run")


def test_tables_and_lines_name_the_values_and_mark_them(tiny_file, tmp_path):
    study = load_study(tiny_file, TUNED)
    search = searched(study, tmp_path / "run", loss=by_rate)
    best = search.run.best()[0]
    table = ranking_table(load(search.run))
    marked = ["learning_rate (nuisance)", "batch_size (nuisance)"]
    assert [name for name in table if "nuisance" in name] == marked
    assert table.columns.tolist().index(marked[0]) > table.columns.tolist().index("memory (MiB)")
    row = table.set_index("trial").loc[best.number]
    assert (row[marked[0]], row[marked[1]]) == (best.params[RATE], best.params[BATCH])
    assert f"| {best.params[RATE]:.4g} " in render(table, "md")
    told = f"(trial {best.number}, learning_rate {best.params[RATE]:.4g}, batch_size {best.params[BATCH]})"
    assert told in "\n".join(status(tmp_path / "run"))
    assert "tuned" in estimate(study)
    assert "a training step is of 2 to 8 samples" in estimate(study)
    plain = searched(load_study(tiny_file, VARIED), tmp_path / "plain")
    assert not [name for name in ranking_table(load(plain.run)) if "nuisance" in name]


def test_optuna_gets_the_settings_as_parameters(tiny_file, tmp_path):
    searched(load_study(tiny_file, [*TUNED, "search.enqueue=[{training.learning_rate: 0.5}]"]), tmp_path / "run", loss=by_rate)
    export_run(tmp_path / "run", str(tmp_path / "run.log"))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "run.log")))
    first, *others = optuna.load_study(study_name="tiny", storage=storage).get_trials()
    assert first.user_attrs[RATE] == 0.5
    assert all(trial.distributions[RATE] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True) for trial in others)
    assert {trial.params[BATCH] for trial in others} == {2, 4, 8}


def test_what_was_recorded_with_settings_is_replayed(tiny_file, tmp_path):
    search = searched(load_study(tiny_file, [*TUNED, "budget.mode=none"]), tmp_path / "run", loss=by_rate)
    record = recorded(search.run)
    assert len(record.curves) == 16
    for sampler in ("random", "tpe"):
        (outcome,) = replay_run(record, Rules("stop"), Arrival(sampler, repeats=1)).outcomes
        assert sorted(outcome.tried) == list(range(16))
        assert outcome.regret == 0


def test_workers_of_a_search_that_goes_on_get_the_settings_again(tiny_file, tmp_path):
    study = load_study(tiny_file, TUNED)
    ledger = Ledger(tmp_path / "run")
    plan = Search(study, ledger).next_plan()
    ledger.close()
    seen = []
    ledger = Ledger(tmp_path / "run")
    carry_out(Search(study, ledger), loss=lambda plan, rung: seen.append(plan) or 0.5)
    ledger.close()
    assert seen[0] == plan
    assert plan.training.keys() <= {RATE, BATCH}
    assert plan.training
