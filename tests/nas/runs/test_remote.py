"""Run directories at URIs: real file systems of pyarrow, on this machine alone."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from nas.runs.layout import CHECKPOINT, LAST_RUNG, LEDGER
from nas.runs.ledger import Ledger, run_identity
from nas.runs.mirror import Mirror, fetch
from nas.runs.remote import Remote, fetch_checkpoint, locate, remote_at, shown, upload_checkpoint
from nas.search.controller import Search
from nas.study.load import load_study
from nas.training.checkpoint import read_checkpoint, write_checkpoint
from nas.training.trainer import Trainer
from nas.training.trial import Trial
from space import ToolkitError
from tests.nas.runs.stores import ledger_at, store
from tests.nas.scripted import facts

MEASURED = ("seconds", "images_per_s", "peak_memory_mib")


# Places.


def test_a_path_stays_a_path():
    assert (locate("runs/x").folder, locate("runs/x").uri) == (Path("runs/x"), None)


def test_a_uri_has_a_mirror_in_the_cache_beside_those_of_its_neighbours(tmp_path):
    one, two, other = (locate(f"s3://bucket/{path}") for path in ("runs/one", "runs/two/", "other/runs/one"))
    assert one.folder.is_relative_to(tmp_path / "machine-1" / "udit-nas" / "runs")
    assert (one.folder.name, two.folder.name) == ("one", "two")
    assert one.folder.parent == two.folder.parent
    assert other.folder.parent != one.folder.parent, "a neighbour's results are taken over, another bucket's are not"
    assert locate("s3://bucket/runs/one?endpoint_override=other:9000").folder != one.folder
    assert locate("s3://bucket/runs/one").folder == one.folder
    # A run inside another, with what the address says of the store.
    assert locate("s3://bucket/runs/one?region=eu").inside("confirm").uri == "s3://bucket/runs/one/confirm?region=eu"
    assert locate("runs/one").inside("confirm") == locate("runs/one/confirm")


def test_secrets_are_neither_shown_nor_part_of_the_mirrors_name():
    with_secret = locate("s3://key:very%2Fsecret@bucket/runs/x")
    assert str(with_secret) == "s3://key@bucket/runs/x"
    assert with_secret.folder == locate("s3://key:rotated@bucket/runs/x").folder
    assert shown("abfss://container@account.dfs.core.windows.net/x") == "abfss://container@account.dfs.core.windows.net/x"


@pytest.mark.parametrize("out", ["s3://", "file:///", "s3://bucket/runs/.."])
def test_a_uri_without_a_name_is_refused(out):
    with pytest.raises(ToolkitError, match="names no folder for the run; write one"):
        locate(out)


@pytest.mark.parametrize("out", ["sftp://host/x", "https://host/x", "fsspec+nonsense://x/y", "file://host/x", "file:///a b"])
def test_a_scheme_that_pyarrow_does_not_know_is_told_in_one_sentence(out):
    with pytest.raises(ToolkitError, match="is no address that pyarrow knows a file system for .*; write s3://BUCKET/PATH") as told:
        Mirror(locate(out)).__enter__()
    assert "\n" not in str(told.value)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_there(tmp_path):
    (tmp_path / "file").write_text("")
    where = locate(f"file://{tmp_path}/file/run")
    with pytest.raises(ToolkitError, match=r"probe-\w+ at file://.*/file/run cannot be written: .*; check the address") as told:
        Mirror(where).__enter__()
    assert "\n" not in str(told.value)
    assert not where.folder.exists()


@pytest.mark.slow
def test_a_store_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        ToolkitError, match=r"s3://key@bucket/x\?.* cannot be written: .*; check the bucket, the network and the cred"
    ) as told:
        Mirror(locate("s3://key:hidden@bucket/x?endpoint_override=127.0.0.1:1&scheme=http")).__enter__()
    assert "hidden" not in str(told.value)


def test_files_come_back_as_they_went(anywhere, tmp_path):
    remote = Remote(anywhere)
    assert remote.read("a/b") is None
    assert not remote.download("a/b", tmp_path / "got")
    assert remote.names("a") == []
    remote.write("a/b", b"old")
    remote.write("a/b", b"new")
    (tmp_path / "large").write_bytes(bytes(range(256)) * 40_000)
    remote.upload(tmp_path / "large", "a/large")
    assert remote.names("a") == ["b", "large"]
    assert remote.read("a/b") == b"new"
    assert remote.download("a/large", tmp_path / "below" / "got")
    assert (tmp_path / "below" / "got").read_bytes() == (tmp_path / "large").read_bytes()
    remote.delete("a/b")
    remote.delete("a/b")
    assert remote.names("a") == ["large"]
    remote.delete_folder("a")
    remote.delete_folder("a")
    assert remote.read("a/large") is None


def test_a_write_that_is_cut_short_leaves_the_file_before(uri, tmp_path, monkeypatch):
    remote = Remote(uri)
    remote.write("a", b"whole")
    (tmp_path / "new").write_bytes(b"new")

    def cut_short(source, target, size):
        target.write(b"ne")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("nas.runs.remote.shutil.copyfileobj", cut_short)
    with pytest.raises(ToolkitError, match="a at .* cannot be written: Input/output error"):
        remote.upload(tmp_path / "new", "a")
    assert remote.read("a") == b"whole"


# Checkpoints.


def checkpoint(folder, step, name=CHECKPOINT):
    write_checkpoint(
        folder / name, {"w": torch.full((1000,), float(step))}, {"digest": "d", "seed": 0, "step": step, "reports": []}
    )


def step_in(folder, name=CHECKPOINT):
    tensors, known = read_checkpoint(folder / name)
    assert tensors["w"][0] == known["step"]
    return known["step"]


def claimed(uri, folder, step):
    """A trial's folder of the run `r` with a checkpoint."""
    fetch_checkpoint(uri, "t", folder, "r")
    checkpoint(folder, step)


