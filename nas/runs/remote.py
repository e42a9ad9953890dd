"""Run directories in stores that pyarrow reaches, such as S3 and Google Cloud Storage.

The driver and the workers work in mirrors: folders of their own machine, below the user's cache. This module moves single files
between a mirror and the store; `nas.runs.mirror` keeps a whole run directory there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pyarrow import fs  # type: ignore[import-untyped]

from nas.runs.checkpoints import facts_in, step_of
from nas.runs.layout import CHECKPOINT, LAST_RUNG, ORIGIN, TRIALS
from space.errors import RunError
from space.files import cache_folder

_OPTIONS = {
    # A small file then takes one request instead of three.
    "s3": "allow_delayed_open=true",
    # By default, Google's client retries for 15 minutes, even without credentials.
    "gs": "retry_limit_seconds=60",
    "gcs": "retry_limit_seconds=60",
}
"""The options of pyarrow's file systems, per scheme, where the URI does not set them."""

CHUNK_BYTES = 4 * 2**20

_HINTS = {
    "s3": "check the bucket, the network and the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role)",
    "gcs": "check the bucket, the network and the credentials (GOOGLE_APPLICATION_CREDENTIALS or a service account)",
    "abfs": "check the container, the network and the credentials (AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or `az login`)",
}

_REPLACED_AS_A_WHOLE = frozenset(_HINTS)
"""Kinds of stores where a file becomes visible only once it is complete."""


@dataclass(frozen=True)
class RunLocation:
    """The location of a run directory: the folder to work in, and the URI that the folder mirrors, if any."""

    folder: Path
    uri: str | None = None

    def __str__(self) -> str:
        return shown(self.uri) if self.uri else str(self.folder)

    def inside(self, name: str) -> RunLocation:
        """The location of a run directory inside this one, or inside a folder of runs."""
        if self.uri is None:
            return RunLocation(self.folder / name)
        parts = urlsplit(self.uri)
        return locate(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))


def is_uri(out: str) -> bool:
    """Whether a run directory is given as a URI, not as a path."""
    return "://" in out


def locate(out: str) -> RunLocation:
    """The location that a path or a URI names; the store is not contacted.

    Runs beside each other at a URI have mirrors beside each other.

    Raises:
        RunError: When the URI names no folder.
    """
    if not is_uri(out):
        return RunLocation(Path(out))
    parts = urlsplit(shown(out))
    root, _, name = f"{parts.netloc}{parts.path}".rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise RunError(f"{shown(out)} names no folder for the run; write one, such as {parts.scheme}://bucket/runs/NAME")
    digest = hashlib.sha256(f"{parts.scheme}://{root}?{parts.query}".encode()).hexdigest()[:12]
    label = quote(root.rpartition("/")[2] or parts.scheme, safe="")
    return RunLocation(cache_folder("runs") / f"{label}-{digest}" / quote(name, safe=""), out)


def shown(uri: str) -> str:
    """A URI that is safe to print: without the secret of `s3://key:secret@bucket/…`."""
    return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1@", uri)


