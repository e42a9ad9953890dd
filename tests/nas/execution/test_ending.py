"""The end of a run before it is done: by signals, and in time before a wall time is over."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from click.testing import CliRunner

from nas.cli.app import main
from nas.execution.ending import Ended, Ending, seconds_of
from nas.execution.ray_adapters import FAILURE, PLAN, REPORT, PlanSearcher, RungScheduler
from nas.execution.runner import run_study
from nas.runs.ledger import Ledger
from nas.runs.records import State
from nas.search.controller import Search
from nas.training.trial import Trial
from space import ToolkitError
from tests.nas.scripted import carry_out, facts, report


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("text", "seconds"), [("3h50m", 13800), ("45m", 2700), ("1d12h", 129600), (" 90S ", 90)])
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "3", "3:50:00", "3h 50m", "-3h", "3h50"])
def test_what_is_no_duration(text):
    with pytest.raises(ToolkitError, match="is no duration; write one such as 3h50m"):
        seconds_of(text)


def test_a_trial_goes_on_from_a_rung_only_if_it_reaches_the_next_in_time(tiny, tmp_path):
    clock = Clock()
    search, ending = Search(tiny, Ledger(tmp_path)), Ending(1000, clock)
    plan = search.next_plan()
    assert ending.begins(plan, search), "nothing is known of its speed"
    first, second, _ = plan.milestones
    clock.now = 100.0
    reported = report(plan, 0)
    ending.measure(reported)
    assert ending.goes_on(reported, plan), f"about {100 * (second - first) / first} s"
    clock.now = 600.0
    reported = report(plan, 1)
    ending.measure(reported)
    assert not ending.goes_on(reported, plan), "it would take a thousand seconds"
    assert ending.reason == "the wall time is nearly over"
    assert not ending.begins(search.next_plan(), search), "nothing new begins after that"


def test_on_ray_what_would_not_end_in_time_is_let_go_at_its_rung_and_nothing_else_begins(tiny, tmp_path):
    clock = Clock()
    search, ending = Search(tiny, Ledger(tmp_path / "parts" / "run")), Ending(1000, clock)
    scheduler = RungScheduler(search, ending=ending)
    searcher = PlanSearcher(scheduler, tmp_path / "study.json", tmp_path / "trials", lambda plan: {})
    plan = scheduler.next_plan()
    trial = type("RayTrial", (), {"config": {PLAN: plan.model_dump_json()}})()
    searcher._running.add("a")
    clock.now = 900.0
    assert scheduler.on_trial_result(None, trial, {REPORT: report(plan, 0).model_dump_json()}) == "STOP"
    assert searcher.suggest("b") == "FINISHED"
    assert search.run.trials[0].state is State.RUNNING
    search.ledger.close()
    # The same command goes on, as if nothing had been.
    again = Search(tiny, Ledger(tmp_path / "parts" / "run"))
    carry_out(again)
    whole = Search(tiny, Ledger(tmp_path / "whole" / "run"))
    carry_out(whole)
    assert facts(tmp_path / "parts" / "run") == facts(tmp_path / "whole" / "run")
    assert FAILURE not in facts(tmp_path / "parts" / "run")


def interrupt(monkeypatch, number, at=2):
    """Send this process a signal while a trial is trained to its report number `at`."""
    original, left = Trial.advance, [at]

    def advance(self):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Trial, "advance", advance)


def test_sigusr1_ends_the_run_at_the_next_rung(tiny_file, tmp_path, monkeypatch):
    folder, before = tmp_path / "run", signal.getsignal(signal.SIGUSR1)
    interrupt(monkeypatch, signal.SIGUSR1)
    done = CliRunner().invoke(main, ["run", str(tiny_file), "--out", str(folder), "--in-process"])
    assert done.exit_code == 75
    assert done.output.endswith("run: an end was asked for by SIGUSR1; the same command goes on from the last rungs\n")
    assert sum(event["event"] == "report" for event in facts(folder)) == 2, "the report on the way is the last"
    assert signal.getsignal(signal.SIGUSR1) is before


def test_sigterm_ends_the_run_at_once_and_the_same_command_goes_on(tiny, tiny_file, tmp_path, monkeypatch):
    folder, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt(patch, signal.SIGTERM)
        done = CliRunner().invoke(main, ["run", str(tiny_file), "--out", str(folder), "--in-process"])
    assert done.exit_code == 143
    assert done.output.endswith("nas: ended by SIGTERM; the same command goes on from the last rungs\n")
    assert sum(event["event"] == "report" for event in facts(folder)) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    run = run_study(tiny, folder, in_process=True)
    assert not run.in_state(State.RUNNING)
    assert not run.in_state(State.FAILED)


def test_what_ray_makes_of_a_signal_is_told_as_the_signal():
    """Ray raises a bare KeyboardInterrupt in place of whatever a handler has raised while it waited."""
    with pytest.raises(Ended, match="ended by SIGTERM"), Ending():
        with suppress(Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt


def test_a_wall_time_that_is_over_is_no_sigterm():
    with pytest.raises(Ended, match="the wall time is over; the same command") as error, Ending(0.1):
        signal.pause()
    assert error.value.code == 75


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "reports"), [("SIGTERM", 143, {1, 2}), ("SIGUSR1", 75, {2, 3})])
def test_signals_end_a_run_on_ray_as_one_in_this_process(tiny, tiny_file, tmp_path, name, code, reports):
    # Two trials train at a time: after SIGUSR1, the other one's report still comes.
    driver = f"""
import os, signal, sys
from nas.cli.app import main
from nas.search.controller import Search
original, left = Search.report, [2]
def report(self, *arguments):
    if not (left.append(left.pop() - 1) or left[0]):
        os.kill(os.getpid(), signal.{name})
    return original(self, *arguments)
Search.report = report
main(sys.argv[1:])
"""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", driver, "run", str(tiny_file), "--out", str(folder), "--set", "resources.concurrent=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    told = {"SIGTERM": "nas: ended by SIGTERM; ", "SIGUSR1": "run: an end was asked for by SIGUSR1; "}[name]
    assert f"{told}the same command goes on from the last rungs\n" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sum(event["event"] == "report" for event in facts(folder)) in reports
    run = run_study(tiny, folder, in_process=True)
    assert not run.in_state(State.RUNNING)
    assert not run.in_state(State.FAILED)
