"""A run directory at a URI, as the driver keeps it: what is written in its mirror is uploaded, and one process has it at a time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs.events import Event
from nas.runs.ledger import LEDGER
from nas.runs.ledger import LOCK as LOCAL_LOCK
from nas.runs.remote import Remote, RunLocation, fetch_checkpoint, locate, remote_at, run_identity, upload_checkpoint
from space.errors import RunError

if TYPE_CHECKING:
    from nas.search.controller import Search

SEGMENT_BYTES = 64 * 2**10
"""The ledger is kept in parts of at most this size (and at least a line), of which the last is uploaded again at every event.

Larger parts mean fewer files, and more bytes an event: half a part on average.
"""

LOCK = "lock.json"
REFRESH_S, STALE_S = 60.0, 300.0
"""A lock is written again so often, and is nobody's any more when it has not been for so long."""

SURE_S = 10.0
"""How long after a look at its lock a process may write without looking again."""

UPLOADED = "uploaded"
"""In a mirror: an empty file that says that its run was at the URI once."""

_held: set[str] = set()
"""The tokens of the locks that this process has."""

_SEGMENT = re.compile(r"ledger-(\d{5,})\.jsonl")


class Lock:
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

    def _owner(self) -> Event | None:
        """What the lock says; None when there is none, or nothing in it that says whose it is."""
        try:
            owner = json.loads(self.remote.read(LOCK) or b"")
            return owner if {"host", "pid", "pids_of", "time", "token"} <= set(owner) else None
        except (ValueError, TypeError):
            return None

    def _refusal(self, owner: Event) -> RunError:
        return RunError(
            f"{self.remote.uri} is in use by {owner['host']}, process {owner['pid']}; wait for it, or stop it "
            f"(a process that died elsewhere is waited for {STALE_S / 60:g} minutes)"
        )


def _has_ended(owner: Event) -> bool:
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


class Mirror:
    """The run directory at a URI while a driver works on it in the mirror; a context manager and a listener of the search.

    Entering it checks that the place can be written, takes its lock, and brings its ledger here; every event is there before the
    search goes on. Raises RunError, in one sentence, when that cannot be; what was done is in the mirror then, and the same
    command goes on from there.
    """

    def __init__(self, where: RunLocation) -> None:
        assert where.uri is not None, "a path needs no mirror"
        self.uri, self.folder = where.uri, where.folder
        self._number, self._start, self._sent = 0, 0, 0

    def __enter__(self) -> Mirror:
        # What an earlier run in this process knew of the place may have changed.
        remote_at.cache_clear()
        self.remote = remote_at(self.uri)
        self.lock = Lock(self.remote)
        self.lock.take()
        try:
            parts = bring_ledger(self.remote, self.folder)
            # The last part may grow.
            self._number, self._sent = max(len(parts) - 1, 0), parts[-1] if parts else 0
            self._start = sum(parts) - self._sent
            if (self.folder / LEDGER).exists():
                # What an upload did not come to.
                for event in self._not_there():
                    self._upload_for(event)
                self.upload_ledger()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # After an upload that failed, what came before it is to be there first: see `_not_there`.
            if kind is None and (self.folder / LEDGER).exists():
                self.upload_ledger()
        finally:
            self.lock.release()

    def __call__(self, event: Event, search: Search) -> None:
        """A listener of the search: upload what an event speaks of, and then the event."""
        self._upload_for(event)
        self.upload_ledger()

    def _upload_for(self, event: Event) -> None:
        if event["event"] == "export" and (self.folder / event["folder"]).is_dir():
            self.upload(event["folder"])
        elif event["event"] == "report" and "reused" in event:
            for folder in self.folder.glob(f"trials/{event['trial']:04d}-*"):
                upload_checkpoint(self.uri, folder.name, folder)

    def _not_there(self) -> list[Event]:
        """The events that the mirror has more than the place."""
        try:
            events: list[Event] = [json.loads(line) for line in self._rest()[self._sent :].split(b"\n")[:-1]]
            return [event for event in events if event["event"]]
        except (ValueError, KeyError, TypeError):
            raise RunError(
                f"{self.folder / LEDGER} is damaged beyond what is at {self.remote.uri}; remove {self.folder} to go on from there"
            ) from None

    def _rest(self) -> bytes:
        """The ledger's lines from where the last part begins."""
        try:
            with (self.folder / LEDGER).open("rb") as file:
                file.seek(self._start)
                rest = file.read()
        except OSError as error:
            raise RunError(f"{self.folder / LEDGER} cannot be read: {error.strerror}; run the same command again") from None
        return rest[: rest.rfind(b"\n") + 1]

    def upload_ledger(self) -> None:
        """Upload what the ledger has more than the place."""
        rest = self._rest()
        if len(rest) <= self._sent:
            return
        self.lock.confirm()
        (self.folder / UPLOADED).touch()
        while rest:
            part = _first_part(rest)
            if len(part) > self._sent:
                self.remote.write(f"ledger-{self._number:05d}.jsonl", part)
                self._sent = len(part)
            rest = rest[len(part) :]
            if rest:
                self._number, self._start, self._sent = self._number + 1, self._start + len(part), 0

    def upload(self, name: str) -> None:
        """Upload a file of the run directory, or the files of a folder in it."""
        path = self.folder / name
        self.lock.confirm()
        if path.is_dir():
            self.remote.upload_folder(path, name)
        else:
            self.remote.upload(path, name)

    def fetch_folder(self, name: str) -> None:
        """Bring the files of a folder of the run directory here, such as an export that another machine made."""
        self.remote.download_folder(name, self.folder / name)

    def fetch_checkpoint(self, trial: str) -> None:
        """Bring the checkpoint of a trial here."""
        fetch_checkpoint(self.uri, trial, self.folder / "trials" / trial, run_identity(self.folder))