class Remote:
    """A folder at a URI. Files are named relative to it, such as `trials/0000-ab12/checkpoint.safetensors`.

    Errors of the store are raised as RunError, in one sentence with a remedy.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self._made = shown(uri), set[str]()
        self._hint = "check the address and what may be written there"
        scheme = urlsplit(uri).scheme
        try:
            self._files, path = fs.FileSystem.from_uri(_with_options(uri))
        except (ValueError, ImportError) as error:
            raise RunError(
                f"{self.uri} is no address that pyarrow knows a file system for ({_reason(error)}); "
                "write s3://BUCKET/PATH, gs://BUCKET/PATH, abfs://…, hdfs://…, file:///PATH or fsspec+PROTOCOL://…"
            ) from None
        except OSError as error:
            hint = _HINTS.get(scheme, self._hint)
            raise RunError(f"{self.uri} cannot be reached: {_reason(error)}; {hint}") from None
        self._base, self._kind = path.rstrip("/"), self._files.type_name
        self._hint = _HINTS.get(self._kind, self._hint)

    @contextmanager
    def translate_errors(self, name: str, done: str) -> Iterator[None]:
        """A context in which errors become a RunError that says which file cannot be `done` (read, written, …).

        FileNotFoundError is passed on as it is.
        """
        try:
            yield
        except (RunError, FileNotFoundError):
            raise
        # File systems that come from fsspec raise errors of their own libraries.
        except Exception as error:
            raise RunError(f"{name} at {self.uri} cannot be {done}: {_reason(error)}; {self._hint}") from None

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a file; None when there is none."""
        try:
            with self.translate_errors(name, "read"), self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file. A reader meanwhile gets the old or the new content, as far as the store can ensure that."""
        with self._writing(name) as stream:
            stream.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Upload a file of this machine; readers are treated as in `write`."""
        with self._writing(name) as stream, path.open("rb") as file:
            shutil.copyfileobj(file, stream, CHUNK_BYTES)

    def upload_folder(self, folder: Path, name: str) -> None:
        """Upload the files of a folder of this machine."""
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            self.upload(path, f"{name}/{path.name}")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        whole = self._kind in _REPLACED_AS_A_WHOLE
        path = self._path(name)
        partial = path if whole else f"{path}.partial"
        parent = path.rpartition("/")[0]
        try:
            with self.translate_errors(name, "written"):
                if not whole and parent not in self._made:
                    self._files.create_dir(parent, recursive=True)
                    self._made.add(parent)
                with self._files.open_output_stream(partial) as stream:
                    yield stream
                if not whole:
                    self._files.move(partial, path)
        except FileNotFoundError as error:
            raise RunError(f"{name} at {self.uri} cannot be written: {_reason(error)}; {self._hint}") from None

    def download(self, name: str, path: Path) -> bool:
        """Download a file to a path of this machine, replacing what is there; False when the store has no such file."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            with self.translate_errors(name, f"brought to {path}"), self._files.open_input_stream(self._path(name)) as stream:
                path.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    shutil.copyfileobj(stream, file, CHUNK_BYTES)
                partial.replace(path)
        except FileNotFoundError:
            return False
        return True

    def download_folder(self, name: str, folder: Path) -> bool:
        """Download the files of a folder, without its subfolders; False when there are none."""
        names = [file for file in self.names(name) if not file.endswith(".partial")]
        for file in names:
            self.download(f"{name}/{file}".lstrip("/"), folder / file)
        return bool(names)

    def names(self, folder: str = "") -> list[str]:
        """The names of the files in a folder, sorted; empty when there is no folder."""
        try:
            with self.translate_errors(folder or "the folder", "listed"):
                selector = fs.FileSelector(self._path(folder).rstrip("/"), allow_not_found=True)
                infos = self._files.get_file_info(selector)
        except FileNotFoundError:
            return []
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the store's clock; None when there is no such file or the store does not report it."""
        with self.translate_errors(name, "found"):
            modified: datetime | None = self._files.get_file_info(self._path(name)).mtime
        return modified

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        try:
            with self.translate_errors(name, "deleted"):
                self._files.delete_file(self._path(name))
        except FileNotFoundError:
            pass

    def delete_folder(self, name: str) -> None:
        """Delete a folder and what is in it, if there is one."""
        try:
            with self.translate_errors(name, "deleted"):
                self._files.delete_dir(self._path(name))
        except FileNotFoundError:
            pass

    def step(self, name: str) -> int | None:
        """The training step of a checkpoint, read from its header alone; None when there is none or it is damaged."""
        try:
            with self.translate_errors(name, "read"), self._files.open_input_file(self._path(name)) as file:
                facts = facts_in(file, file.size())
                return facts["step"] if facts else None
        except FileNotFoundError:
            return None


def _with_options(uri: str) -> str:
    option = _OPTIONS.get(urlsplit(uri).scheme, "")
    if not option or option.partition("=")[0] in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{option}"


def _reason(error: Exception) -> str:
    """The first line of an error, without request IDs and without secrets of a URI."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    line = re.sub(r" *\(Request ID:[^)]*\)", "", text.splitlines()[0])
    return shown(line)[:300].rstrip(".:; ")


@lru_cache(maxsize=8)
def remote_at(uri: str) -> Remote:
    """The folder at a URI; connected to once per process."""
    return Remote(uri)


def fetch_folder(uri: str) -> Path:
    """Download the files of a folder at a URI, such as an exported model, to its mirror.

    Returns:
        The mirror's folder.

    Raises:
        RunError: When there are no files.
    """
    folder = locate(uri).folder
    if not remote_at(uri).download_folder("", folder):
        raise RunError(f"{shown(uri)} holds no files; check the address")
    return folder


def fetch_checkpoint(uri: str, name: str, folder: Path, run: str) -> None:
    """Before a trial resumes, download its checkpoint, unless its folder has one of the same run that is at least as far.

    Checkpoints of another run in the folder are removed.

    Args:
        uri: The URI of the run directory.
        name: The trial's name.
        folder: The trial's folder on this machine.
        run: The identity of the run.

    Raises:
        RunError: When the URI cannot be read, or the folder cannot be written.
    """
    remote, where = remote_at(uri), f"{TRIALS}/{name}/{CHECKPOINT}"
    with remote.translate_errors(where, f"brought to {folder}"):
        _claim(folder, run)
    here, there = step_of(folder / CHECKPOINT), remote.step(where)
    if there is not None and (here is None or here < there):
        remote.download(where, folder / CHECKPOINT)


def _claim(folder: Path, run: str) -> None:
    """Mark a trial's folder as one of a run, and remove checkpoints of another run."""
    note = folder / ORIGIN
    if note.exists() and note.read_text(encoding="utf-8") == run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINT, LAST_RUNG):
        (folder / name).unlink(missing_ok=True)
    note.write_text(run, encoding="utf-8")


def upload_checkpoint(uri: str, name: str, folder: Path) -> None:
    """After a milestone, upload a trial's checkpoints, unless they are at the URI already.

    Args:
        uri: The URI of the run directory.
        name: The trial's name.
        folder: The trial's folder on this machine, which is not changed.

    Raises:
        RunError: When they cannot be written at the URI.
    """
    # In this order, so that a checkpoint of the finish is never there without that of the last rung.
    for file in (LAST_RUNG, CHECKPOINT):
        here, where = step_of(folder / file), f"{TRIALS}/{name}/{file}"
        if here is not None and remote_at(uri).step(where) != here:
            remote_at(uri).upload(folder / file, where)
