"""What is read of a run's curves, and what rungs foretell."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas.replay import curves
from nas.replay.curves import recorded
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import State
from nas.runs.run import Run, read_run
from nas.search.controller import Search
from nas.stats import ranks
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.recorded import ALL_FULLY, VARIED, of_losses, seeded_loss
from tests.nas.scripted import carry_out, report, searched


def test_agreement_is_kendalls_tau_with_an_interval(study, monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    last = rng.normal(size=40)
    losses = np.stack(
        [rng.normal(size=40), last + rng.normal(size=40), last + 0.1 * rng.normal(size=40), np.ones(40), last], axis=1
    )
    record = of_losses(study, losses)
    for rung in (0, 1, 2, 4):
        assert record.agreements[rung].tau == pytest.approx(kendalltau(losses[:, rung], last).statistic)
    unrelated, loose, close, constant, same = record.agreements
    assert unrelated.low < 0 < unrelated.high
    assert 0 < loose.low < loose.tau < loose.high < close.low
    # The normal approximation's standard error without correlation.
    error = np.sqrt(2 * (2 * 40 + 5) / (9 * 40 * 39))
    assert (unrelated.high - unrelated.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.25)
    assert (constant.tau, constant.low, constant.high) == (None, None, None)
    assert (same.tau, same.low) == pytest.approx((1, 1))


def test_top_regret_is_what_is_lost_when_a_rungs_best_alone_go_on(study):
    losses = np.ones((8, 5)) * np.arange(8)[:, None]
    losses[:, 0] = [5, 1, 2, 0, 6, 7, 8, 9]
    record = of_losses(study, losses)
    assert [record.top_regret(0, top) for top in (1, 2, 3, 4, 5, 8)] == [3, 1, 1, 0, 0, 0]
    assert record.top_regret(4, 1) == 0
    assert record.agreements_across_seeds is None, "one seed each"


def test_trials_without_a_full_curve_are_left_out_and_counted(tiny_file, tmp_path, monkeypatch):
    searched(load_study(tiny_file, VARIED), tmp_path / "run", failing=(3,))
    run = read_run(tmp_path / "run")
    complete = run.in_state(State.COMPLETE)
    assert 1 < len(complete) < 20
    monkeypatch.setattr(curves, "LEAST", len(complete))
    record = recorded(run)
    assert [curve.losses[-1] for curve in record.curves] == [trial.val_loss for trial in complete]
    assert record.left_out == 24 - len(complete)
    assert record.pruned == record.left_out - 1, "one failed"
    monkeypatch.setattr(curves, "LEAST", len(complete) + 1)
    sentence = (
        f"run tiny has {len(complete)} architectures .* takes at least {len(complete) + 1}; record them with budget.mode: none"
    )
    with pytest.raises(ToolkitError, match=sentence):
        recorded(run)


def test_an_architecture_counts_when_all_its_replicates_were_begun(tiny_file, tmp_path):
    searched(load_study(tiny_file, [*ALL_FULLY, "search.replicates=2"]), tmp_path / "run", stop_after=5 * 17)
    *events, last = read_events(tmp_path / "run")
    assert (last.event, last.trial) == ("trial", 17)
    run = Run(events)
    assert [len(trial.reports) for trial in run.trials.values()] == [5] * 17
    assert len(recorded(run).curves) == 8


def test_replicates_count_together_and_reports_of_a_finish_not_at_all(tiny_file, tmp_path):
    study = load_study(tiny_file, [*ALL_FULLY, "search.replicates=2"])
    ledger = Ledger(tmp_path / "run")
    search = Search(study, ledger)
    carry_out(search, failing=(5,), loss=seeded_loss)
    plans = search.finish_plans()
    assert plans
    for plan in plans:
        for rung in range(plan.reported, plan.reported + len(plan.milestones)):
            search.report(report(plan, rung, loss=1e-6))
    ledger.close()
    run = read_run(tmp_path / "run")
    assert max(len(trial.reports) for trial in run.trials.values()) > 5
    record = recorded(run)
    assert (len(record.curves), record.left_out, record.pruned) == (11, 2, 0)
    first = [run.trials[n].reports[:5] for n in (0, 1)]
    curve = record.curves[0]
    assert curve.losses == pytest.approx([(a.val_loss + b.val_loss) / 2 for a, b in zip(*first, strict=True)])
    assert curve.scores == tuple(tuple(one.val_loss for one in own) for own in first)
    last = np.array([[own[-1] for own in curve.scores] for curve in record.curves])
    assert record.agreements_across_seeds[-1].tau == pytest.approx(kendalltau(*last.T).statistic)
    assert curve.macs == tuple(tuple(one.macs for one in own) for own in first)
    assert curve.seconds == ((1, 2, 3, 4, 5),) * 2
    assert record.best > 1e-6
    assert record.full_macs == sum(trial.reports[4].macs for trial in run.trials.values() if trial.number not in (4, 5))
