"""Trackers fed by a real Ray Tune run on this machine, with a stub in place of training."""

import json
import logging
import os
import sqlite3
import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from tensorboardX.proto.event_pb2 import Event

# Read when Ray is imported: its clusters then listen on loopback alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import tune

from nas.execution.tracking import METRICS, callbacks
from nas.runs.records import TrialPlan
from nas.study.load import load_study
from nas.study.settings import TrackingSettings
from space import ToolkitError

RUNGS = 3


class Stub(tune.Trainable):
    """Reports at three rungs what a trial reports; trial 1 fails at its second."""

    def setup(self, config):
        self.plan = TrialPlan.model_validate_json(config["plan"])
        self.rung = self.plan.reported

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        rung, self.rung = self.rung, self.rung + 1
        if self.plan.number == 1 and rung == 1:
            return {"failure_json": '{"reason": "diverged"}', "done": True}
        metrics = {name: float(rung) for name in METRICS} | {"val_loss": 1 / (rung + 1), "step": 10 * (rung + 1)}
        return {**metrics, "trial": self.plan.number, "report_json": '{"val_loss": 1}', "done": self.rung == RUNGS}

    def save_checkpoint(self, checkpoint_dir):
        return {}

    def load_checkpoint(self, checkpoint):
        pass


@pytest.fixture(scope="module", autouse=True)
def cluster():
    quiet = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quiet.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def study(tiny_file):
    return load_study(tiny_file)


def plans(study, reported=0):
    specs = [study.base, study.search_space.spec({"heads": 1, "attention.similarity": "dot", "feed_forward.kind": "conv"})]
    return [TrialPlan(number=n, spec=spec, seed=0, milestones=(1, 2, 3), reported=reported) for n, spec in enumerate(specs)]


def run_tune(study, folder, made, todo, name="search"):
    configs = [
        {"plan": plan.model_dump_json(), "study": study.model_dump_json(), "folder": str(folder / "trials")} for plan in todo
    ]
    tuner = tune.Tuner(
        tune.with_resources(Stub, {"cpu": 1}),
        param_space=tune.grid_search(configs),
        tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
        run_config=tune.RunConfig(name=name, storage_path=str(folder / ".ray"), callbacks=made, verbose=0),
    )
    return tuner.fit()


def settings(kind, **options):
    return (TrackingSettings(kind=kind, options=options),)


