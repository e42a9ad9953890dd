"""Files: replaced as a whole or not at all, the folder for caches, and the line of an error that a message quotes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from space.errors import ToolkitError


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
