"""The lock of a run directory on this machine's file systems: their own, or a lease where theirs fails."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs.layout import LOCK
from space.errors import RunError

if TYPE_CHECKING:
    from nas.runs.remote_lock import RemoteLock

LEASE = "lock.json"
"""In a run directory whose file system has no locks: the lease, as at a URI."""

TRIES, PAUSE_S = 5, 0.05
"""`nas status` may have the lock for a moment."""


@dataclass(frozen=True)
class Driver:
    """The process that has a run open or had it last: `HOST, process N`, or "" when that is not known; and whether it still has."""

    name: str
    alive: bool


class RunLock:
    """Reserves a run directory, which must exist, for this process.

    The lock is the file system's own (flock), which ends with the process. Some network file systems have none; there a lease takes
    its place: a file with host, process and time, renewed every minute.

    Attributes:
        note: What the user must know of the lock; empty for the file system's own.

    Raises:
        RunError: When another process has the directory open, or may have it open.
        OSError: When the directory cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.note = folder, ""
        self._lease: RemoteLock | None = None
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise

    def _take(self) -> None:
        try:
            self._flock()
        except (BlockingIOError, PermissionError):
            raise RunError(f"{self.folder} is in use by {self._owner() or 'another process'}; wait for it, or stop it") from None
        except OSError as error:
            self._take_lease(str(error.strerror))
            return
        if (self.folder / LEASE).exists() and (lease := _lease(self.folder)).holder() is not None:
            # Of a machine on which the locks of this file system fail.
            lease.take()
            self._lease = lease
        os.truncate(self._file, 0)
        os.write(self._file, f"{socket.gethostname()}, process {os.getpid()}".encode())

    def _flock(self) -> None:
        for left in reversed(range(TRIES)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(PAUSE_S)

    def _take_lease(self, reason: str) -> None:
        if owner := self._owner():
            raise RunError(
                f"{self.folder}: the locks of its file system fail here ({reason}), and {owner} has taken one there; "
                f"if that process has ended, remove {self.folder / LOCK} and run the same command again"
            )
        self._lease = _lease(self.folder)
        self._lease.take()
        self.note = (
            f"the locks of the file system of {self.folder} fail ({reason}), so the run is held by the lease {LEASE} there; "
            "if this process is killed, another machine has to wait for five minutes"
        )

    def _owner(self) -> str:
        return os.pread(self._file, 200, 0).decode(errors="replace")

    def confirm(self) -> None:
        """Raise RunError when another process has taken the lease, as can be after this process was suspended for minutes."""
        if self._lease is not None:
            self._lease.confirm()

    def release(self) -> None:
        """Release the lock."""
        if self._lease is not None:
            self._lease.release()
        with suppress(OSError):
            os.truncate(self._file, 0)
        os.close(self._file)


def driver_of(folder: Path, uri: str | None = None) -> Driver:
    """The process that has a run directory open, or had it last; `uri` is what the folder mirrors, if any. Nothing is written."""
    if uri is not None or (folder / LEASE).exists():
        holder = _lease(folder, uri).holder()
        if holder is not None:
            return Driver(f"{holder['host']}, process {holder['pid']}", alive=True)
    if uri is not None:
        return Driver("", alive=False)
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return Driver("", alive=False)
    try:
        name = os.read(file, 200).decode(errors="replace")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return Driver(name, alive=True)
    except OSError:
        # A file system without locks, and no lease.
        return Driver("", alive=False)
    finally:
        os.close(file)
    return Driver(name, alive=False)


def _lease(folder: Path, uri: str | None = None) -> RemoteLock:
    # Imported here, because pyarrow takes long and few directories need it.
    from nas.runs.remote import Remote
    from nas.runs.remote_lock import RemoteLock

    return RemoteLock(Remote(uri or folder.resolve().as_uri()))
