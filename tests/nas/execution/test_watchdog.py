"""What hangs is ended, what moves is not, whatever the clock does."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from nas.execution.watchdog import (
    EXIT_CODE,
    HUNG,
    ProgressWatchdog,
    TimeLimitError,
    raises_when_still,
    take_reason,
    wait_for_memory,
)

HANGS = """
import sys, threading
from pathlib import Path
from nas.execution.watchdog import ends_worker
with ends_worker(lambda: 7, 0.3, Path(sys.argv[1]) / "trial"):
    threading.Event().wait()
"""


def test_a_worker_that_hangs_ends_itself_and_says_why(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == EXIT_CODE
    reason = take_reason(tmp_path / "trial")
    assert reason is not None
    assert reason.startswith("no progress for 0.3 s while training")
    assert "resources.step_limit_s" in reason
    assert "\n" not in reason
    assert take_reason(tmp_path / "trial") is None, "a reason is told once"
    assert not (tmp_path / "trial" / HUNG).exists()


def test_a_worker_that_ends_in_time_is_left_alone(tmp_path):
    code = HANGS.replace("threading.Event().wait()", "pass") + "[t.join() for t in threading.enumerate()[1:]]\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert take_reason(tmp_path / "trial") is None


def test_what_hangs_in_this_process_is_interrupted():
    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"no progress for 0\.3 s"), raises_when_still(lambda: 7, 0.3):
        threading.Event().wait(60)
    assert time.monotonic() - start < 30
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_moves_in_this_process_is_not_interrupted():
    steps = [0]
    start = time.monotonic()
    with raises_when_still(lambda: steps[0], 0.3):
        while time.monotonic() - start < 1:
            steps[0] += 1


def test_elsewhere_than_in_the_main_thread_nothing_is_watched():
    raised = []

    def work():
        try:
            with raises_when_still(lambda: 7, 0.01):
                raised.append(signal.getitimer(signal.ITIMER_REAL))
        except ValueError as error:  # What signal.signal raises there.
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [(0.0, 0.0)]


class Clock:
    """A clock that tests set, as `time.monotonic`; a sleep moves it on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("nas.execution.watchdog.time.monotonic", lambda: self.now)
        monkeypatch.setattr("nas.execution.watchdog.time.sleep", self.pass_by)

    def pass_by(self, seconds):
        self.now += seconds


def polls(still, clock, seconds):
    """The complaints of polling for so long."""
    found = []
    for _ in range(round(seconds / still.interval_s)):
        clock.pass_by(still.interval_s)
        found.append(still.complaint())
    return [complaint for complaint in found if complaint]


def test_the_limit_is_counted_from_the_last_movement(monkeypatch):
    clock, steps = Clock(monkeypatch), [0]
    still = ProgressWatchdog(lambda: steps[0], 100, "training")
    assert not polls(still, clock, 99)
    steps[0] = 1
    assert not polls(still, clock, 100)
    assert polls(still, clock, 5)


def test_a_process_that_was_paused_did_not_hang(monkeypatch):
    clock = Clock(monkeypatch)
    still = ProgressWatchdog(lambda: 7, 100, "training")
    clock.pass_by(10_000)
    assert still.complaint() is None
    assert polls(still, clock, 105)


def test_a_wall_clock_that_is_set_changes_nothing(monkeypatch):
    wall = iter([0.0, 1e9, -1e9] * 1000)
    monkeypatch.setattr("time.time", lambda: next(wall))
    clock = Clock(monkeypatch)
    still = ProgressWatchdog(lambda: 7, 100, "training")
    assert not polls(still, clock, 100)
    assert polls(still, clock, 5)


def test_memory_is_awaited_until_a_neighbour_releases_it(monkeypatch):
    clock, free = Clock(monkeypatch), iter([100, 200, 900, 0])
    wait_for_memory(800, lambda: next(free), limit_s=10)
    assert next(free) == 0, "it stopped asking"
    assert clock.now < 1010


def test_memory_that_never_becomes_free_is_out_of_memory(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(MemoryError, match="only 100 MiB of the GPU became free within 10 s.* predicted to need 800 MiB"):
        wait_for_memory(800 * 2**20, lambda: 100 * 2**20, limit_s=10)
    assert 1010 <= clock.now < 1011
