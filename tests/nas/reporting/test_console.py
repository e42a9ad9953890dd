"""What a run shows, over scripted searches: counted event by event, and equal to counting anew."""

import io
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from nas.reporting.console import Follower, LiveTable, PlainLines, describe, state_lines
from nas.reporting.estimate import expected_search_macs
from nas.reporting.progress import Progress
from nas.runs.events import Reported
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import Failure, State
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.study.load import load_study
from tests.nas.scripted import Counting, carry_out, loss_of, report, searched, status

VARIED = [
    "search.space={channels: [8, 16, 24, 32], heads: [1, 2], feed_forward.kind: [mlp, conv], feed_forward.ratio: {float: [1, 4]}}",
    "search.constraints={gflops: {max: 0.02}}",
    "search.sampler.kind=random",
    "search.trials=12",
    "budget.rungs=4",
]
MODES = {
    "stop": [],
    "promote": ["budget.mode=promote"],
    "none": ["budget.mode=none"],
    "stop, replicates": ["search.replicates=3"],
    "promote, replicates": ["budget.mode=promote", "search.replicates=2"],
    "stop, grace": ["budget.grace_rungs=1"],
    "stop, steps": ["budget={steps: 16, rungs: 4}", "finish={steps: 20}"],
    "promote, images": ["budget={images: 70, rungs: 4, mode: promote}", "finish={images: 90}"],
    "promote, brackets": ["budget.mode=promote", "budget.brackets=2", "search.trials=18"],
}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def study(request, tiny_file):
    return load_study(tiny_file, [*VARIED, *request.param])


def seeded_loss(plan, rung):
    return loss_of(plan, rung) + 0.01 * plan.seed


def counted_anew(search):
    """What a progress must say, from all trials and from the search's own rungs."""
    trials, rungs = search.run.trials.values(), search._halving
    reported = [[t for t in trials if len(t.search_reports) > rung] for rung in range(search.study.budget.rungs)]
    may_train = [rungs.may_train(t.number) for t in trials if t.state is State.RUNNING]
    best = search.run.best()
    return {
        "ended": {state: sum(t.state is state for t in trials) for state in (State.COMPLETE, State.PRUNED, State.FAILED)},
        "running": sum(may_train),
        "waiting": len(may_train) - sum(may_train),
        "losses": [sorted(t.reports[rung].val_loss for t in there) for rung, there in enumerate(reported)],
        "went on": [sum(rungs.variant_of(t.number).allowed > rung + 1 for t in there) for rung, there in enumerate(reported)],
        "spent": sum(t.reports[-1].macs for t in trials if t.reports),
        "best": best[0].number if best else None,
    }


def told(progress):
    return {
        "ended": progress.ended,
        "running": progress.running,
        "waiting": progress.waiting,
        "losses": progress.losses,
        "went on": [progress.went_on(rung) for rung in range(progress.budget.rungs)],
        "spent": progress.spent_macs,
        "best": progress.complete[0][-1] if progress.complete else None,
    }


def test_counted_event_by_event_is_what_counting_anew_gives(study, tmp_path):
    follower, waited = Follower(tmp_path), []
    search = Search(study, Ledger(tmp_path), (follower.take,))

    def loss(plan, rung):
        assert told(follower.progress) == counted_anew(search)
        waited.append(follower.progress.waiting)
        return seeded_loss(plan, rung)

    carry_out(search, workers=3, failing=(4,), loss=loss)
    assert told(follower.progress) == counted_anew(search)
    assert follower.progress.ended[State.FAILED] == 1
    assert follower.progress.running == follower.progress.waiting == 0
    assert any(waited) == (study.budget.mode == "promote" or study.search.replicates > 1)
    # What is left is the finish.
    (best,) = search.run.best()
    left = study.finish_macs_of(best.spec) - study.milestones_of(best.spec)[-1]
    assert follower.progress.remaining_macs == left > 0
    (plan,) = search.finish_plans()
    for rung in range(plan.reported, plan.reported + len(plan.milestones)):
        search.report(report(plan, rung))
    assert follower.progress.remaining_macs == 0
    assert state_lines(follower.progress)[2].endswith("nothing to come")
    # The same from the ledger alone.
    assert status(tmp_path)[1 : 1 + len(state_lines(follower.progress))] == state_lines(follower.progress)
    assert status(tmp_path)[-1] == "trial 4 FAILED: broken"


