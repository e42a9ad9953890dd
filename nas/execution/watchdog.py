"""Limits waits that might never end: a trial without progress, and a GPU whose memory is not released.

Time is `time.monotonic`, and a gap in which the watcher itself did not run (a stopped process, an overloaded machine) counts for at
most two polls. So neither a changed clock nor a paused process ends a trial.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from nas.runs.layout import HUNG
from space.errors import ToolkitError

START_LIMIT_S = 600.0
"""Least time limit for loading data and building a model, whatever the limit of a step."""

EXIT_CODE = 75
"""The exit code of a worker that ends itself (EX_TEMPFAIL of sysexits.h)."""

Progress = Callable[[], object]
"""Returns a value that changes with progress."""


class TimeLimitError(ToolkitError):
    """A trial made no progress for too long."""


class ProgressWatchdog:
    """Measures the time without progress; to be polled every `interval_s` seconds."""

    def __init__(self, progress: Progress, limit_s: float, doing: str) -> None:
        self.limit_s, self.interval_s, self.doing = limit_s, min(1.0, limit_s / 10), doing
        self._progress, self._last = progress, progress()
        self._quiet_s, self._polled = 0.0, time.monotonic()

    def complaint(self) -> str | None:
        """Poll: a one-line reason once there was no progress for longer than the limit, None before."""
        now, current = time.monotonic(), self._progress()
        # A long gap between two polls means that this process did not run, and neither did the trial.
        gap, self._polled = min(now - self._polled, 2 * self.interval_s), now
        if current != self._last:
            self._last, self._quiet_s = current, 0.0
            return None
        self._quiet_s += gap
        if self._quiet_s <= self.limit_s:
            return None
        return f"no progress for {self.limit_s:g} s while {self.doing}; raise resources.step_limit_s if that is no hang"


@contextmanager
def ends_worker(progress: Progress, limit_s: float, folder: Path, doing: str = "training") -> Iterator[None]:
    """Within the context, a thread ends this process after `limit_s` seconds without progress.

    The reason is left in the trial's folder. Nothing less than ending the process stops a library that hangs. A library that hangs
    while it holds Python's global lock stops the thread too.
    """
    watchdog, done = ProgressWatchdog(progress, limit_s, doing), threading.Event()

    def poll() -> None:
        while not done.wait(watchdog.interval_s):
            reason = watchdog.complaint()
            if reason and not done.is_set():
                end_worker(folder, reason)

    threading.Thread(target=poll, name="step limit", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def end_worker(folder: Path, reason: str) -> NoReturn:
    """End this process at once and leave a one-line reason in the trial's folder; the trial is not tried again."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / HUNG).open("w", encoding="utf-8") as file:
            file.write(reason + "\n")
            file.flush()
            os.fsync(file.fileno())
    os._exit(EXIT_CODE)


def take_reason(folder: Path) -> str | None:
    """Read and remove the reason why a trial's worker ended itself; None when it did not."""
    with suppress(OSError):
        reason = (folder / HUNG).read_text(encoding="utf-8").strip()
        (folder / HUNG).unlink()
        return reason or None
    return None


@contextmanager
def raises_when_still(progress: Progress, limit_s: float) -> Iterator[None]:
    """Within the context, raise TimeLimitError in the main thread after `limit_s` seconds without progress.

    The error is raised between two Python instructions, so it does not interrupt a library call that never returns. Outside the
    main thread, and on systems without SIGALRM, there is no time limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    watchdog = ProgressWatchdog(progress, limit_s, "training")

    def poll(_signal: int, _frame: object) -> None:
        reason = watchdog.complaint()
        if reason:
            raise TimeLimitError(reason)

    before = signal.signal(signal.SIGALRM, poll)
    signal.setitimer(signal.ITIMER_REAL, watchdog.interval_s, watchdog.interval_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for_memory(needed: int, free: Callable[[], int], limit_s: float, pause_s: float = 0.2) -> None:
    """Wait until a GPU has enough free memory: another process that was stopped may release its memory late.

    Args:
        needed: Bytes that must be free.
        free: Returns the free bytes.
        limit_s: Longest wait, in seconds.
        pause_s: Seconds between two readings.

    Raises:
        MemoryError: If the memory is not free within the limit; the trial then fails as out of memory.
    """
    deadline = time.monotonic() + limit_s
    while (available := free()) < needed:
        if time.monotonic() >= deadline:
            raise MemoryError(
                f"only {available / 2**20:.0f} MiB of the GPU became free within {limit_s:g} s, but the trial is predicted to need "
                f"{needed / 2**20:.0f} MiB; end what else runs on the GPU, or lower training.batch_size"
            )
        time.sleep(pause_s)
