"""Files: replaced as a whole or not at all, what an unreadable one is, the folder for caches, the line of an error to quote."""

from __future__ import annotations

import os
import socket
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from space.errors import ToolkitError

DAMAGED_ARRAY = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError, SyntaxError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""The errors of NumPy and zipfile for .npy and .npz files that are cut short, altered, encrypted, pickled or larger than memory.

NumPy reads a header as a Python literal, so a damaged one may fail as Python source does.
"""

MOST_HEADER_BYTES = 2**30
"""More than the header of any file of safetensors."""


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that a crash at any moment leaves the old content or the new, never a part.

    The bytes go to a file beside `path` whose name ends in `.partial`. It is flushed to the disk and takes the name `path`
    when the block ends; when the block fails it is removed. Its name contains the host and the process, so that two
    processes that write the same `path` do not mix. A new file has the permissions of any other new file.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The open file, for bytes.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class when the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()


def what_is(path: Path) -> str:
    """What a file is that cannot be read as the weights that it should hold, as the end of a sentence with the way to mend it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        return error.strerror or str(error)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return "it is empty; fetch or write it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS in place of the file; fetch the file with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page in place of the file; download the file itself"
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length < MOST_HEADER_BYTES:
        # safetensors: the length of a JSON header, the header, the tensors.
        return f"it is cut off or damaged ({size:,} bytes); fetch or write it again"
    if start.startswith(b"PK\x03\x04"):
        # The list of a zip archive's files is at its end.
        whole = zipfile.is_zipfile(path)
        return "it is an archive, but none of torch.save" if whole else f"it is cut off ({size:,} bytes); fetch or write it again"
    return "it is damaged, or no checkpoint"


def cache_folder(name: str) -> Path:
    """The folder `udit-nas/NAME` below XDG_CACHE_HOME, or below ~/.cache when that is not set; it may not exist yet.

    Raises:
        ToolkitError: When neither is known, as for an unknown user in a container.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")).resolve() / "udit-nas" / name


def expanded(path: str) -> Path:
    """A path with `~` replaced by the user's home; raises ToolkitError when that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ToolkitError(
            f"{path}: this user has no home directory; set HOME, or for caches XDG_CACHE_HOME, to a folder that can be written"
        ) from None
