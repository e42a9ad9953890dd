"""A study trains, resumes and is exported on a prepared store of every kind."""

import gzip
import json
import re
import struct

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from nas.cli.app import main
from space.weights import facts_of
from tests.conftest import TINY

RNG = np.random.default_rng(0)
COUNT = 240
LABELS = np.arange(COUNT) % 4


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pixels_idx(folder):
    images = RNG.integers(0, 256, (COUNT, 12, 12)).astype(np.uint8)
    for name, array in (("images", images), ("labels", LABELS.astype(np.uint8))):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(head + array.tobytes()))
    return ["idx", folder / "images", folder / "labels", "--pad-to", 16, "--codec", "pixel-unshuffle-2"]


def latents_npz(folder):
    np.savez(folder / "set.npz", latents=RNG.uniform(-1, 1, (COUNT, 3, 8, 8)).astype(np.float32), labels=LABELS)
    return ["arrays", folder / "set.npz"]


def feature_files(folder):
    for name in ("imagenet256_features", "imagenet256_labels"):
        (folder / name).mkdir()
    for index in range(COUNT):
        np.save(folder / "imagenet256_features" / f"{index}.npy", RNG.normal(size=(1, 4, 8, 8)).astype(np.float32))
        np.save(folder / "imagenet256_labels" / f"{index}.npy", LABELS[index : index + 1])
    return ["features", folder, "--codec", f"vae:{folder / 'none'}", "--scale", 0.18215]


def study(tmp_path, store, **changes):
    data = {"source": str(store), "held_out": 0.25}
    content = {**TINY, "data": data, "search": {**TINY["search"], "trials": 2}, **changes}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("kind", [pixels_idx, latents_npz, feature_files])
def test_a_study_trains_on_a_store(tmp_path, kind):
    store = tmp_path / "store"
    assert nas("data", "prepare", *kind(tmp_path), "--out", store).exit_code == 0
    path = study(tmp_path, store)
    done = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    exported = next((tmp_path / "run" / "export").iterdir())
    assert facts_of(exported)["class_names"] == ["0", "1", "2", "3"]
    if kind is feature_files:
        # The latents' VAE is not there, so no images can be drawn; the model is trained and exported all the same.
        assert "samples          none: " in done.output
        assert not (exported / "samples.png").exists()
    else:
        assert (exported / "samples.png").exists()
    events = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    again = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert again.exit_code == 0
    trained = [event for event in events if event["event"] == "report"]
    later = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [event for event in later if event["event"] == "report"] == trained


def test_a_run_is_bound_to_its_data_but_read_without_them(tmp_path):
    store = tmp_path / "store"
    kind = latents_npz(tmp_path)
    assert nas("data", "prepare", *kind, "--out", store).exit_code == 0
    path = study(tmp_path, store)
    assert nas("run", path, "--in-process", "--out", tmp_path / "run").exit_code == 0
    table = nas("table", tmp_path / "run").output
    store.rename(tmp_path / "elsewhere")
    # Tables, and models that were exported, need no data.
    assert nas("table", tmp_path / "run").output == table
    assert nas("status", tmp_path / "run").exit_code == 0
    assert nas("export", tmp_path / "run", "--out", tmp_path / "out").exit_code == 0
    assert "no folder" in nas("run", path, "--in-process", "--out", tmp_path / "run").output
    latents_npz(tmp_path)
    assert nas("data", "prepare", *kind, "--out", store).exit_code == 0
    other = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert other.exit_code == 2
    assert "was trained on other data than" in other.output


def test_impossible_flips_are_refused_before_anything_is_trained(tmp_path):
    assert nas("data", "prepare", *feature_files(tmp_path), "--out", tmp_path / "store").exit_code == 0
    path = study(tmp_path, tmp_path / "store", data={"source": str(tmp_path / "store"), "flip": True})
    done = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "holds no mirror images" in done.output
    assert not (tmp_path / "run").exists()


