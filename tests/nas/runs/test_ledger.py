import os
import subprocess
import sys

import pytest

from nas.runs.events import Promoted
from nas.runs.layout import LEDGER
from nas.runs.ledger import Ledger, read_events
from space import ToolkitError


def promoted(number):
    return Promoted(variant=number, rung=1)


def written(folder, count=3):
    ledger = Ledger(folder)
    for number in range(count):
        ledger.append(promoted(number))
    ledger.close()


def test_events_come_back_in_order(tmp_path):
    written(tmp_path / "run")
    written(tmp_path / "run", 1)
    assert [event.variant for event in read_events(tmp_path / "run")] == [0, 1, 2, 0]


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    written(tmp_path)
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"event": "trial", "num')
    assert len(list(read_events(tmp_path))) == 3
    written(tmp_path, 1)
    assert [event.variant for event in read_events(tmp_path)] == [0, 1, 2, 0]


@pytest.mark.parametrize("damage", [b"{nonsense}\n", b"\0\0\0\n", b"[1]\n", b'{"no": "event"}\n'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    written(tmp_path)
    path = tmp_path / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + lines[2])
    with pytest.raises(ToolkitError, match=f"{LEDGER}:2 is damaged"):
        list(read_events(tmp_path))


def test_another_schema_is_refused(tmp_path):
    (tmp_path / LEDGER).write_text('{"event": "run", "schema": 99}\n')
    with pytest.raises(ToolkitError, match="has schema 99, but this version reads 3 and 2"):
        list(read_events(tmp_path))


def test_a_second_process_is_refused_with_the_firsts_pid(tmp_path):
    ledger = Ledger(tmp_path)
    code = f"from pathlib import Path; from nas.runs.ledger import Ledger; Ledger(Path({str(tmp_path)!r}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert f"is in use by {os.uname().nodename}, process {os.getpid()}" in printed
    ledger.close()
    Ledger(tmp_path).close()


@pytest.mark.parametrize("below", ["file/run", "/proc/run"])
def test_a_directory_that_cannot_be_written(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolkitError, match="cannot be written: .*; choose another place with --out"):
        Ledger(tmp_path / below)


def test_not_a_run_directory(tmp_path):
    with pytest.raises(ToolkitError, match="is not a run directory"):
        list(read_events(tmp_path))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_vanishes_is_told_at_once(tmp_path, replaced):
    ledger = Ledger(tmp_path / "run")
    ledger.append(promoted(0))
    (tmp_path / "run").rename(tmp_path / "moved")
    if replaced:
        written(tmp_path / "run")
    with pytest.raises(ToolkitError, match="was removed or moved while the run went on"):
        ledger.append(promoted(1))
    assert len(list(read_events(tmp_path / "moved"))) == 1


def test_nothing_comes_behind_a_part_of_a_line(tmp_path, monkeypatch):
    """A disk that fills up takes the first bytes of a line; what would come after it must not make it a damaged one."""
    ledger = Ledger(tmp_path)
    ledger.append(promoted(0))
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
    with pytest.raises(ToolkitError, match="No space left on device; free some space"):
        ledger.append(promoted(1))
    monkeypatch.undo()
    with pytest.raises(ToolkitError, match="No space left on device; free some space"):
        ledger.append(promoted(2))
    ledger.close()
    assert [event.variant for event in read_events(tmp_path)] == [0]
