"""The ledger: the append-only record of a run, one JSON object per line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import TypeVar

from nas.data.header import Header
from nas.runs.events import Event, LedgerEvent, RunBegan, parse_event
from nas.runs.layout import LEDGER
from nas.runs.run_lock import RunLock
from space.errors import RunError

E = TypeVar("E", bound=LedgerEvent)


def read_events(folder: Path) -> Iterator[Event]:
    """The events of a run, oldest first; a torn last line is left out.

    Raises:
        RunError: When there is no ledger, when a whole line is damaged or no valid event, or when the ledger has another schema.
    """
    path = folder / LEDGER
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run directory: it has no {LEDGER}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    header: Header | None = None
    # Every whole line ends in a newline; anything after the last newline was torn by a crash.
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        event = parse_event(line, f"{path}:{number}", header)
        if isinstance(event, RunBegan):
            header = event.data
        yield event


def apply_events(folder: Path, events: Iterable[Event], apply: Callable[[Event], None]) -> None:
    """Apply the events of a run's ledger, from its first line on.

    Raises:
        RunError: When an event does not follow from those before it, such as the report of a trial that has not begun.
    """
    for number, event in enumerate(events, start=1):
        try:
            apply(event)
        except (LookupError, ValueError) as error:
            what = f"it names {error}, which is not there" if isinstance(error, (KeyError, IndexError)) else str(error)
            raise RunError(
                f"{folder / LEDGER}:{number}: the event '{event.event}' does not follow from the lines before it ({what}); "
                "restore the file from a copy, or move the directory away to start anew"
            ) from None


def run_identity(folder: Path) -> str:
    """Identifies a run among all runs at the same address: a digest of the first line of its ledger, which holds a time.

    Raises:
        RunError: When the ledger cannot be read.
    """
    try:
        with (folder / LEDGER).open("rb") as file:
            return hashlib.sha256(file.readline()).hexdigest()[:16]
    except OSError as error:
        raise RunError(f"{folder / LEDGER} cannot be read: {error.strerror}") from None


class Ledger:
    """A run's ledger open for appending by this process alone.

    Every event is on disk when `append` returns, so a process that is killed loses no event.

    Raises:
        RunError: When the directory cannot be written or another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failed = ""
        """Why nothing can be appended any more."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(folder)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}; choose another place with --out") from None
        self.note = self._lock.note
        """What the user must know of the lock, if anything."""
        try:
            self._drop_torn_line()
            self._file = os.open(folder / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self._lock.release()
            raise RunError(f"{folder / LEDGER} cannot be written: {error.strerror}; choose another place with --out") from None

    def _drop_torn_line(self) -> None:
        path = self.folder / LEDGER
        if path.exists():
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                os.truncate(path, whole)

    def append(self, event: E) -> E:
        """Write one event, stamped with the time (UTC), and return the stamped event. Raises RunError when it cannot be written."""
        stamped = event.model_copy(update={"time": datetime.now(UTC).isoformat(timespec="seconds")})
        line = json.dumps(stamped.plain(), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._check_still_there()
        if self._failed:
            raise RunError(self._failed)
        self._lock.confirm()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            # Nothing may be appended after a partial line.
            self._failed = (
                f"{self.folder / LEDGER} cannot be written: {error.strerror}; free some space and run the same command again"
            )
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise RunError(self._failed) from None
        return stamped

    def _check_still_there(self) -> None:
        """Raise RunError when the ledger was removed or moved, because writes to the open file would then be lost."""
        path = self.folder / LEDGER
        try:
            there = os.path.samestat(os.stat(path), os.fstat(self._file))
        except OSError:
            there = False
        if not there:
            raise RunError(f"{path} was removed or moved while the run went on; put it back and run the same command again")

    def close(self) -> None:
        """Close the ledger, so that other processes can open the run."""
        os.close(self._file)
        self._lock.release()
