"""Where Ray runs: whether a cluster answers at its address, and whether Ray's places on this machine can be used."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray._private.services import get_ray_address_from_environment

from space.errors import ToolkitError
from space.files import first_line

CONNECT_S, PAUSE_S = 20.0, 0.5
"""For this long a connection is tried: the head of a cluster may be starting."""

LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path on Linux, without the closing zero."""

SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""A socket as long as Ray's longest, in Ray's folder."""


def check_address(address: str) -> None:
    """Check that something answers at the address of a running cluster, within `CONNECT_S` seconds.

    Ray itself tries a cluster that is gone for a quarter of an hour.

    Raises:
        ToolkitError: If nothing answers, or such an address only reaches Ray from outside; it says where the address is from.
    """
    there, origin = _origin(address)
    for scheme, what in {"ray://": "a Ray Client address", "http": "the address of Ray's dashboard and its jobs"}.items():
        if there.startswith(scheme):
            raise ToolkitError(f"{there} ({origin}): {what} cannot be used; run on a node of the cluster with --address auto")
    host, _, port = there.rpartition(":")
    if not host or not port.isdecimal():
        # Ray says what is wrong with it.
        return
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(0.1, deadline - time.monotonic())).close()
            return
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
        if time.monotonic() >= deadline:
            break
        time.sleep(PAUSE_S)
    mend = "unset RAY_ADDRESS" if origin.startswith("RAY_ADDRESS") else "leave --address out"
    raise ToolkitError(
        f"no Ray cluster answers at {there} ({origin}) within {CONNECT_S:g} s: {reason}; give the address of a running one, "
        f"or {mend} to run on this machine alone"
    )


def _origin(address: str) -> tuple[str, str]:
    """The address that Ray will use, and where it comes from."""
    named = os.environ.get("RAY_ADDRESS")
    if named and address in ("auto", named):
        return named, "RAY_ADDRESS"
    if address != "auto":
        return address, "--address"
    with suppress(ConnectionError):
        return get_ray_address_from_environment(address, None), "the last cluster that was started on this machine"
    return address, "--address"


def check_folder() -> None:
    """Check that Ray can start in its temporary folder on this machine; raises ToolkitError when it cannot."""
    folder = Path(get_default_ray_temp_dir())  # type: ignore[no-untyped-call]
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "by default")
    excess = len(os.fsencode(folder / SOCKET)) - LONGEST_SOCKET
    mend = "set RAY_TMPDIR to a short folder of your own, such as /tmp/NAME"
    if excess > 0:
        raise ToolkitError(f"the path {folder.parent} ({variable}) is too long for Ray's sockets by {excess} characters; {mend}")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ToolkitError(f"Ray cannot write to {there} ({variable}), which belongs to {_owner(there)}; {mend}")


def give_token() -> None:
    """Make a token for a cluster of this machine, for this process and those it starts, where Ray has no place to keep one.

    Ray keeps its token in the home directory, which an unknown user in a container has not, or cannot write to.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    with suppress(RuntimeError):  # pathlib's for a home directory that is not known
        token = Path.home() / ".ray" / "auth_token"
        there = next(path for path in (token, *token.parents) if path.exists())
        if os.access(there, os.R_OK if there == token else os.W_OK | os.X_OK):
            return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _owner(path: Path) -> str:
    with suppress(KeyError):
        return path.owner()
    return f"user {path.stat().st_uid}"