def rewritten(store, **facts):
    """The store's header with other facts, as an earlier version wrote it: without counts."""
    path = store / "header.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "class_counts"}
    path.write_text(json.dumps({**kept, **facts}))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"codec": "pixel-unshuffle-2"},
            "codec pixel-unshuffle-2 has latents of 4 or 12 channels, not 3; name the codec that made",
        ),
        ({"class_names": list("abcdef")}, r"has 2 classes without a sample \(e, f\), which would be sampled and scored; prepare"),
        ({"content": "moments"}, "holds moments, which pixel-unshuffle-1 does not make; prepare the store again"),
    ],
)
def test_stores_that_their_codec_or_labels_do_not_fit_are_refused_by_validate(tmp_path, facts, message):
    store = tmp_path / "store"
    assert nas("data", "prepare", *latents_npz(tmp_path), "--out", store).exit_code == 0
    path = study(tmp_path, store)
    rewritten(store)
    assert nas("validate", path).exit_code == 0
    rewritten(store, **facts)
    done = nas("validate", path)
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output
    assert "Traceback" not in done.output


def test_latents_of_another_vae_are_refused_by_validate(tmp_path):
    store = tmp_path / "store"
    assert nas("data", "prepare", *feature_files(tmp_path), "--out", store).exit_code == 0
    path = study(tmp_path, store)
    assert nas("validate", path).exit_code == 0
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"latent_channels": 16}))
    assert "has latents of 16 channels, not 4; name the codec that made them" in nas("validate", path).output


def test_what_is_expected_of_absent_data_must_suit_its_codec(tmp_path):
    expected = {"shape": [3, 16, 16], "classes": 10, "codec": "pixel-unshuffle-2"}
    path = study(tmp_path, tmp_path / "absent", data={"source": str(tmp_path / "absent"), "expected": expected})
    assert "has latents of 4 or 12 channels, not 3" in nas("validate", path).output


@pytest.mark.parametrize(
    ("images", "held_out", "message"),
    [
        (16, 0.01, "is 16, but only 0 images are held out: data.held_out is 0.01 of 240 in 4 classes of 60; set .* 0.0667 or more"),
        (130, 0.1, "only 24 images are held out: .* no share up to 0.5 holds out so many, so take more data, or lower it to 24"),
    ],
)
def test_a_share_that_holds_out_enough_is_told(tmp_path, images, held_out, message):
    store = tmp_path / "store"
    assert nas("data", "prepare", *latents_npz(tmp_path), "--out", store).exit_code == 0
    evaluation = {**TINY["evaluation"], "val_loss": {"images": images}}
    path = study(tmp_path, store, data={"source": str(store), "held_out": held_out}, evaluation=evaluation)
    done = nas("validate", path)
    assert re.search(message, done.output), done.output
    if found := re.search(r"held_out to ([\d.]+)", done.output):
        path = study(tmp_path, store, data={"source": str(store), "held_out": float(found[1])}, evaluation=evaluation)
        assert nas("validate", path).exit_code == 0


@pytest.mark.parametrize("prediction", ["v", {"kind": "flow", "times": "logit-normal"}])
def test_every_objective_runs_to_its_samples(tmp_path, prediction):
    training = {**TINY["training"], "prediction": prediction, "ema": [0.999, 0.9, 0.0], "warmup_steps": 3, "clip_norm": 1.0}
    finish = {**TINY["finish"], "decay": 0.5}
    path = tmp_path / "study.yaml"
    content = {**TINY, "training": training, "finish": finish, "search": {**TINY["search"], "trials": 1}}
    path.write_text(yaml.safe_dump({**content, "data": {**TINY["data"], "flip": True}}, sort_keys=False))
    done = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    exported = next((tmp_path / "run" / "export").iterdir())
    kind = prediction if isinstance(prediction, str) else prediction["kind"]
    assert facts_of(exported)["prediction"]["kind"] == kind
    assert not yaml.safe_load((exported / "spec.yaml").read_text())["learned_variance"]
    wrong = nas("sample", exported, "--sampler", "heun" if kind == "v" else "ddim", "--out", tmp_path / "x.png")
    assert wrong.exit_code == 2
    assert "does not fit the model" in wrong.output
    assert nas("export", tmp_path / "run", "--ema", 0.9, "--out", tmp_path / "other").exit_code == 0
    other = next((tmp_path / "other").iterdir())
    assert facts_of(other)["ema"] == 0.9
    assert (other / "model.safetensors").read_bytes() != (exported / "model.safetensors").read_bytes()
    assert "keeps no average of decay 0.5; it has 0.999, 0.9, 0" in nas("export", tmp_path / "run", "--ema", 0.5).output