def test_a_checkpoint_goes_from_one_worker_to_another(anywhere, tmp_path):
    one, two = tmp_path / "one" / "t", tmp_path / "two" / "t"
    fetch_checkpoint(anywhere, "t", one, "r")
    assert not (one / CHECKPOINT).exists()
    checkpoint(one, 5)
    upload_checkpoint(anywhere, "t", one)
    fetch_checkpoint(anywhere, "t", two, "r")
    assert step_in(two) == 5
    checkpoint(two, 9)
    checkpoint(two, 5, LAST_RUNG)
    upload_checkpoint(anywhere, "t", two)
    fetch_checkpoint(anywhere, "t", one, "r")
    assert step_in(one) == 9
    assert remote_at(anywhere).step(f"trials/t/{LAST_RUNG}") == 5


@pytest.mark.parametrize(("here", "there", "kept"), [(4, 9, 9), (9, 4, 9), (4, None, 4)])
def test_the_checkpoint_that_is_further_counts(uri, tmp_path, here, there, kept):
    claimed(uri, tmp_path / "here", here)
    if there is not None:
        checkpoint(tmp_path / "there", there)
        upload_checkpoint(uri, "t", tmp_path / "there")
    fetch_checkpoint(uri, "t", tmp_path / "here", "r")
    assert step_in(tmp_path / "here") == kept


def test_a_checkpoint_of_an_earlier_run_at_the_same_address_is_not_gone_on_from(uri, tmp_path):
    claimed(uri, tmp_path / "here", 9)
    fetch_checkpoint(uri, "t", tmp_path / "here", "another run")
    assert not (tmp_path / "here" / CHECKPOINT).exists()


def test_a_damaged_checkpoint_here_is_replaced_and_one_there_is_passed_over(uri, tmp_path):
    claimed(uri, tmp_path / "here", 4)
    upload_checkpoint(uri, "t", tmp_path / "here")
    path = tmp_path / "here" / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    fetch_checkpoint(uri, "t", tmp_path / "here", "r")
    assert path.read_bytes() == whole
    (store(uri) / "trials" / "t" / CHECKPOINT).write_bytes(whole[:-10])
    path.unlink()
    fetch_checkpoint(uri, "t", tmp_path / "here", "r")
    assert not path.exists()


def test_a_checkpoint_that_is_there_is_not_uploaded_again(uri, tmp_path, monkeypatch):
    claimed(uri, tmp_path / "here", 4)
    upload_checkpoint(uri, "t", tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", lambda *_: pytest.fail("uploaded again"))
        upload_checkpoint(uri, "t", tmp_path / "here")


# A whole study.

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from nas.runs import remote
from nas.study.load import load_study
from tests.nas.runs.test_remote import run_at
torch.set_num_threads(1)
put, left = remote.Remote.upload, [4]
def put_then_die(self, path, name):
    put(self, path, name)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
remote.Remote.upload = put_then_die
run_at(load_study(Path(sys.argv[1]), sys.argv[3:]), sys.argv[2])
"""

SHORT = ["search.trials=3", "budget.max=60 MFLOPs", "budget.rungs=2", "finish.budget=100 MFLOPs", "evaluation.val_loss.images=8"]


def run_at(study, uri):
    """Search and finish in this process with everything at a URI."""
    where = locate(uri)
    with Mirror(where) as mirror, closing(Ledger(where.folder)) as ledger:
        search = Search(study, ledger, (mirror,))

        def carry_out_plan(plan):
            def report(found):
                upload_checkpoint(uri, plan.name, where.folder / "trials" / plan.name)
                return search.report(found)

            mirror.fetch_checkpoint(plan.name)
            trial = Trial(plan, study, where.folder / "trials" / plan.name)
            while not trial.finished and report(trial.advance()):
                pass

        while (plan := search.next_plan()) is not None:
            carry_out_plan(plan)
        for plan in search.finish_plans():
            carry_out_plan(plan)
        return search


def unmeasured(folder):
    return [{key: value for key, value in event.items() if key not in MEASURED} for event in facts(folder)]


def test_a_study_killed_on_one_machine_goes_on_on_another(tiny_file, tmp_path, another_machine, monkeypatch):
    whole, parts = f"file://{tmp_path}/whole/run", f"file://{tmp_path}/parts/run"
    study = load_study(tiny_file, SHORT)
    run_at(study, whole)
    root = Path(__file__).parents[3]
    died = subprocess.run([sys.executable, "-c", KILLED, str(tiny_file), parts, *SHORT], check=False, cwd=root)
    assert died.returncode == -signal.SIGKILL
    another_machine()
    trained, original = [], Trainer.train_to
    monkeypatch.setattr(Trainer, "train_to", lambda self, step: trained.append((self.step, step)) or original(self, step))
    search = run_at(study, parts)
    assert unmeasured(locate(parts).folder) == unmeasured(fetch(whole))
    assert ledger_at(parts) == (locate(parts).folder / LEDGER).read_bytes()
    stretches = sum(len({report.step for report in trial.reports}) for trial in search.run.trials.values())
    # The fourth stretch, of which the ledger does not know, comes from its checkpoint.
    assert len(trained) == stretches - 4
    assert run_identity(locate(parts).folder) != run_identity(fetch(whole))
