"""Whole runs of a tiny study: trained for real, in this process and on Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nas.execution.local_executor import LocalExecutor
from nas.execution.runner import Told, run_study
from nas.execution.smoke import Smoke
from nas.execution.threads import threads
from nas.runs.ledger import LEDGER, read_events
from nas.runs.records import State
from nas.runs.run import read_run
from nas.search.proposals import SEARCHERS
from nas.study.load import load_study
from nas.training import export
from nas.training.trainer import Trainer
from nas.training.trial import CHECKPOINT, Trial
from space import ToolkitError, load
from tests.conftest import TINY

MEASURED = ("time", "seconds", "images_per_s", "peak_memory_mib")


def facts(folder: Path):
    """The ledger without what is measured anew every time."""
    return [{key: value for key, value in event.plain().items() if key not in MEASURED} for event in read_events(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a whole run of the tiny study with its smoke step, which most tests begin with; never written to again."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_study(load_study(TINY), folder, in_process=True)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run, to go on with."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def without_smoke(finished, monkeypatch):
    """The smoke step, which `finished` takes and test_smoke tests, takes as long as the trials of the other runs."""
    monkeypatch.setattr(LocalExecutor, "smoke", lambda *_: Smoke(device="cpu", batch_size=4, steps=()))


def test_a_study_runs_to_the_exported_winner(tiny, folder):
    run = read_run(folder)
    assert {trial.state for trial in run.trials.values()} <= {State.COMPLETE, State.PRUNED}
    for trial in run.trials.values():
        assert trial.cost.gflops <= 0.01
        for report, milestone in zip(trial.search_reports, tiny.budget.milestones, strict=False):
            # At the first step that reaches the rung's compute.
            assert milestone <= report.macs < milestone + report.macs // report.step
    winner = run.best()[0]
    assert winner.reports[-1].macs >= tiny.finish.budget
    exported = folder / winner.export.folder
    assert {path.name for path in exported.iterdir()} == {"model.safetensors", "spec.yaml", "card.md", "samples.png"}
    assert load(exported).spec == winner.spec
    ledger = (folder / LEDGER).read_bytes()
    run_study(tiny, folder, in_process=True)
    assert (folder / LEDGER).read_bytes() == ledger, "a finished run has nothing left to do"


def test_an_export_that_cannot_be_made_hides_no_result(tiny_file, folder):
    said = []
    for checkpoint in (folder / "trials").glob("*/*.safetensors"):
        checkpoint.unlink()
    run = run_study(load_study(tiny_file, ["evaluation.samples.per_class=2"]), folder, in_process=True, say=said.append)
    assert run.in_state(State.COMPLETE)
    (line,) = said
    assert line.startswith(f"trial {run.best()[0].number} is not exported: ")
    assert "is missing or damaged" in line


def test_a_larger_finish_trains_on_and_exports_anew(tiny_file, folder):
    before = read_run(folder).best()[0]
    weights = (folder / before.export.folder / "model.safetensors").read_bytes()
    more = load_study(tiny_file, ["finish.budget=600 MFLOPs", "evaluation.samples.per_class=2"])
    after = run_study(more, folder, in_process=True).best()[0]
    assert after.number == before.number
    assert after.reports[-1].macs >= 600_000_000
    assert len(after.search_reports) == len(before.search_reports)
    assert (folder / after.export.folder / "model.safetensors").read_bytes() != weights


def test_finish_export_and_samples_take_the_threads_of_the_study_also_when_a_run_goes_on(tiny, tmp_path, monkeypatch):
    taken = []

    def noted(name, function):
        def call(*arguments, **named):
            taken.append((name, torch.get_num_threads()))
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(LocalExecutor, "finish", noted("finish", LocalExecutor.finish))
    monkeypatch.setattr("nas.training.export.export", noted("export", export.export))
    monkeypatch.setattr("nas.training.export.sample", noted("sample", export.sample))
    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny, tmp_path / "run", in_process=True)
    with threads(2):
        run_study(tiny, tmp_path / "run", in_process=True)
        assert torch.get_num_threads() == 2, "what the caller had is set back"
    assert taken == [("finish", 1), ("export", 1), ("sample", 1)]


def test_samples_are_told_as_they_come_and_can_be_switched_off(tiny, tiny_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Told, "EVERY_S", 0.0)
    lines = []
    folder = tmp_path / "run"
    winner = run_study(tiny, folder, in_process=True, say=lines.append).best()[0]
    told = [line for line in lines if line.startswith(f"samples of {winner.name}, 10 of 10 classes: ")]
    assert [line.split(": ")[1].split(" after")[0] for line in told] == ["10 images", "8 of 10 images", "10 of 10 images"]
    without = load_study(tiny_file, ["evaluation.samples=null", "finish.budget=400 MFLOPs"])
    again = run_study(without, folder, in_process=True, say=lines.append).best()[0]
    assert not (folder / again.export.folder / "samples.png").exists(), "a grid of the weights before is none of these"
    assert not export.export_due(without, again)
    assert export.export_due(tiny, again)


def test_that_all_samples_are_drawn_is_told_once(monkeypatch):
    monkeypatch.setattr(Told, "EVERY_S", 0.0)
    lines = []
    told = Told("evaluation", 20, lines.append)
    for count in (10, 0, 0, 10, 0, 0):
        told(count)
    assert [line.split(" after")[0] for line in lines[1:]] == ["evaluation: 10 of 20 images", "evaluation: 20 of 20 images"]


def test_an_export_of_an_earlier_version_is_not_drawn_again_for_a_key_that_it_did_not_have(tiny, finished):
    trial = read_run(finished).best()[0]
    trial.export = trial.export.model_copy(update={"samples": {k: v for k, v in trial.export.samples.items() if k != "images"}})
    assert not export.export_due(tiny, trial)


def test_a_model_without_a_null_class_is_sampled_unguided(tiny_file, tmp_path):
    study = load_study(tiny_file, ["model.set.null_class=false", "search.trials=1"])
    winner = run_study(study, tmp_path / "run", in_process=True).best()[0]
    assert (tmp_path / "run" / winner.export.folder / "samples.png").exists()


ONE_RUNG = ["budget={max: 50 MFLOPs, mode: none, rungs: 1}", "finish=null", "evaluation.samples=null"]
"""What a test changes that asks nothing of rungs, the finish or samples."""


def test_bf16_trains_every_kind_of_layer(tiny_file, tmp_path):
    study = load_study(tiny_file, ["training.precision=bf16", "search.trials=8", *ONE_RUNG])
    run = run_study(study, tmp_path / "run", in_process=True)
    assert len(run.in_state(State.COMPLETE)) == 8


def test_missing_data_are_told_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.data.sources.files", lambda _: tmp_path / "no such package")
    with pytest.raises(ToolkitError, match="cannot be read"):
        run_study(tiny, tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def test_equal_seeds_give_equal_proposals_and_losses(tiny, tmp_path, finished):
    # Under a root of its own, or it would take over what the other has trained.
    run_study(tiny, tmp_path / "run", in_process=True)
    assert facts(tmp_path / "run") == facts(finished)


def test_a_run_takes_over_what_its_neighbour_has_trained(tiny_file, tmp_path, finished):
    alone = read_run(finished)
    shutil.copytree(finished, tmp_path / "runs" / "first")
    with pytest.MonkeyPatch.context() as patch:
        # The smoke step trains two steps of trials that are kept nowhere.
        patch.setattr(Trial, "advance", lambda self: pytest.fail("trained again"))
        second = run_study(load_study(tiny_file, ["finish=null"]), tmp_path / "runs" / "second", in_process=True)
    assert [t.state for t in second.trials.values()] == [t.state for t in alone.trials.values()]
    assert all(trial.reused == list(range(len(trial.reports))) for trial in second.trials.values())
    # The winner's weights are those of the last rung, though the neighbour has trained it on.
    plain = run_study(load_study(tiny_file, ["finish=null"]), tmp_path / "plain" / "run", in_process=True).best()[0]
    assert second.best()[0].number == plain.number
    own, taken = (load_file(tmp_path / root / plain.export.folder / "model.safetensors") for root in ("plain/run", "runs/second"))
    assert all(torch.equal(own[name], taken[name]) for name in own)


def test_a_killed_process_loses_nothing_and_trains_nothing_twice(tiny, tiny_file, tmp_path, finished):
    whole, parts = finished, tmp_path / "run"
    # Kills itself, as kill -9 would, after the fourth checkpoint and before the ledger hears of it.
    code = """
