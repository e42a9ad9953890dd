"""The lock of a run directory: the file system's own, a lease where that fails, and who is said to hold it."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from nas.reporting.console import status_lines
from nas.runs.ledger import Ledger, read_events
from nas.runs.run_lock import LEASE, Driver, RunLock, driver_of
from nas.search.controller import Search
from nas.search.state import read_state
from space import ToolkitError
from tests.nas.scripted import carry_out

ME = f"{socket.gethostname()}, process {os.getpid()}"


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def without_locks(request, monkeypatch):
    """The error of a file system whose locks fail."""

    def flock(_file, _how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(request.param)


def another_host(folder, age_s=0.0):
    """The lease of a process of another machine."""
    owner = {"host": "elsewhere", "pid": 7, "pids_of": "", "time": time.time() - age_s, "token": "theirs"}
    (folder / LEASE).write_text(json.dumps(owner))


def test_a_file_system_whose_locks_fail_is_named_and_a_lease_holds_the_run(tmp_path, without_locks):
    folder = tmp_path / "a run"
    ledger = Ledger(folder)
    assert f"the locks of the file system of {folder} fail ({without_locks}), so the run is held by the lease" in ledger.note
    assert driver_of(folder) == Driver(ME, alive=True)
    with pytest.raises(ToolkitError, match=f"is in use by {ME}"):
        Ledger(folder)
    ledger.close()
    assert driver_of(folder) == Driver("", alive=False)
    Ledger(folder).close()


def test_a_lease_of_another_machine_is_waited_for_and_expires(tmp_path, without_locks):
    another_host(tmp_path)
    with pytest.raises(ToolkitError, match="is in use by elsewhere, process 7; wait for it, or stop it"):
        Ledger(tmp_path)
    another_host(tmp_path, age_s=600)
    os.utime(tmp_path / LEASE, (time.time() - 600,) * 2)
    Ledger(tmp_path).close()


def test_a_run_whose_lease_was_taken_writes_no_more(tmp_path, without_locks, monkeypatch):
    lock = RunLock(tmp_path)
    another_host(tmp_path)
    monkeypatch.setattr("nas.runs.remote_lock.SURE_S", -1.0)
    with pytest.raises(ToolkitError, match="is in use by elsewhere, process 7"):
        lock.confirm()
    lock.release()


def test_where_locks_fail_on_one_of_two_machines_only_both_are_heard(tmp_path, monkeypatch):
    another_host(tmp_path)
    with pytest.raises(ToolkitError, match="is in use by elsewhere, process 7"):
        Ledger(tmp_path)
    (tmp_path / LEASE).unlink()
    held = Ledger(tmp_path)
    assert not held.note

    def flock(_file, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(ToolkitError, match=f"fail here .No locks available., and {ME} has taken one there; if that process"):
            Ledger(tmp_path)
    held.close()


def test_status_tells_whether_a_process_works_on_a_run(tiny, tmp_path):
    def last_line():
        events = list(read_events(tmp_path))
        return status_lines(read_state(tmp_path, events).run, events, driver_of(tmp_path))

    ledger = Ledger(tmp_path)
    carry_out(Search(tiny, ledger), stop_after=2)
    assert f"in progress: {ME}" in last_line()
    ledger.close()
    assert "no process works on it; the same command goes on from the last rungs" in last_line()
    # As kill -9 leaves it.
    code = (
        f"import os; from pathlib import Path; from nas.runs.run_lock import RunLock; RunLock(Path({str(tmp_path)!r})); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (line,) = [line for line in last_line() if "any more" in line]
    assert line.startswith(f"no process works on it any more (the last was {socket.gethostname()}, process ")