def scalars(folder):
    """All scalars of TensorBoard's files in a folder: {tag: [(step, value)]}, in the order of their steps; and all other tags."""
    found, others = {}, set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            # A record: its length, a checksum of that, the data, a checksum of those.
            (length,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
                else:
                    others.add(value.tag)
    return {tag: sorted(points) for tag, points in found.items()}, others


def test_tensorboard_has_every_rung_and_nothing_of_rays(study, tmp_path):
    todo = plans(study)
    made = callbacks(settings("tensorboard"), study, tmp_path)
    # A trial that waited at a rung goes on as another trial of Ray's.
    results = run_tune(study, tmp_path, made, [*todo, todo[0].model_copy(update={"reported": 2})])
    assert not results.errors
    kept = tmp_path / "tracking" / "tensorboard"
    assert {path.name for path in kept.iterdir()} == {plan.name for plan in todo}
    tags, others = scalars(kept / todo[0].name)
    assert {tag.removeprefix("ray/tune/") for tag in tags} >= set(METRICS) - {"step"}
    assert tags["ray/tune/val_loss"] == [(10, 1.0), (20, 0.5), (30, pytest.approx(1 / 3)), (30, pytest.approx(1 / 3))]
    assert not [tag for tag in tags if "json" in tag or "time" in tag or "iteration" in tag]
    assert len(scalars(kept / todo[1].name)[0]["ray/tune/val_loss"]) == 1
    raw = b"".join(path.read_bytes() for path in (kept / todo[0].name).iterdir())
    assert b"feed_forward.kind" in raw, "hyper-parameters in readable form"
    assert b"milestones" not in raw, "and not the plan's JSON"
    assert others


def test_a_tracker_that_breaks_is_left_out(study, tmp_path, caplog):
    made = callbacks(settings("tensorboard"), study, tmp_path)
    (tmp_path / "tracking").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        results = run_tune(study, tmp_path, made, plans(study))
    assert not results.errors
    assert sorted(result.metrics["training_iteration"] for result in results) == [2, 3]
    said = [record.getMessage() for record in caplog.records if record.name == "nas.execution.tracking"]
    assert len(said) == 1
    assert "the run goes on without tensorboard: " in said[0]


@pytest.fixture
def stand_in(monkeypatch):
    """Makes a package that can be found and imported."""

    def make(name, **contents):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for key, value in contents.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    yield make
    # It remembers what it found.
    sys.modules.pop("ray.air.integrations.wandb", None)


@pytest.mark.parametrize("kind", ["wandb", "mlflow", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_one_sentence(study, tmp_path, monkeypatch, kind):
    package = {"tensorboard": "tensorboardX"}.get(kind, kind)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ToolkitError, match=f"^tracking: {kind} is not installed; pip install {package}, or take it out of the study$"
    ):
        callbacks(settings(kind), study, tmp_path)
    assert not (tmp_path / "tracking").exists()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("tensorboard", {"comment": "x"}, "tracking: tensorboard has no option 'comment'"),
        ("mlflow", {"tracking_url": "x"}, "tracking: mlflow has no option 'tracking_url'.*tracking_uri"),
        ("mlflow", {"tracking_token": "x"}, "tracking: tracking_token is a secret.*MLFLOW_TRACKING_TOKEN"),
        ("wandb", {"projekt": "x"}, "tracking: wandb has no option 'projekt'.*project"),
        ("wandb", {"api_key": "x"}, "tracking: api_key is a secret.*WANDB_API_KEY"),
    ],
)
def test_a_wrong_option_is_one_sentence(study, tmp_path, stand_in, kind, options, said):
    stand_in("mlflow")
    stand_in("wandb", init=lambda mode=None: None)
    with pytest.raises(ToolkitError, match=said):
        callbacks(settings(kind, **options), study, tmp_path)


def test_a_tracker_that_cannot_be_set_up_is_one_sentence(study, tmp_path, stand_in):
    def refuse(uri):
        raise OSError(f"{uri} does not answer\nmore")

    stand_in("mlflow", set_tracking_uri=refuse)
    with pytest.raises(
        ToolkitError, match=r"^tracking: mlflow cannot be used: http://there does not answer; check .*MLFLOW_TRACKING_URI$"
    ):
        callbacks(settings("mlflow", tracking_uri="http://there"), study, tmp_path)


@pytest.mark.slow
def test_mlflow_has_a_run_a_trial(study, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    todo = plans(study)
    made = callbacks(settings("mlflow"), study, tmp_path)
    run_tune(study, tmp_path, made, todo)
    run_tune(study, tmp_path, made, [todo[0].model_copy(update={"reported": 2})], "finish")
    with sqlite3.connect(tmp_path / "tracking" / "mlflow.db") as database:
        assert ("tiny",) in database.execute("select name from experiments").fetchall()
        runs = dict(database.execute("select name, status from runs"))
        assert runs == {todo[0].name: "FINISHED", todo[1].name: "FAILED"}
        losses = database.execute("select step, value from metrics where key = 'val_loss' order by step").fetchall()
        params = dict(database.execute("select key, value from params"))
    # Of trial 0: its three rungs, and once more the last, in the finish.
    assert losses == [(10, 1.0), (10, 1.0), (20, 0.5), (30, pytest.approx(1 / 3)), (30, pytest.approx(1 / 3))]
    assert json.loads(params["trial"]) in (0, 1)
    assert set(params) == {"trial", "digest", "seed", "gflops", "params_m", *study.search.space}


@pytest.mark.slow
def test_wandb_works_without_a_network(study, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    todo = plans(study)
    made = callbacks(settings("wandb", mode="offline"), study, tmp_path)
    results = run_tune(study, tmp_path, made, todo)
    assert not results.errors
    (first,) = (tmp_path / "tracking" / "wandb" / todo[0].name / "wandb").glob("offline-run-*/*.wandb")
    raw = first.read_bytes()
    assert b"val_loss" in raw
    assert b"feed_forward.kind" in raw
    assert b"milestones" not in raw