import os, signal, sys
from pathlib import Path
from nas.training import trial
from nas.execution.local_executor import LocalExecutor
from nas.execution.runner import Told, run_study
from nas.execution.threads import threads
from nas.study.load import load_study
write, left = trial.write_checkpoint, [4]
def write_then_die(*arguments):
    write(*arguments)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
trial.write_checkpoint = write_then_die
run_study(load_study(Path(sys.argv[1])), Path(sys.argv[2]), in_process=True)
"""
    died = subprocess.run([sys.executable, "-c", code, str(tiny_file), str(parts)], check=False)
    assert died.returncode == -signal.SIGKILL
    before = facts(parts)
    trained = []
    original = Trainer.train_to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "train_to", lambda self, step: trained.append((self.spec.digest, self.step, step)) or original(self, step)
        )
        run_study(tiny, parts, in_process=True)
    assert facts(parts)[: len(before)] == before
    assert facts(parts) == facts(whole)
    steps = {}
    for digest, start, _ in trained:
        assert (digest, start) not in steps, "a stretch of training was done twice"
        steps[digest, start] = True
    # The stretch whose report was lost comes from the checkpoint.
    reports = [event for event in facts(whole) if event["event"] == "report"]
    assert len(trained) == len(reports) - 4


def test_a_trial_that_hangs_is_failed_and_the_study_goes_on(tiny_file, tmp_path, monkeypatch):
    original = Trial.advance

    def advance(self):
        while self.plan.number == 1:
            time.monotonic()
        return original(self)

    monkeypatch.setattr(Trial, "advance", advance)
    study = load_study(tiny_file, ["resources.step_limit_s=5", "finish=null", "evaluation.samples=null"])
    run = run_study(study, tmp_path / "run", in_process=True)
    assert [trial.number for trial in run.in_state(State.FAILED)] == [1]
    assert "5 s" in run.trials[1].reason
    assert len(run.trials) == 4


def test_an_executor_that_returns_early_is_no_finished_search(tiny_file, tmp_path, monkeypatch):
    """As Ray Tune does on SIGUSR1, the usual warning of a batch system."""
    study = load_study(tiny_file, ONE_RUNG)
    monkeypatch.setattr("nas.execution.local_executor.LocalExecutor.search", lambda self, search: search.next_plan())
    with pytest.raises(ToolkitError, match="interrupted; the same command goes on"):
        run_study(study, tmp_path / "run", in_process=True)
    monkeypatch.undo()
    assert len(run_study(study, tmp_path / "run", in_process=True).in_state(State.COMPLETE)) == 4


def test_a_trial_that_cannot_go_on_is_failed_and_the_study_goes_on(tiny_file, tmp_path, monkeypatch):
    original = Trial.advance

    def advance(self):
        if self.plan.number == 1:
            raise MemoryError("no memory for the activations")
        return original(self)

    monkeypatch.setattr(Trial, "advance", advance)
    run = run_study(load_study(tiny_file, ["finish=null", "evaluation.samples=null"]), tmp_path / "run", in_process=True)
    failed = run.trials[1]
    assert (failed.state, failed.reason) == (State.FAILED, "out of memory: no memory for the activations")
    assert len(run.in_state(State.COMPLETE)) >= 1
    assert len(run.trials) == 4
    (event,) = [event for event in facts(tmp_path / "run") if event.get("state") == "FAILED"]
    assert "Traceback" in event["trace"]


def test_a_damaged_checkpoint_is_trained_again_to_the_same_losses(tiny, tmp_path, finished):
    whole, parts = finished, tmp_path / "run"
    lines = (whole / LEDGER).read_bytes().splitlines(keepends=True)
    kept = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "report") + 1
    parts.mkdir()
    (parts / LEDGER).write_bytes(b"".join(lines[:kept]))
    trial = read_run(parts).trials[0]
    (parts / "trials" / trial.name).mkdir(parents=True)
    (parts / "trials" / trial.name / CHECKPOINT).write_bytes(b"cut short")
    run_study(tiny, parts, in_process=True)
    losses = [[event["val_loss"] for event in facts(folder) if event["event"] == "report"] for folder in (whole, parts)]
    np.testing.assert_allclose(*losses, rtol=0, atol=0)


def listening():
    """The local addresses, in hexadecimal, that some process of this machine listens on."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A"}


