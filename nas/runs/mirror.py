"""Keeps a run directory at a URI: the driver writes in a local mirror and uploads from it; one process has the URI at a time."""

from __future__ import annotations

import fcntl
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs.events import Event, Exported, Reported
from nas.runs.layout import LEDGER, TRIALS, UPLOADED
from nas.runs.layout import LOCK as LOCAL_LOCK
from nas.runs.ledger import read_events, run_identity
from nas.runs.remote import Remote, RunLocation, fetch_checkpoint, locate, remote_at, upload_checkpoint
from nas.runs.remote_lock import RemoteLock
from space.errors import RunError
from space.files import replace_file

if TYPE_CHECKING:
    from nas.runs.run import Run

SEGMENT_BYTES = 64 * 2**10
"""The largest part of the ledger at a URI; a part holds at least one line. The last part is uploaded again at every event.

Larger parts mean fewer files, and more uploaded bytes per event: half a part on average.
"""

_SEGMENT = re.compile(r"ledger-(\d{5,})\.jsonl")


class Mirror:
    """The run directory at a URI while a driver works on it in the mirror; a context manager and a listener of the search.

    Entering it checks that the URI can be written, takes its lock, and downloads its ledger. Every event is uploaded before the
    search continues. When that fails, RunError is raised; the mirror keeps all events, and the same command resumes from it.
    """

    def __init__(self, where: RunLocation) -> None:
        assert where.uri is not None, "a path needs no mirror"
        self.uri, self.folder = where.uri, where.folder
        self._number, self._start, self._sent = 0, 0, 0

    def __enter__(self) -> Mirror:
        # Cached facts of the URI from an earlier run in this process may be out of date.
        remote_at.cache_clear()
        self.remote = remote_at(self.uri)
        self.lock = RemoteLock(self.remote)
        self.lock.take()
        try:
            parts = bring_ledger(self.remote, self.folder)
            # The last part may grow.
            self._number, self._sent = max(len(parts) - 1, 0), parts[-1][0] if parts else 0
            self._start = sum(size for size, _ in parts) - self._sent
            if (self.folder / LEDGER).exists():
                # Events that an interrupted run did not upload.
                for event in self._not_there(sum(lines for _, lines in parts)):
                    self._upload_for(event)
                self.upload_ledger()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # After an upload that failed, the next run first uploads the files of its event: see `_not_there`.
            if kind is None and (self.folder / LEDGER).exists():
                self.upload_ledger()
        finally:
            self.lock.release()

    def __call__(self, event: Event, run: Run) -> None:
        """As a listener of the search, upload the files that an event names, and then the event."""
        self._upload_for(event)
        self.upload_ledger()

    def _upload_for(self, event: Event) -> None:
        if isinstance(event, Exported) and (self.folder / event.folder).is_dir():
            self.upload(event.folder)
        elif isinstance(event, Reported) and event.reused is not None:
            for folder in self.folder.glob(f"{TRIALS}/{event.trial:04d}-*"):
                upload_checkpoint(self.uri, folder.name, folder)

    def _not_there(self, uploaded: int) -> list[Event]:
        """The events that the mirror has beyond the first `uploaded`."""
        try:
            return list(islice(read_events(self.folder), uploaded, None))
        except RunError:
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
        """Upload the lines of the ledger that are not at the URI yet."""
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
        """Download the files of a folder of the run directory, such as an export that another machine made."""
        self.remote.download_folder(name, self.folder / name)

    def fetch_checkpoint(self, trial: str) -> None:
        """Download the checkpoint of a trial."""
        fetch_checkpoint(self.uri, trial, self.folder / TRIALS / trial, run_identity(self.folder))


def fetch(uri: str) -> Path:
    """Download the ledger of a run to its mirror, for reading only.

    Nothing is written at the URI, so a run in progress is not disturbed.

    Returns:
        The mirror's folder.

    Raises:
        RunError: When there is no run at the URI.
    """
    where = locate(uri)
    if not bring_ledger(remote_at(uri), where.folder):
        raise RunError(f"{where} is not a run directory: it has no ledger")
    return where.folder


def bring_ledger(remote: Remote, folder: Path) -> list[tuple[int, int]]:
    """Extend a mirror's ledger to the ledger at its URI, if that is longer.

    Returns:
        Per part at the URI: its size in bytes, and its number of lines.

    Raises:
        RunError: When the two ledgers differ in a line that both have, or when a run that was uploaded is no longer at the URI.
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
    return [(len(part), part.count(b"\n")) for part in parts]


def _parts(remote: Remote) -> list[bytes]:
    """The parts of the ledger at a URI, in whole lines."""
    names = [name for name in remote.names() if _SEGMENT.fullmatch(name)]
    expected = [f"ledger-{number:05d}.jsonl" for number in range(len(names))]
    with ThreadPoolExecutor(8) as pool:
        parts: list[bytes] = []
        for name, content in zip(expected, pool.map(remote.read, expected), strict=True):
            if content is None:
                raise RunError(f"{remote.uri} lacks {name}; restore it from a copy, or run into another place with --out")
            parts.append(content)
    if parts:
        parts[-1] = parts[-1][: parts[-1].rfind(b"\n") + 1]
    return parts


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
        with replace_file(folder / LEDGER) as file:
            file.write(content)
