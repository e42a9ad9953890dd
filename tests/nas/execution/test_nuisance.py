"""Runs that tune training settings beside the architectures, trained for real."""

import pytest

from nas.execution.packing import training_bytes
from nas.execution.runner import run_study
from nas.execution.tracking import _config
from nas.runs.ledger import Ledger
from nas.runs.records import State, TrialPlan
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.study.load import load_study
from nas.training.export import export
from nas.training.trial import Trial
from space.errors import RunError
from space.weights import facts_of
from tests.nas.execution.test_runner import facts

RATE, BATCH, EMA = "training.learning_rate", "training.batch_size", "training.ema"


@pytest.fixture
def study(tiny_file, monkeypatch):
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 2000)
    space = "{heads: [1, 2], training.learning_rate: {float: [1e-3, 1e-2], log: true}, training.batch_size: [2, 4]}"
    enqueue = "[{training.ema: 0.5, training.batch_size: 2}]"
    return load_study(
        tiny_file,
        [f"search.space={space}", f"search.enqueue={enqueue}", "search.trials=3", "budget.mode=none", "evaluation.samples=null"],
    )


def test_every_trial_is_trained_with_its_own_settings(study, tmp_path, monkeypatch):
    seen = {}
    original = Trial.advance

    def advance(self):
        report = original(self)
        size = self.training.stream.draw(0).samples.numel()
        seen[self.plan.number] = (self.training.optimizer.param_groups[0]["lr"], size, tuple(self.training.ema_models))
        return report

    monkeypatch.setattr(Trial, "advance", advance)
    run = run_study(study, tmp_path / "run", in_process=True)
    assert {trial.state for trial in run.trials.values()} == {State.COMPLETE}
    assert seen[0] == (0.001, 2, (0.5,))
    for trial in list(run.trials.values())[1:]:
        assert seen[trial.number] == (trial.params[RATE], trial.params[BATCH], (0.9999,))
    for trial in run.trials.values():
        size = study.training_of(trial).batch_size
        for report, milestone in zip(trial.search_reports, study.budget.milestones, strict=True):
            assert report.images == size * report.step
            assert report.macs == report.step * trial.cost.step_macs(size)
            assert milestone <= report.macs < milestone + trial.cost.step_macs(size)
    winner = run.best()[0]
    exported = tmp_path / "run" / winner.export.folder
    tuned = study.tuned_of(winner)
    assert facts_of(exported)["training"] == {RATE: 1e-3, "training.weight_decay": 0.0, EMA: 0.9999, BATCH: 4} | tuned
    assert "| training settings, tuned (no part of the architecture) | learning_rate " in (exported / "card.md").read_text()
    # By hand too, with the averages that the trial keeps.
    with pytest.raises(RunError, match=r"trial 0 keeps no average of decay 0.9999; it has 0.5"):
        export(run, run.trials[0], tmp_path / "run", tmp_path / "model", 0.9999)
    export(run, run.trials[0], tmp_path / "run", tmp_path / "model")
    assert facts_of(tmp_path / "model")["val_loss_ema"] == facts_of(tmp_path / "model")["ema"] == 0.5
    # A restart finds nothing to do, and reads the same run.
    again = read_run(tmp_path / "run")
    assert [trial.training for trial in again.trials.values()] == [trial.training for trial in run.trials.values()]
    before = facts(tmp_path / "run")
    run_study(study, tmp_path / "run", in_process=True)
    assert facts(tmp_path / "run") == before


def test_a_checkpoint_under_other_settings_is_not_gone_on_with(study, tmp_path):
    plan = TrialPlan(number=0, spec=study.base, seed=0, milestones=study.budget.milestones, training={RATE: 0.01})
    losses = [Trial(plan, study, tmp_path).advance().val_loss]
    assert Trial(plan, study, tmp_path).training.step > 0
    for own in ({}, {RATE: 0.02}, {RATE: 0.01, EMA: 0.5}):
        other = Trial(plan.model_copy(update={"training": own}), study, tmp_path)
        assert other.training.step == 0
        losses.append(other.grid.loss(other.training.ema.folded(), 64).mean)
    assert len(set(losses)) > 1


def test_trackers_and_the_share_of_a_gpu_take_a_trial_s_own_settings(study, tmp_path):
    search = Search(study, Ledger(tmp_path / "run"))
    plan = search.next_plan()
    assert _config(plan, study) == {
        "trial": 0,
        "digest": plan.spec.digest,
        "seed": 0,
        "gflops": search.run.trials[0].cost.gflops,
        "params_m": search.run.trials[0].cost.params_m,
        "heads": plan.spec.heads,
        RATE: 0.001,
        EMA: 0.5,
        BATCH: 2,
    }
    training = study.training_of(plan)
    assert training_bytes(plan.spec, training.batch_size, 1) < training_bytes(plan.spec, study.training.batch_size, 1)
