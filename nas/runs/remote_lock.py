"""The lock of a run directory at a URI, because stores have no locks of their own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from nas.runs.remote import Remote
from space.errors import RunError

Owner = dict[str, Any]
"""The content of a lock: its process's host, pid, pids_of (the namespace of the pid), time (seconds, Unix) and token."""

LOCK = "lock.json"
REFRESH_S, STALE_S = 60.0, 300.0
"""A lock is rewritten every REFRESH_S seconds, and expires when it was not rewritten for STALE_S seconds."""

SURE_S = 10.0
"""A process may write for this many seconds after it checked its lock, before it checks again."""

_held: set[str] = set()
"""The tokens of the locks that this process holds."""


class RemoteLock:
    """Reserves a folder at a URI for this process.

    The lock is a file with the owner's host and pid, rewritten every minute. Its age is measured by the store's clock, because the
    clocks of two machines may differ. Two processes that start within the same second may both take it. The first to check again,
    at most `SURE_S` seconds later, then finds the other's token and stops.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote, self._token = remote, secrets.token_hex(8)
        self._looked, self._one_at_a_time, self._done = 0.0, threading.Lock(), threading.Event()

    def take(self) -> None:
        """Take the lock. Raises RunError when another process has it, or when a written file cannot be read back."""
        probe = f".probe-{self._token}"
        self.remote.write(probe, self._token.encode())
        content, now = self.remote.read(probe), self.remote.modified(probe)
        self.remote.delete(probe)
        if content != self._token.encode():
            raise RunError(f"{self.remote.uri} does not give back what is written there; choose another place with --out")
        owner = self._owner()
        if owner is not None:
            then = self.remote.modified(LOCK)
            age_s = (now - then).total_seconds() if now and then else time.time() - owner["time"]
            if age_s <= STALE_S and not _has_ended(owner):
                raise self._refusal(owner)
        self._write()
        owner = self._owner()
        if owner is not None and owner["token"] != self._token:
            raise self._refusal(owner)
        _held.add(self._token)
        threading.Thread(target=self._refresh, name="lock", daemon=True).start()

    def holder(self) -> Owner | None:
        """The process that has the lock, as far as this machine's clock can tell; None when there is none. Nothing is written."""
        owner = self._owner()
        return None if owner is None or _has_ended(owner) or time.time() - owner["time"] > STALE_S else owner

    def confirm(self) -> None:
        """Raise RunError when another process has the lock by now, as can be after this process was suspended for minutes."""
        with self._one_at_a_time:
            # `abs`, because the clock may have been set back.
            if abs(time.time() - self._looked) > SURE_S:
                self._renew()

    def release(self) -> None:
        """Release the lock. A lock file that cannot be deleted expires by itself."""
        self._done.set()
        _held.discard(self._token)
        with self._one_at_a_time, suppress(RunError):
            owner = self._owner()
            if owner is not None and owner["token"] == self._token:
                self.remote.delete(LOCK)

    def _refresh(self) -> None:
        while not self._done.wait(REFRESH_S):
            # An error is dropped here, because the next upload checks again and reports it.
            with self._one_at_a_time, suppress(RunError):
                if not self._done.is_set():
                    self._renew()

    def _renew(self) -> None:
        owner = self._owner()
        if owner is None:
            raise RunError(f"{self.remote.uri} has lost its {LOCK}, so another process may use it; run the same command again")
        if owner["token"] != self._token:
            raise self._refusal(owner)
        self._write()

    def _write(self) -> None:
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pids_of": _pid_namespace(),
            "time": time.time(),
            "token": self._token,
        }
        self.remote.write(LOCK, json.dumps(owner).encode())
        self._looked = time.time()

    def _owner(self) -> Owner | None:
        """The content of the lock; None when there is none, or when it does not name its owner."""
        try:
            owner = json.loads(self.remote.read(LOCK) or b"")
            return owner if {"host", "pid", "pids_of", "time", "token"} <= set(owner) else None
        except (ValueError, TypeError):
            return None

    def _refusal(self, owner: Owner) -> RunError:
        return RunError(
            f"{self.remote.uri} is in use by {owner['host']}, process {owner['pid']}; wait for it, or stop it "
            f"(a process that died elsewhere is waited for {STALE_S / 60:g} minutes)"
        )


def _has_ended(owner: Owner) -> bool:
    """Whether the owner is a process of this machine that has ended or released it; False when its pid is of another namespace."""
    if (owner["host"], owner["pids_of"]) != (socket.gethostname(), _pid_namespace()):
        return False
    if owner["pid"] == os.getpid():
        # A lock that this process could not delete, or that of an earlier process with the same number.
        return owner["token"] not in _held
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _pid_namespace() -> str:
    """The namespace of this process's number. Containers may share their machine's name, but number processes differently."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
