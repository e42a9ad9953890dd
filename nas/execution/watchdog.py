"""Watches what may take for ever: a trial that makes no progress, and a GPU whose memory is not released.

Time is `time.monotonic`, and a stretch in which the watcher itself did not run (a stopped process, a starved machine) counts for
little, so neither a clock that is set nor a process that was paused ends a trial.
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
"""Loading data and building a model may take this long, whatever the limit of a step."""

EXIT_CODE = 75
"""With which a worker ends itself (EX_TEMPFAIL of sysexits.h)."""

Progress = Callable[[], object]
"""Anything that differs once there was progress."""


class TimeLimitError(ToolkitError):
    """A trial made no progress for too long."""


class ProgressWatchdog:
    """For how long something has not moved, as seen by whoever polls it every `interval_s` seconds."""

    def __init__(self, progress: Progress, limit_s: float, doing: str) -> None:
        self.limit_s, self.interval_s, self.doing = limit_s, min(1.0, limit_s / 10), doing
        self._progress, self._seen = progress, progress()
        self._quiet_s, self._polled = 0.0, time.monotonic()

    def complaint(self) -> str | None:
        """Poll: one line once nothing has moved for longer than the limit."""
        now, seen = time.monotonic(), self._progress()
        # A gap between two polls is time in which nothing here ran, the trial included.
        gap, self._polled = min(now - self._polled, 2 * self.interval_s), now
        if seen != self._seen:
            self._seen, self._quiet_s = seen, 0.0
            return None
        self._quiet_s += gap
        if self._quiet_s <= self.limit_s:
            return None
        return f"no progress for {self.limit_s:g} s while {self.doing}; raise resources.step_limit_s if that is no hang"


@contextmanager
def ends_worker(progress: Progress, limit_s: float, folder: Path, doing: str = "training") -> Iterator[None]:
    """Within it, a thread ends this process when nothing moves for `limit_s` seconds; the reason is left in the trial's folder.

    Nothing gentler stops a process that hangs in a library; a library that holds Python's lock meanwhile stops the thread too.
    """
    still, done = ProgressWatchdog(progress, limit_s, doing), threading.Event()

    def poll() -> None:
        while not done.wait(still.interval_s):
            reason = still.complaint()
            if reason and not done.is_set():
                end_worker(folder, reason)

    threading.Thread(target=poll, name="step limit", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def end_worker(folder: Path, reason: str) -> NoReturn:
    """End this process at once, with a one-line reason in the trial's folder; the trial is not tried again."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / HUNG).open("w", encoding="utf-8") as file:
            file.write(reason + "\n")
            file.flush()
            os.fsync(file.fileno())
    os._exit(EXIT_CODE)


def take_reason(folder: Path) -> str | None:
    """Why the worker of a trial ended itself, None when it did not; the note is removed."""
    with suppress(OSError):
        reason = (folder / HUNG).read_text(encoding="utf-8").strip()
        (folder / HUNG).unlink()
        return reason or None
    return None


@contextmanager
def raises_when_still(progress: Progress, limit_s: float) -> Iterator[None]:
    """Within it, TimeLimitError is raised in the main thread when nothing moves for `limit_s` seconds.

    It is raised between two instructions of Python, so a library that never returns is not interrupted. Elsewhere than in the
    main thread, and where there is no SIGALRM, nothing is watched.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    still = ProgressWatchdog(progress, limit_s, "training")

    def poll(_signal: int, _frame: object) -> None:
        reason = still.complaint()
        if reason:
            raise TimeLimitError(reason)

    before = signal.signal(signal.SIGALRM, poll)
    signal.setitimer(signal.ITIMER_REAL, still.interval_s, still.interval_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for_memory(needed: int, free: Callable[[], int], limit_s: float, pause_s: float = 0.2) -> None:
    """Return as soon as `free()` gives at least `needed` bytes of a GPU.

    A neighbour that was stopped may release its memory late. Raises MemoryError when it is not free within `limit_s` seconds, which
    fails the trial as out of memory.
    """
    ends = time.monotonic() + limit_s
    while (found := free()) < needed:
        if time.monotonic() >= ends:
            raise MemoryError(
                f"only {found / 2**20:.0f} MiB of the GPU became free within {limit_s:g} s, but the trial is predicted to need "
                f"{needed / 2**20:.0f} MiB; end what else runs on the GPU, or lower training.batch_size"
            )
        time.sleep(pause_s)