def fetch(uri: str) -> Path:
    """Bring the ledger of a run to its mirror, to be read; returns the mirror.

    Nothing is written at the URI, and a run that goes on meanwhile is not disturbed. Raises RunError when there is no run.
    """
    where = locate(uri)
    if not bring_ledger(remote_at(uri), where.folder):
        raise RunError(f"{where} is not a run directory: it has no ledger")
    return where.folder


def bring_ledger(remote: Remote, folder: Path) -> list[int]:
    """Make a mirror's ledger at least what is at its URI; returns the sizes of the parts there, in bytes.

    Raises RunError when the two have gone apart, or when what was uploaded is not there any more.
    """
    parts = _parts(remote)
    there, path = b"".join(parts), folder / LEDGER
    try:
        here = path.read_bytes() if path.exists() else b""
        here = here[: here.rfind(b"\n") + 1]
        if here and not there and (folder / UPLOADED).exists():
            raise RunError(f"{remote.uri} holds no run any more, but its mirror {folder} does; remove the mirror to start anew")
        if not here.startswith(there) and not there.startswith(here):
            lines = zip(here.split(b"\n"), there.split(b"\n"), strict=False)
            line = next(number for number, (ours, theirs) in enumerate(lines, start=1) if ours != theirs)
            raise RunError(
                f"{remote.uri} and its mirror {folder} have gone apart (line {line} of {LEDGER}), as another process went on "
                f"there; remove {folder} to go on from {remote.uri}"
            )
        if len(there) > len(here):
            _replace(folder, there)
            (folder / UPLOADED).touch()
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder that can") from None
    return [len(part) for part in parts]


def _parts(remote: Remote) -> list[bytes]:
    """The parts of the ledger at a place, in whole lines."""
    names = [name for name in remote.names() if _SEGMENT.fullmatch(name)]
    expected = [f"ledger-{number:05d}.jsonl" for number in range(len(names))]
    with ThreadPoolExecutor(8) as pool:
        found: list[bytes] = []
        for name, content in zip(expected, pool.map(remote.read, expected), strict=True):
            if content is None:
                raise RunError(f"{remote.uri} lacks {name}; restore it from a copy, or run into another place with --out")
            found.append(content)
    if found:
        found[-1] = found[-1][: found[-1].rfind(b"\n") + 1]
    return found


def _first_part(lines: bytes) -> bytes:
    """As many whole lines as fit into a part, at least one."""
    if len(lines) <= SEGMENT_BYTES:
        return lines
    return lines[: lines.rfind(b"\n", 0, SEGMENT_BYTES) + 1 or lines.find(b"\n") + 1]


def _replace(folder: Path, content: bytes) -> None:
    """Replace a mirror's ledger, unless a process has it open."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCAL_LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is in use by another process; wait for it, or stop it") from None
        partial = folder / f"{LEDGER}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / LEDGER)