def is_loopback(address):
    host = address.split(":")[0]
    return host.endswith("0100007F") or host == "00000000000000000000000001000000"


@pytest.mark.slow
def test_a_killed_worker_costs_the_work_since_the_last_rung_alone(tiny_file, tmp_path):
    """The system kills a process that takes too much memory; Ray starts another worker in its place."""
    command = [sys.executable, "-m", "nas", "run", str(tiny_file), "--out", "run", "--set", "resources.concurrent=1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=tmp_path)
    for line in process.stdout:
        if " at rung 1 " in line:
            (worker,) = [pid for pid in descendants(process.pid) if "Trainable" in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(worker, signal.SIGKILL)
            break
    output, _ = process.communicate()
    assert process.returncode == 0
    run = read_run(tmp_path / "run")
    assert len(run.trials) == 4
    assert {trial.state for trial in run.trials.values()} <= {State.COMPLETE, State.PRUNED}
    (again,) = [event for event in facts(tmp_path / "run") if event["event"] == "again"]
    assert again["lost"]
    assert again["reason"].startswith("the worker died: ")
    assert f"trial {again['trial']} is handed out again: the worker died" in output
    for trial in run.trials.values():
        assert [report.rung for report in trial.search_reports] == list(range(len(trial.search_reports)))


def descendants(pid):
    """The processes below a process."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # It ended meanwhile.
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


@pytest.mark.slow
def test_on_ray_trials_end_and_an_interrupted_run_goes_on(tiny_file, tmp_path):
    """One real Ray run, interrupted by Ctrl-C at its first report, long before its end, then finished by the same command."""
    folder = tmp_path / "run"
    # A relative directory: workers run elsewhere.
    command = [sys.executable, "-m", "nas", "run", str(tiny_file), "--out", "run"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    how = {"text": True, "env": environment, "cwd": tmp_path}
    before = listening()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    for line in process.stdout:
        if "val_loss" in line and " at rung " in line:
            assert all(is_loopback(address) for address in listening() - before)
            assert len(listening() - before) > 2
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    before = facts(folder)
    finished = subprocess.run(command, capture_output=True, check=False, **how)
    assert finished.returncode == 0, finished.stderr
    assert facts(folder)[: len(before)] == before
    run = read_run(folder)
    assert len(run.trials) == 4
    assert not run.in_state(State.RUNNING)
    for trial in run.trials.values():
        assert [report.rung for report in trial.reports] == list(range(len(trial.reports)))
    for expected in ("Ranking", "Front of val_loss", "front.png", "exported winner", "samples.png"):
        assert expected in finished.stdout
    # What two workers trained is what one process trains.
    alone = run_study(load_study(tiny_file), tmp_path / "other" / "alone", in_process=True)
    first = {report.rung: report.val_loss for report in alone.trials[0].search_reports}
    for report in run.trials[0].search_reports:
        assert report.val_loss == pytest.approx(first.get(report.rung, report.val_loss), rel=1e-5)


def test_a_searcher_that_cannot_be_made_leaves_no_directory(tiny, tmp_path, monkeypatch):
    def broken(*_):
        raise ToolkitError("no such sampler")

    monkeypatch.setitem(SEARCHERS, "tpe", broken)
    with pytest.raises(ToolkitError, match="no such sampler"):
        run_study(tiny, tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def test_ray_without_a_home_directory_is_refused_with_the_way_to_mend_it(tiny, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ToolkitError, match="this user has none; set HOME to a folder that can be written, or use --in-process"):
        run_study(tiny, tmp_path / "run")