def test_a_process_that_goes_on_counts_what_others_did_but_forecasts_from_its_own(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "budget.mode=promote"])
    searched(study, tmp_path, stop_after=14, workers=3)
    before, follower = read_run(tmp_path), Follower(tmp_path)
    search = Search(study, Ledger(tmp_path), (follower.take,))
    carry_out(search, workers=1)
    assert told(follower.progress) == counted_anew(search)
    _, macs, reports = follower.progress._start
    assert reports == sum(len(trial.reports) for trial in before.trials.values()) == 14
    assert macs == sum(trial.reports[-1].macs for trial in before.trials.values() if trial.reports)


def test_a_raised_budget_makes_complete_trials_go_on(tiny_file, tmp_path):
    smaller = load_study(tiny_file, [*VARIED, "budget.rungs=3", "budget.max=200 MFLOPs", "finish=null"])
    searched(smaller, tmp_path)
    assert read_run(tmp_path).in_state(State.COMPLETE)
    larger = load_study(tiny_file, [*VARIED, "budget.rungs=4", "budget.max=400 MFLOPs", "finish=null"])
    follower = Follower(tmp_path)
    search = Search(larger, Ledger(tmp_path), (follower.take,))
    carry_out(search)
    assert told(follower.progress) == counted_anew(search)
    assert follower.progress.remaining_macs == 0


def test_the_expected_need_of_a_run_shrinks_to_what_is_expected_of_those_who_are_left(tiny_file, tmp_path):
    study = load_study(
        tiny_file, [*VARIED, "budget={max: 800 MFLOPs, rungs: 4, reduction_factor: 2}", "search.trials=8", "finish=null"]
    )
    follower = Follower(tmp_path)
    search = Search(study, Ledger(tmp_path), (follower.take,))
    million = 10**6
    # Rungs at 100, 200, 400 and 800: every trial takes 100, then 1 in 2 each time 100, 200 and 400.
    assert expected_search_macs(study) == 8 * (100 + 50 + 50 + 50) * million
    plans = [search.next_plan() for _ in range(2)]
    assert follower.progress.remaining_macs == expected_search_macs(study)
    # The first at a rung goes on: it takes 100 to the next, and then 1 in 2 of 200, 1 in 4 of 400.
    assert search.report(report(plans[0], 0, 0.5))
    assert follower.progress.remaining_macs == (7 * 250 + 100 + 100 + 100) * million
    assert not search.report(report(plans[1], 0, 0.9))
    assert follower.progress.remaining_macs == (6 * 250 + 300) * million
    assert follower.progress.spent_macs == 200 * million


def test_at_equal_steps_what_is_to_come_is_what_the_architectures_cost(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "budget={steps: 80, rungs: 4}", "search.trials=8", "finish={steps: 100}"])
    follower = Follower(tmp_path)
    search = Search(study, Ledger(tmp_path), (follower.take,))
    plans = [search.next_plan() for _ in range(2)]
    first, second = (trial.cost.step_macs(study.training.batch_size) for trial in search.run.trials.values())
    assert first != second
    mean = (first + second) / 2
    # Each of 8 takes 10 steps, then 1 in 2 each time 10, 20 and 40; two of them are known, and the best takes 20 more.
    assert follower.progress.remaining_macs == 10 * (first + second) + (6 * 10 + 4 * 10 + 2 * 20 + 40 + 20) * mean
    assert search.report(report(plans[0], 0, 0.5))
    assert not search.report(report(plans[1], 0, 0.9))
    # The first goes on for 10 steps, the other is stopped. Of 6 to come 3 join it at the second rung.
    assert follower.progress.remaining_macs == 10 * first + (6 * 10 + 3 * 10 + 2 * 20 + 40 + 20) * mean
    assert follower.progress.spent_macs == 10 * (first + second)


