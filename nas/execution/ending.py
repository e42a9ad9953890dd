"""The end of a run before it is done: asked for by SIGUSR1 or near the end of a wall time, forced by SIGTERM or at its end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from space.errors import RunError, ToolkitError

if TYPE_CHECKING:
    # The command line imports this module for the errors alone.
    from nas.runs.records import Report, TrialPlan
    from nas.search.controller import Search

GOES_ON = "the same command goes on from the last rungs"

TERMINATED, UNFINISHED = 143, 75
"""Exit codes: of a process that SIGTERM ended, and of a run that ended early by itself: EX_TEMPFAIL of sysexits.h, "try again"."""

RESERVE_S, RESERVE_SHARE = 60.0, 0.05
"""The end is forced this long before a wall time is over, but by at most this share of it: workers have to be stopped too."""

MARGIN = 1.2
"""A stretch of training may take this much longer than the last one at equal compute."""

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class UnfinishedError(RunError):
    """A run that ended at its rungs, as it was asked to, before it was done; the same command goes on."""


class Ended(KeyboardInterrupt):
    """The process has to end now, as after Ctrl-C; the work since the last rungs is lost.

    A KeyboardInterrupt, because nothing may take it for the failure of a trial.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason}; {GOES_ON}")
        self.code = code


class Ending:
    """Decides whether a run goes on; a context manager that listens to SIGTERM and SIGUSR1, if it is in the main thread.

    SIGTERM raises `Ended`. After SIGUSR1 no trial goes on from its next rung. With a wall time, a trial goes on from a rung only if
    it is expected to reach the next one in time, at the seconds per multiply-accumulate that it took so far (a new trial: that the
    slowest took); shortly before the wall time is over `Ended` is raised.

    Args:
        walltime_s: Seconds from now after which the process is killed; None for no limit.
        clock: Returns seconds.
    """

    def __init__(self, walltime_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = ""
        """Why the run ends; empty while it goes on."""
        self._clock, self._asked, self._over = clock, False, False
        self._deadline = None if walltime_s is None else clock() + walltime_s - min(RESERVE_S, RESERVE_SHARE * walltime_s)
        self._since: dict[int, tuple[float, int]] = {}
        """By trial: when its present stretch began, and its multiply-accumulates then."""
        self._pace: dict[int, float] = {}
        """By trial: seconds per multiply-accumulate of its last stretch."""
        # Not every system has SIGUSR1.
        asking: dict[int, Any] = {signal.SIGUSR1: self._ask} if hasattr(signal, "SIGUSR1") else {}
        self._handlers: dict[int, Any] = {signal.SIGTERM: self._terminate, **asking}
        self._before: dict[int, Any] = {}
        """The handlers before; empty while it does not listen."""
        self._timer: threading.Timer | None = None
        self._ended: Ended | None = None

    def __enter__(self) -> Ending:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in self._handlers}
        self.listen()
        if self._deadline is not None and self._before:
            self._timer = threading.Timer(max(0.0, self._deadline - self._clock()), self._force)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if kind is KeyboardInterrupt and self._ended is not None:
            # While it waits, Ray raises this in place of what a handler raised.
            raise self._ended from None

    def listen(self) -> None:
        """Take the signals again, where a library has taken them since."""
        for number in self._before:
            signal.signal(number, self._handlers[number])

    def begins(self, plan: TrialPlan, search: Search) -> bool:
        """Whether a worker may take a plan."""
        reports = search.run.trials[plan.number].reports
        macs = reports[-1].macs if reports else 0
        self._since[plan.number] = self._clock(), macs
        return not self.reason and self._in_time(plan.milestones[0] - macs, max(self._pace.values(), default=0.0))

    def measure(self, report: Report) -> None:
        """Note how long a trial took to a report."""
        now, (began, macs) = self._clock(), self._since[report.trial]
        self._since[report.trial] = now, report.macs
        if report.macs > macs:
            self._pace[report.trial] = (now - began) / (report.macs - macs)

    def goes_on(self, report: Report, plan: TrialPlan) -> bool:
        """Whether a trial that may train on goes on from a report to its plan's next milestone."""
        following = plan.milestones[report.rung - plan.reported + 1]
        return not self._asked and self._in_time(following - report.macs, self._pace.get(report.trial, 0.0))

    def _in_time(self, macs: int, pace: float) -> bool:
        if self._deadline is None or self._clock() + MARGIN * macs * pace < self._deadline:
            return True
        self.reason = self.reason or "the wall time is nearly over"
        return False

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked, self.reason = True, "an end was asked for by SIGUSR1"

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        # What stops the workers must not be interrupted.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        over = self._over
        self._ended = Ended("the wall time is over", UNFINISHED) if over else Ended("ended by SIGTERM", TERMINATED)
        raise self._ended

    def _force(self) -> None:
        self._over = True
        os.kill(os.getpid(), signal.SIGTERM)


def seconds_of(text: str) -> float:
    """The seconds of a duration such as `3h50m`, `45m`, `1d12h` or `90s`.

    Raises:
        ToolkitError: If it is no such duration, or zero.
    """
    parts = re.findall(r"(\d+)([dhms])", text.strip().lower())
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not seconds:
        raise ToolkitError(f"'{text}' is no duration; write one such as 3h50m, 45m or 1d12h")
    return float(seconds)
