"""What runs under one root take over from one another."""

import pytest
import torch

from nas.runs.layout import CHECKPOINT
from nas.runs.ledger import Ledger
from nas.search.controller import Search
from nas.study.load import load_study
from nas.training.checkpoint import write_checkpoint
from tests.nas.scripted import VARIED, carry_out, facts, loss_of, report, searched


@pytest.fixture
def study(tiny_file):
    return load_study(tiny_file, VARIED)


@pytest.fixture
def checkpoints():
    """Writes the checkpoint that every trial of a scripted run would have left."""

    def write(search, folder):
        for trial in search.run.trials.values():
            if trial.reports:
                held = {"digest": trial.spec.digest, "step": trial.reports[-1].step, "reports": []}
                write_checkpoint(folder / "trials" / trial.name / CHECKPOINT, {"x": torch.zeros(1)}, held)

    return write


def test_what_another_run_has_trained_is_taken_over(study, tiny_file, tmp_path, checkpoints):
    first = searched(study, tmp_path / "first")
    checkpoints(first, tmp_path / "first")
    search = Search(load_study(tiny_file, [*VARIED, "name=second", "search.sampler.kind=random"]), Ledger(tmp_path / "second"))
    known = {trial.spec.digest: trial for trial in first.run.trials.values()}
    trained = []
    carry_out(search, loss=lambda plan, rung: trained.append((plan.spec.digest, rung)) or loss_of(plan, rung))
    taken = [trial for trial in search.run.trials.values() if trial.reused]
    assert len(taken) >= 4, "both draw from sixteen architectures"
    for trial in taken:
        before = known[trial.spec.digest]
        # By step, because a large architecture passes several rungs in one step.
        losses = {report.step: report.val_loss for report in before.reports}
        assert all(trial.reports[rung].val_loss == losses[trial.reports[rung].step] for rung in trial.reused)
        assert not {(trial.spec.digest, rung) for rung in trial.reused} & set(trained)
        assert (tmp_path / "second" / "trials" / trial.name / CHECKPOINT).exists()
    # A restart knows it from the ledger.
    before = facts(tmp_path / "second")
    search.ledger.close()
    searched(search.study, tmp_path / "second")
    assert facts(tmp_path / "second") == before


def test_a_search_at_equal_steps_takes_over_what_another_trained_for_as_many(tiny_file, tmp_path, checkpoints):
    # Scripted reports are at steps 1, 2, 3.
    study = load_study(tiny_file, [*VARIED, "budget={steps: 2, rungs: 2}", "finish=null"])
    checkpoints(searched(study, tmp_path / "first"), tmp_path / "first")
    images = [*VARIED, "name=second", "finish=null"]
    same = searched(load_study(tiny_file, [*images, "budget={images: 8, rungs: 2}"]), tmp_path / "second").run
    assert all(trial.reused[0] == 0 for trial in same.trials.values()), "8 images are 2 steps of 4"
    other = searched(load_study(tiny_file, [*images, "budget={images: 40, rungs: 2}"]), tmp_path / "third").run
    assert not any(trial.reused for trial in other.trials.values())


@pytest.mark.parametrize(
    "change", ["training.learning_rate=0.5", "training.seed=1", "evaluation.val_loss.images=24", "data.held_out=0.2"]
)
def test_what_was_trained_otherwise_is_not_taken_over(study, tiny_file, tmp_path, checkpoints, change):
    checkpoints(searched(study, tmp_path / "first"), tmp_path / "first")
    search = searched(load_study(tiny_file, [*VARIED, change]), tmp_path / "second")
    assert not any(trial.reused for trial in search.run.trials.values())


def test_under_a_width_rule_the_reference_width_must_be_the_same(tiny_file, tmp_path, checkpoints):
    common = ["search.space={heads: [1, 2], channels: [8, 16]}", "training.width_rule=inverse", "budget.mode=none", "finish=null"]
    checkpoints(searched(load_study(tiny_file, common), tmp_path / "first"), tmp_path / "first")
    wider = load_study(tiny_file, [*common, "model.set.channels=16"])
    assert [wider.hidden_rate(wider.base.replace({"channels": channels})) for channels in (8, 16, 32)] == [2, 1, 0.5]
    search = searched(wider, tmp_path / "second")
    assert not any(trial.reused for trial in search.run.trials.values())
    again = searched(load_study(tiny_file, [*common, "name=again"]), tmp_path / "third")
    assert any(trial.reused for trial in again.run.trials.values())


def test_without_a_checkpoint_nothing_is_taken_over(study, tmp_path):
    searched(study, tmp_path / "first")
    search = searched(study, tmp_path / "second")
    assert not any(trial.reused for trial in search.run.trials.values())


def test_a_damaged_neighbour_is_passed_over(study, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ledger.jsonl").write_text("damaged\n" * 3)
    assert len(searched(study, tmp_path / "second").run.trials) == 8


def test_two_workers_do_not_train_what_was_partly_taken_over(study, tiny_file, tmp_path, checkpoints):
    """A trial that goes on from where another run pruned it is handed out once."""
    partly = 0
    for seed in range(4):
        root = tmp_path / str(seed)
        pruning = load_study(tiny_file, [*VARIED, f"search.sampler={{kind: random, seed: {seed}}}"])
        checkpoints(searched(pruning, root / "first"), root / "first")
        keeping = load_study(tiny_file, [*VARIED, "budget.mode=none", f"search.sampler={{kind: random, seed: {seed + 9}}}"])
        search = searched(keeping, root / "second", workers=3)
        partly += sum(0 < len(trial.reused) < 3 for trial in search.run.trials.values())
        for trial in search.run.trials.values():
            assert [r.rung for r in trial.reports] == [0, 1, 2]
    assert partly


def test_a_finish_whose_rate_falls_is_not_taken_over(tiny_file, tmp_path, checkpoints):
    finish = "finish={best: 1, budget: 400 MFLOPs, decay: 0.5}"
    first = searched(load_study(tiny_file, [*VARIED, finish]), tmp_path / "first")
    first.ledger = Ledger(tmp_path / "first")
    (plan,) = first.finish_plans()
    for rung in range(3, 3 + len(plan.milestones)):
        first.report(report(plan, rung, 0.01))
    first.ledger.close()
    checkpoints(first, tmp_path / "first")
    longer = load_study(tiny_file, [*VARIED, "finish=null", "budget={max: 400 MFLOPs, rungs: 4}"])
    second = searched(longer, tmp_path / "second")
    assert all(rung < 3 for trial in second.run.trials.values() for rung in trial.reused)


def test_measured_seconds_are_not_taken_over(study, tiny_file, tmp_path, checkpoints):
    checkpoints(searched(study, tmp_path / "first"), tmp_path / "first")
    timed = load_study(tiny_file, [*VARIED, "search.objectives=[{metric: val_loss}, {metric: step_seconds}]"])
    assert not any(trial.reused for trial in searched(timed, tmp_path / "second").run.trials.values())