def test_a_search_without_a_trial_expects_what_its_bill_says(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "budget={images: 320, rungs: 4}", "finish=null"])
    search = Search(study, Ledger(tmp_path))
    assert Progress(search.run).remaining_macs == pytest.approx(expected_search_macs(study))
    assert expected_search_macs(study) == pytest.approx(12 * (10 + 5 + 5 + 5) * study.census.mean_step_macs)


def test_in_mode_promote_those_who_went_on_are_taken_from_those_who_will(tiny_file, tmp_path):
    budget = "budget={max: 200 MFLOPs, rungs: 2, reduction_factor: 2, mode: promote}"
    study = load_study(tiny_file, [*VARIED, budget, "search.trials=4", "finish=null"])
    follower = Follower(tmp_path)
    search = Search(study, Ledger(tmp_path), (follower.take,))
    million, plans = 10**6, [search.next_plan() for _ in range(4)]
    for plan, loss in zip(plans[:3], (0.5, 0.6, 0.7), strict=True):
        search.report(report(plan, 0, loss))
    assert search.next_plan().number == 0
    # One is still to come to the first rung (100), and of the four 2 will have gone on; the first has, with 100 to go.
    assert follower.progress.went_on(0) == 1
    assert (follower.progress.running, follower.progress.waiting) == (2, 2)
    assert follower.progress.remaining_macs == (100 + 100 + 100) * million


def test_an_end_is_forecast_from_this_processs_rate_and_not_before_there_is_evidence(tiny_file, tmp_path):
    study = load_study(tiny_file, VARIED)
    searched(study, tmp_path, workers=2)
    events = list(read_events(tmp_path))
    places = [place for place, event in enumerate(events) if isinstance(event, Reported)]
    counting = Counting()
    progress = counting.take_all(events[: places[3]])
    progress.start(100.0)
    began = progress.spent_macs
    counting.take_all(events[places[3] : places[4] + 1])
    assert progress.seconds_left(110.0) is None, "two reports are no evidence"
    assert "ends in" not in "\n".join(state_lines(progress, 110.0))
    counting.take_all(events[places[4] + 1 : places[5] + 1])
    spent = progress.spent_macs - began
    assert progress.seconds_left(110.0) == pytest.approx(10 * progress.remaining_macs / spent)
    assert ", ends in about " in "\n".join(state_lines(progress, 110.0))
    assert "ends in" not in "\n".join(state_lines(progress)), "nothing is forecast from a ledger alone"


def test_reports_of_another_run_are_no_compute_of_this_one(tiny_file, tmp_path):
    study = load_study(tiny_file, VARIED)
    search = searched(study, tmp_path)
    counting, counting_own = Counting(), Counting()
    for event in read_events(tmp_path):
        own = counting_own.take(event)
        reused = isinstance(event, Reported) and event.trial == 0 and event.rung < 2
        taken_over = event.model_copy(update={"reused": "earlier"}) if reused else event
        progress = counting.take(taken_over)
        if reused:
            assert "known from run earlier" in describe(taken_over, search.run, progress)
    assert len(search.run.trials[0].reports) > 2
    assert own.spent_macs - progress.spent_macs == study.budget.milestones[1]
    assert own.reports - progress.reports == 2


class Unwalked(dict):
    """Trials that may be looked up, not walked through."""

    def __iter__(self):
        raise AssertionError("walked through all trials")

    keys = values = items = __iter__


