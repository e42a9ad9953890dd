"""The lock of a run directory at a URI, where stores have no locks of their own."""

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
"""What a lock says of its process: host, pid, pids_of (the namespace of its number), time, token."""

LOCK = "lock.json"
REFRESH_S, STALE_S = 60.0, 300.0
"""A lock is written again so often, and is nobody's any more when it has not been for so long."""

SURE_S = 10.0
"""How long after a look at its lock a process may write without looking again."""

_held: set[str] = set()
"""The tokens of the locks that this process has."""


class RemoteLock:
    """Keeps a place at a URI for this process.

    Stores have no locks of their own, so this is a file with the owner's host and pid that is written again every minute. Its age
    is told by the store's clock, not by those of the two machines. Two processes that start within the same second may both take
    it; the first to look again, `SURE_S` seconds later at most, then finds the other's name and stops.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote, self._token = remote, secrets.token_hex(8)
        self._looked, self._one_at_a_time, self._done = 0.0, threading.Lock(), threading.Event()

    def take(self) -> None:
        """Take it; raises RunError when another process has it, or when what is written cannot be read back."""
        probe = f".probe-{self._token}"
        self.remote.write(probe, self._token.encode())
        found, now = self.remote.read(probe), self.remote.modified(probe)
        self.remote.delete(probe)
        if found != self._token.encode():
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

    def confirm(self) -> None:
        """Raises RunError when the lock is another's by now, as after this process was stopped for minutes."""
        with self._one_at_a_time:
            # Also when the clock was set back, or this machine slept.
            if abs(time.time() - self._looked) > SURE_S:
                self._renew()

    def release(self) -> None:
        """Let other processes have it; what cannot be deleted gets stale by itself."""
        self._done.set()
        _held.discard(self._token)
        with self._one_at_a_time, suppress(RunError):
            owner = self._owner()
            if owner is not None and owner["token"] == self._token:
                self.remote.delete(LOCK)

    def _refresh(self) -> None:
        while not self._done.wait(REFRESH_S):
            # What is wrong with the place is told by the next upload, which looks again.
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
        """What the lock says; None when there is none, or nothing in it that says whose it is."""
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
    """Whether the owner is a process of this machine that has ended or let go; never where its number means nothing here."""
    if (owner["host"], owner["pids_of"]) != (socket.gethostname(), _pid_namespace()):
        return False
    if owner["pid"] == os.getpid():
        # One that could not be deleted, or of an earlier process with the same number.
        return owner["token"] not in _held
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _pid_namespace() -> str:
    """Containers of one machine may share its name, but not its process numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
