"""A run directory at a URI and its mirror: the ledger there, and one process at a time."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress

import pytest
import torch

from nas.runs import remote_lock
from nas.runs.events import Reported
from nas.runs.layout import CHECKPOINT, LEDGER
from nas.runs.ledger import Ledger
from nas.runs.mirror import SEGMENT_BYTES, Mirror, fetch
from nas.runs.remote import Remote, fetch_folder, locate, remote_at
from nas.runs.remote_lock import LOCK
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.study.load import load_study
from nas.training.checkpoint import write_checkpoint
from nas.training.export import exported
from space import ToolkitError
from space.errors import RunError
from tests.nas.runs.stores import ledger_at, store
from tests.nas.scripted import carry_out, facts, searched

VARIED = ["search.space={channels: [8, 16, 24, 32], heads: [1, 2], feed_forward.kind: [mlp, conv]}", "search.trials=6"]


def searched_at(uri, study, **how):
    """As `searched`, at a URI."""
    where = locate(uri)
    with Mirror(where) as mirror, closing(Ledger(where.folder)) as ledger:
        search = Search(study, ledger, (mirror,))
        carry_out(search, **how)
    return search


# The ledger.


def test_the_ledger_is_there_after_every_event(anywhere, tiny):
    where, seen = locate(anywhere), []

    def look(event, run):
        seen.append(event.event)
        assert ledger_at(anywhere) == (where.folder / LEDGER).read_bytes()

    with Mirror(where) as mirror, closing(Ledger(where.folder)) as ledger:
        carry_out(Search(tiny, ledger, (mirror, look)))
    assert {"trial", "report", "end"} <= set(seen)
    assert ledger_at(anywhere) == (where.folder / LEDGER).read_bytes()


def test_the_ledger_is_kept_in_parts_of_which_only_the_last_is_written_again(uri, monkeypatch):
    where, written = locate(uri), []
    original = Remote.write
    monkeypatch.setattr(Remote, "write", lambda self, name, data: written.append((name, len(data))) or original(self, name, data))
    where.folder.mkdir(parents=True)
    count = 400
    with Mirror(where) as mirror, (where.folder / LEDGER).open("ab", buffering=0) as file:
        for number in range(count):
            file.write(json.dumps({"event": "report", "number": number, "filler": "x" * 300}).encode() + b"\n")
            mirror.upload_ledger()
    parts = [(name, size) for name, size in written if name.startswith("ledger-")]
    last = dict(parts)
    assert len(last) > 2
    assert max(last.values()) <= SEGMENT_BYTES
    assert len(set(parts)) == len(parts), "nothing is written twice"
    assert [name for name, _ in parts] == sorted(name for name, _ in parts), "no part is written again once there is another"
    assert ledger_at(uri) == (where.folder / LEDGER).read_bytes()
    assert sum(size for _, size in parts) < count * SEGMENT_BYTES * 0.55


def test_a_line_longer_than_a_part_is_a_part(uri):
    where = locate(uri)
    where.folder.mkdir(parents=True)
    lost = {"event": "again", "trial": 0, "alone": False, "lost": True}
    lines = [json.dumps({**lost, "reason": "x" * size}).encode() for size in (9, 2 * SEGMENT_BYTES, 9, 9)]
    (where.folder / LEDGER).write_bytes(b"\n".join(lines)[:-1])
    with Mirror(where):
        pass
    assert [(store(uri) / f"ledger-0000{i}.jsonl").read_bytes().strip() for i in range(3)] == lines[:3]


@pytest.mark.parametrize("stop_after", [0, 5, 10])
def test_another_machine_goes_on_with_equal_decisions(uri, tiny_file, tmp_path, another_machine, stop_after):
    study = load_study(tiny_file, VARIED)
    searched(study, tmp_path / "whole" / "run")
    searched_at(uri, study, stop_after=stop_after)
    another_machine()
    searched_at(uri, study)
    assert facts(locate(uri).folder) == facts(tmp_path / "whole" / "run")
    another_machine()
    assert facts(fetch(uri)) == facts(tmp_path / "whole" / "run")


def test_the_first_machine_comes_back_to_what_another_did(uri, tiny, another_machine, monkeypatch):
    searched_at(uri, tiny, stop_after=2)
    first = os.environ["XDG_CACHE_HOME"]
    another_machine()
    searched_at(uri, tiny)
    monkeypatch.setenv("XDG_CACHE_HOME", first)
    before = ledger_at(uri)
    assert not searched_at(uri, tiny).may_come
    assert ledger_at(uri) == before == (locate(uri).folder / LEDGER).read_bytes()


def test_a_failed_upload_is_told_and_nothing_is_lost(uri, tiny):
    where = locate(uri)
    aside = store(uri).with_name("aside")

    def vanish(event, run):
        if isinstance(event, Reported):
            store(uri).rename(aside)
            store(uri).write_text("no folder")

    with (
        pytest.raises(ToolkitError, match=r"ledger-00000.jsonl at file://.* cannot be written: .*; check the address"),
        Mirror(where) as mirror,
        closing(Ledger(where.folder)) as ledger,
    ):
        carry_out(Search(tiny, ledger, (vanish, mirror)))
    store(uri).unlink()
    aside.rename(store(uri))
    kept = (where.folder / LEDGER).read_bytes()
    assert json.loads(kept.splitlines()[-1])["event"] == "report"
    assert len(ledger_at(uri)) < len(kept)
    searched_at(uri, tiny)
    assert ledger_at(uri).startswith(kept)


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_event_speaks_of_is_there_before_the_event(uri, tiny, another_machine, monkeypatch, fails):
    searched_at(uri, tiny)
    where = locate(uri)

    def fail(self, path, name):
        raise RunError("the network is down")

    with monkeypatch.context() as patch, suppress(RunError):
        if fails:
            patch.setattr(Remote, "upload", fail)
        with Mirror(where) as mirror, closing(Ledger(where.folder)) as ledger:
            search = Search(tiny, ledger, (mirror,))
            (winner,) = search.run.best()
            (where.folder / "export" / winner.name).mkdir(parents=True)
            (where.folder / "export" / winner.name / "card.md").write_text("a card")
            search.record(exported(tiny, winner))
    assert (b'"export"' in ledger_at(uri)) is not fails
    with Mirror(where):
        pass
    assert b'"export"' in ledger_at(uri)
    another_machine()
    with Mirror(locate(uri)) as mirror:
        mirror.fetch_folder(f"export/{winner.name}")
    assert (locate(uri).folder / "export" / winner.name / "card.md").read_text() == "a card"
    assert (fetch_folder(f"{uri}/export/{winner.name}") / "card.md").read_text() == "a card"


def test_a_checkpoint_that_was_taken_over_from_a_neighbour_is_there_for_every_worker(tiny, tiny_file, tmp_path, monkeypatch):
    first, second = (f"file://{tmp_path}/store/runs/{name}" for name in ("first", "second"))
    searched_at(first, tiny)
    for trial in read_run(fetch(first)).trials.values():
        report = trial.reports[-1]
        known = {"digest": trial.spec.digest, "seed": trial.seed, "step": report.step, "reports": []}
        write_checkpoint(locate(first).folder / "trials" / trial.name / CHECKPOINT, {"w": torch.zeros(1)}, known)
    search = searched_at(second, tiny)
    taken = [trial for trial in search.run.trials.values() if trial.reused]
    assert taken
    for trial in taken:
        assert remote_at(second).step(f"trials/{trial.name}/{CHECKPOINT}") == trial.reports[-1].step


def test_a_damaged_line_that_is_not_there_yet_is_not_uploaded(uri, tiny):
    searched_at(uri, tiny, stop_after=2)
    before, folder = ledger_at(uri), locate(uri).folder
    with (folder / LEDGER).open("ab") as file:
        file.write(b"{nonsense}\n")
    with pytest.raises(ToolkitError, match=f"{LEDGER} is damaged beyond what is at {uri}; remove {folder} to go on from there"):
        searched_at(uri, tiny)
    assert ledger_at(uri) == before


def test_ledgers_that_have_gone_apart_are_refused(uri, tiny, another_machine):
    searched_at(uri, tiny, stop_after=2)
    folder = locate(uri).folder
    before = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(before + b'{"event":"here"}\n')
    path = store(uri) / "ledger-00000.jsonl"
    path.write_bytes(before + b'{"event":"there"}\n')
    lines = len(before.splitlines())
    for reads in (lambda: Mirror(locate(uri)).__enter__(), lambda: fetch(uri)):
        with pytest.raises(ToolkitError, match=rf"have gone apart \(line {lines + 1} of .*; remove {folder} to go on from {uri}"):
            reads()
    assert path.read_bytes().endswith(b'{"event":"there"}\n')
    assert not (store(uri) / LOCK).exists(), "who is refused keeps nobody out"
    shutil.rmtree(folder)
    assert (fetch(uri) / LEDGER).read_bytes() == path.read_bytes()


def test_a_run_that_was_removed_at_its_uri_is_not_brought_back(uri, tiny):
    searched_at(uri, tiny)
    shutil.rmtree(store(uri))
    with pytest.raises(ToolkitError, match=f"{uri} holds no run any more, but its mirror .* does; remove the mirror to start anew"):
        searched_at(uri, tiny)
    shutil.rmtree(locate(uri).folder)
    searched_at(uri, tiny, stop_after=1)
    assert ledger_at(uri)


def test_a_part_that_is_missing_is_named(uri, tiny, another_machine):
    searched_at(uri, tiny, stop_after=1)
    (store(uri) / "ledger-00000.jsonl").rename(store(uri) / "ledger-00001.jsonl")
    another_machine()
    with pytest.raises(ToolkitError, match=f"{uri} lacks ledger-00000.jsonl; restore it from a copy"):
        fetch(uri)


def test_a_run_is_read_while_it_goes_on(uri, tiny):
    where = locate(uri)

    def look(event, run):
        assert len(read_run(fetch(uri)).trials) == len(run.trials)

    with Mirror(where) as mirror, closing(Ledger(where.folder)) as ledger:
        carry_out(Search(tiny, ledger, (mirror, look)))


def test_where_there_is_no_run(uri):
    with pytest.raises(ToolkitError, match=f"{uri} is not a run directory: it has no ledger"):
        fetch(uri)
    with pytest.raises(ToolkitError, match=f"{uri} holds no files"):
        fetch_folder(uri)
    assert not store(uri).exists(), "reading writes nothing"


# One process at a time.

OTHER = """
import os, sys
from nas.runs.mirror import Mirror
from nas.runs.remote import locate
Mirror(locate(sys.argv[1])).__enter__()
os._exit(0)
"""


def in_another_process(uri):
    """Take the lock in another process, which dies with it."""
    return subprocess.run([sys.executable, "-c", OTHER, uri], capture_output=True, text=True, check=False)


def test_a_second_process_is_refused_with_the_firsts_pid(uri):
    with Mirror(locate(uri)):
        assert (
            f"{uri} is in use by {socket.gethostname()}, process {os.getpid()}; wait for it, or stop it"
            in in_another_process(uri).stderr
        )
    assert not (store(uri) / LOCK).exists()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over(uri):
    assert in_another_process(uri).returncode == 0
    owner = json.loads((store(uri) / LOCK).read_text())
    assert owner["pid"] != os.getpid()
    with Mirror(locate(uri)):
        assert json.loads((store(uri) / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("elsewhere", [{"host": "another-host"}, {"pids_of": "pid:[1]"}])
@pytest.mark.parametrize("age_s", [240, 360])
def test_a_lock_from_elsewhere_counts_for_five_minutes_of_the_stores_clock(uri, elsewhere, age_s):
    # Its own time stamp is of a clock that is years ahead; no process here has its number.
    owner = {"host": socket.gethostname(), "pid": 2**30, "pids_of": remote_lock._pid_namespace(), "time": 4e9, "token": "theirs"}
    store(uri).mkdir(parents=True)
    path = store(uri) / LOCK
    path.write_text(json.dumps(owner | elsewhere))
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    if age_s < 300:
        with pytest.raises(ToolkitError, match=f"is in use by .*, process {2**30}; .*waited for 5 minutes"):
            Mirror(locate(uri)).__enter__()
    else:
        with Mirror(locate(uri)):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_where_the_store_has_no_clock_the_locks_own_time_counts():
    uri = f"fsspec+memory://{secrets.token_hex(4)}/runs/x"
    with Mirror(locate(uri)), pytest.raises(ToolkitError, match="is in use by"):
        Mirror(locate(uri)).__enter__()
    old = {"host": "another-host", "pid": 1, "pids_of": "", "time": 1e9, "token": "theirs"}
    remote_at(uri).write(LOCK, json.dumps(old).encode())
    with Mirror(locate(uri)):
        pass


def test_a_lock_that_was_taken_over_stops_its_first_owner(uri, tiny, monkeypatch):
    """As when a laptop was asleep for an hour; what the new owner wrote stays."""
    where = locate(uri)
    monkeypatch.setattr(remote_lock, "SURE_S", -1)

    def fall_asleep(event, run):
        if isinstance(event, Reported):
            owner = json.loads((store(uri) / LOCK).read_text())
            (store(uri) / LOCK).write_text(json.dumps(owner | {"host": "new-owner", "pid": 7, "token": "theirs"}))
            (store(uri) / "ledger-00000.jsonl").write_text("of the new owner\n")

    with (
        pytest.raises(ToolkitError, match="is in use by new-owner, process 7"),
        Mirror(where) as mirror,
        closing(Ledger(where.folder)) as ledger,
    ):
        carry_out(Search(tiny, ledger, (fall_asleep, mirror)))
    assert (store(uri) / "ledger-00000.jsonl").read_text() == "of the new owner\n"
    assert (store(uri) / LOCK).exists()


def test_the_lock_is_written_again_while_nothing_happens(uri, monkeypatch):
    monkeypatch.setattr(remote_lock, "REFRESH_S", 0.01)
    again, original, written = threading.Event(), Remote.write, []

    def write(self, name, data):
        original(self, name, data)
        written.append(name)
        if written.count(LOCK) > 2:
            again.set()

    monkeypatch.setattr(Remote, "write", write)
    with Mirror(locate(uri)):
        assert again.wait(20)
    assert not (store(uri) / LOCK).exists()
