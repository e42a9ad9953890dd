"""Whole searches whose rungs are in steps, or compare by a metric of samples: trained for real, in this process."""

from pathlib import Path

import pytest

from nas.execution.runner import run_study
from nas.runs.ledger import read_events
from nas.runs.records import State
from nas.study.load import load_study
from nas.training.trial import Trial

MEASURED = ("time", "seconds", "images_per_s", "peak_memory_mib")
STEPS = [
    "search.space={heads: [1, 2], channels: [8, 16], feed_forward.kind: [mlp, conv]}",
    "search.objectives=[{metric: gflops}, {metric: val_loss}]",
    "search.trials=2",
    "budget={steps: 4, rungs: 3, mode: promote}",
    "finish={best: 1, steps: 6}",
    "evaluation.samples=null",
]


def facts(folder: Path):
    """The ledger without what is measured anew every time."""
    return [{key: value for key, value in event.plain().items() if key not in MEASURED} for event in read_events(folder)]


def killed(study, folder, monkeypatch, after):
    """A process that is killed once a trial has been trained so many times to a rung, before the ledger hears of the last."""
    left, advance = [after], Trial.advance

    def dying(self):
        report = advance(self)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, folder, in_process=True)


def test_a_search_at_equal_steps_killed_at_a_rung_is_the_one_that_was_not(tiny_file, tmp_path, monkeypatch):
    study = load_study(tiny_file, STEPS)
    run = run_study(study, tmp_path / "whole" / "run", in_process=True)
    assert {trial.state for trial in run.trials.values()} == {State.COMPLETE, State.PRUNED}
    for trial in run.trials.values():
        assert [report.step for report in trial.search_reports] == [1, 2, 4][: len(trial.search_reports)]
        assert all(report.macs == report.step * trial.cost.step_macs(4) for report in trial.reports)
    assert len({trial.reports[0].macs for trial in run.trials.values()}) > 1
    assert run.best()[0].reports[-1].step == 6, "the finish is in steps too"
    assert (tmp_path / "whole" / "run" / run.best()[0].export.folder / "card.md").exists()
    folder = tmp_path / "parts" / "run"
    killed(study, folder, monkeypatch, 2)
    run_study(study, folder, in_process=True)
    assert facts(folder) == facts(tmp_path / "whole" / "run")


@pytest.mark.slow
def test_a_search_by_a_metric_of_samples_scores_every_trial_at_its_rungs(tiny_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = [
        "search.objectives=[{metric: gflops}, {metric: kid}]",
        "budget={steps: 2, rungs: 2}",
        "finish={steps: 3}",
        "evaluation.fid={samples: 129, seeds: [0], steps: 2, at: every}",
    ]
    study = load_study(tiny_file, [*STEPS, *changes])
    run = run_study(study, tmp_path / "run", in_process=True)
    assert run.metric == "kid"
    for trial in run.trials.values():
        assert trial.state in (State.COMPLETE, State.PRUNED)
        assert all("kid" in report.scores and "fid" in report.scores for report in trial.search_reports)
    complete = run.in_state(State.COMPLETE)
    best = min(complete, key=lambda trial: trial.search_reports[-1].scores["kid"])
    assert run.best()[0].number == best.number
    assert best.reports[-1].step == 3
    assert not best.reports[-1].scores, "the finish is scored once it is exported"
    assert (tmp_path / "run" / best.export.folder / "evaluation.json").exists()