def test_no_event_walks_through_all_trials(study, tmp_path):
    searched(study, tmp_path, workers=3, failing=(4,))
    counting, walks = Counting(), 0
    first, *others = read_events(tmp_path)
    progress = counting.take(first)
    progress.trials = Unwalked()
    counting.state.run.trials = Unwalked()
    for event in others:
        counting.take(event)
        walks += len(state_lines(progress, time.monotonic()))
    assert walks
    with pytest.raises(AssertionError):
        list(progress.trials)


def test_a_live_table_fits_a_terminal_and_shows_what_is_going_on(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "search.trials=2000", "budget.mode=promote"])
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with LiveTable(console, tmp_path) as view:
        search = Search(study, Ledger(tmp_path), (view,))
        carry_out(search, workers=4, stop_after=60, failing=(4,), loss=seeded_loss)
        shown = Console(file=io.StringIO(), width=100)
        shown.print(view)
        lines = shown.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    progress = view._follower.progress
    assert f"{len(progress.trials)} of 2000 trials: {progress.running} running, {progress.waiting} waiting" in text
    assert "1 failed" in text
    assert f"best val_loss {progress.complete[0][1]:.4f}" in text
    assert "spent, about" in text
    assert "ends in about" in text
    rungs = [line.split() for line in lines if line.startswith("   ") and "e-05" in line]
    assert rungs[0][:4] == ["1", "2.5e-05", str(len(progress.losses[0])), str(progress.went_on(0))]
    assert sum(" of 4 " in line for line in lines) == 12, "the latest trials"
    assert any(" waiting " in line and " of 4 " in line for line in lines)
    assert "ends in about" in console.file.getvalue(), "what was last shown stays"


def test_plain_lines_tell_every_event_once_and_the_state_now_and_then(tiny_file, tmp_path, monkeypatch):
    study = load_study(tiny_file, [*VARIED, "budget.mode=promote", "search.replicates=2"])
    console = Console(file=io.StringIO(), width=100)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock.__setitem__(0, clock[0] + 5) or clock[0])
    with PlainLines(console, tmp_path) as view:
        search = Search(study, Ledger(tmp_path), (view,))
        carry_out(search, workers=2, failing=(4,), loss=seeded_loss)
        told = console.file.getvalue()
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    reports = sum(len(trial.reports) for trial in search.run.trials.values())
    assert sum(" at rung " in line for line in lines) == reports
    assert any(re.search(r"trials \d+ to \d+ go on from rung 1 of 4", line) for line in lines)
    assert any("M parameters, seed 1" in line for line in lines)
    assert any("trial 4 FAILED: broken (" in line for line in lines)
    # The state is told at most every 60 of the clock's seconds, which go by five at a reading, and at the end.
    assert 1 <= told.count("training compute") <= clock[0] / 60
    assert console.file.getvalue().count("training compute") == told.count("training compute") + 1


def test_a_trial_that_is_handed_out_again_is_told(tiny_file, tmp_path):
    said, follower = [], Follower(tmp_path)
    search = Search(
        load_study(tiny_file, VARIED),
        Ledger(tmp_path),
        (follower.take, lambda event, run: said.append(describe(event, run, follower.progress))),
    )
    search.next_plan()
    search.lost(0, "its node died")
    search.fail(Failure(trial=0, reason="out of memory: 3 GiB", out_of_memory=True))
    assert said[-2:] == [
        "trial 0 is handed out again: its node died",
        "trial 0 is handed out again, with a GPU for itself: out of memory: 3 GiB",
    ]
    assert (follower.progress.running, follower.progress.waiting) == (1, 0)


def test_the_state_of_a_run_needs_neither_torch_nor_ray_nor_optuna(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path)
    code = f"""
import sys
from pathlib import Path
import nas.execution.smoke
from nas.reporting.console import PlainLines, status_lines
from nas.runs.ledger import read_events
from nas.search.state import read_state
folder = Path({str(tmp_path)!r})
print("\\n".join(status_lines(read_state(folder).run, read_events(folder))))
print([name for name in ("torch", "ray", "optuna", "pandas") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[0] == "tiny"
    assert printed.splitlines()[-1] == "[]"