def test_winners_are_judged_when_the_study_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "study.yaml"
    judged = {**TINY["evaluation"], "fid": {"samples": 129, "steps": 2, "seeds": [0, 1]}}
    path.write_text(yaml.safe_dump({**TINY, "evaluation": judged, "search": {**TINY["search"], "trials": 1}}, sort_keys=False))
    few = nas("run", path, "--in-process", "--out", tmp_path / "run", "--set", "evaluation.fid.samples=100")
    assert few.exit_code == 2
    assert "draw at least 129" in few.output
    assert not (tmp_path / "run").exists()
    done = nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    report = next((tmp_path / "run" / "export").iterdir()) / "evaluation.json"
    assert f"evaluation       {report}" in done.output
    first = json.loads(report.read_text())
    assert first["sampling"]["seeds"] == [0, 1]
    assert len(first["metrics"]["fid"]["values"]) == 2
    # Unchanged it is not drawn again; with another setting it is.
    before = report.stat().st_mtime_ns
    nas("run", path, "--in-process", "--out", tmp_path / "run")
    assert report.stat().st_mtime_ns == before
    nas("run", path, "--in-process", "--out", tmp_path / "run", "--set", "evaluation.fid.seeds=[5]")
    assert json.loads(report.read_text())["sampling"]["seeds"] == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"source": "nowhere"}}, "data: no data source 'nowhere'.*and no folder"),
        ({"data": {"source": "fashion-mnist-10k"}}, "fashion-mnist-10k holds images; name a codec"),
        ({"budget": {"max": "200 MFLOPs", "rungs": 3, "decay": 0.6}}, "budget: decay 0.6 would begin before.*at most 0.5"),
        ({"budget": {"max": "200 MFLOPs", "decay": 0.6}}, "the finish goes on with it; write finish.decay"),
        ({"training": {"prediction": "x0"}}, "training.prediction.kind: 'x0' is not one of 'epsilon', 'v' or 'flow'"),
        ({"training": {"prediction": {"kind": "flow", "min_snr": 5}}}, "a flow has none, so remove it"),
        ({"training": {"ema": []}}, "training.ema"),
        ({"training": {"ema": [0.9, 0.9]}}, "training.ema names a decay twice"),
        ({"evaluation": {"samples": {"sampler": "heun"}}}, "evaluation.samples.sampler is heun, but epsilon is sampled with ddpm"),
        (
            {"training": {"prediction": "v"}, "model": {**TINY["model"], "set": {"learned_variance": True}}},
            "model.set.learned_variance is True, but the prediction has False",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    done = nas("validate", path)
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output


def test_a_fallen_learning_rate_is_not_resumed(tmp_path):
    finish = {**TINY["finish"], "decay": 0.5}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, "finish": finish, "search": {**TINY["search"], "trials": 1}}, sort_keys=False))
    assert nas("run", path, "--in-process", "--out", tmp_path / "run").exit_code == 0
    more = nas("run", path, "--in-process", "--out", tmp_path / "run", "--set", "finish.budget=400 MFLOPs")
    assert more.exit_code == 2
    assert "finish.budget: 300000000 → 400000000" in more.output
