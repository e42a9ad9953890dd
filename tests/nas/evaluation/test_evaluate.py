"""Evaluation of a model's samples, files of samples and controls, with a cache of the real images' features."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from nas.cli import evaluate as command
from nas.cli.app import main
from nas.data.codecs import codec_named
from nas.data.sources import load_data
from nas.diffusion.prediction import Epsilon
from nas.evaluation import inception, reference
from nas.evaluation.adm import count_images, read_reference_npz, stream_images, write_samples_npz
from nas.evaluation.clothes import Clothes
from nas.evaluation.evaluate import Judged, drawn, judge, metrics_report
from nas.evaluation.extrapolation import fid_infinity
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from nas.evaluation.reference import Collector, features_of, images_of, reference_of_file, reference_of_split
from nas.study.choices import FEATURES
from nas.study.metrics import SCORES
from nas.study.settings import FidSettings
from space import ToolkitError, build, preset
from space.weights import save

CPU = torch.device("cpu")
REAL = ["--data", "fashion-mnist-10k", "--codec", "pixel-unshuffle-2"]
METRICS = [name for name in SCORES if name != "val_loss"]
TINY = ["--samples", "130", "--seeds", "2", "--steps", "2"]
FEW = [name for name in METRICS if name != "fid_infinity"]
"""The metrics of so few samples."""


@pytest.fixture(scope="module")
def clothes():
    return Clothes()


@pytest.fixture(scope="module")
def data():
    return load_data("fashion-mnist-10k", "pixel-unshuffle-2")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for all tests of this module, apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "udit-nas" / "reference"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    facts = {"codec": "pixel-unshuffle-2", "data": {"source": "fashion-mnist-10k", "codec": "pixel-unshuffle-2"}}
    save(build(preset("u-dit-toy")), folder, facts)
    return folder


def evaluated(*arguments):
    done = CliRunner().invoke(main, ["evaluate", *(str(argument) for argument in arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def told(*arguments):
    done = CliRunner().invoke(main, ["evaluate", *(str(argument) for argument in arguments)])
    assert done.exit_code == 2, done.output
    return done.output


def test_real_images_are_near_noise_is_far():
    reports = [evaluated(what, *REAL, "--samples", 300, "--seeds", 2) for what in ("validation", "noise")]
    real, noise = (report["metrics"] for report in reports)
    assert list(real) == METRICS
    assert real["fid"]["mean"] < 0.5
    assert noise["fid"]["mean"] > 50
    assert real["sfid"]["mean"] < 1 < 10 < noise["sfid"]["mean"]
    assert real["inception_score"]["mean"] > 7
    assert noise["inception_score"]["mean"] < 2
    assert min(real["precision"]["mean"], real["recall"]["mean"]) > 0.8
    assert noise["precision"]["mean"] == noise["recall"]["mean"] == 0
    assert abs(real["kid"]["mean"]) < 0.001
    assert abs(real["fid_infinity"]["mean"]) < 0.03, "held-out images are as many of each class; random ones would give -0.1"
    assert noise["kid"]["mean"] > 0.02
    assert [report["sd_over"] for report in reports] == [None, "2 draws of noise"]
    (error,), score = real["fid_infinity"]["standard_errors"], real["fid_infinity"]["mean"]
    line, note = command._lines(reports[0])
    assert f"fid_infinity {score:.4g} (standard error {error:.2g}), sfid" in line
    assert note == reports[0]["notes"][0], "of one set there is no ±, and none is explained"
    for found in (real, noise):
        errors = found["fid_infinity"]["standard_errors"]
        assert len(errors) == len(found["fid_infinity"]["values"])
        assert found["fid_infinity"]["mean"] < found["fid"]["mean"] < found["fid_infinity"]["mean"] + 9 * max(errors)


def test_a_report_says_all_that_is_needed_to_repeat_it(model, tmp_path, clothes):
    report = evaluated(model, *TINY, "--cfg", 1.5, "--keep-samples", tmp_path / "kept")
    assert report["of"] == str(model)
    assert report["samples"] == 130
    assert report["sampling"] == {"sampler": "ddim", "steps": 2, "guidance": 1.5, "seeds": [0, 1]}
    assert report["extractor"] == {"name": "clothes", "digest": clothes.digest}
    assert report["reference"]["source"] == "fashion-mnist-10k, train"
    assert report["reference"]["images"] == 9000
    assert len(report["reference"]["digest"]) == 64
    for found in report["metrics"].values():
        assert found["mean"] == pytest.approx(np.mean(found["values"]))
        assert found["sd"] == pytest.approx(np.std(found["values"], ddof=1))
    assert report["metrics"]["fid"]["values"][0] != report["metrics"]["fid"]["values"][1]
    # The same command gives the same numbers, and so do the samples that it kept.
    assert evaluated(model, *TINY, "--cfg", 1.5)["metrics"] == report["metrics"]
    kept = evaluated(tmp_path / "kept" / "seed-1.npz", *REAL)
    assert kept["metrics"]["fid"]["mean"] == pytest.approx(report["metrics"]["fid"]["values"][1], rel=1e-6)
    assert kept["metrics"]["fid"]["sd"] is None
    assert kept["notes"][-1].startswith("the file's images are taken as independent")
    assert kept["metrics"]["kid"]["mean"] < report["metrics"]["kid"]["values"][1], "the file does not say the classes"
    assert read_reference_npz(tmp_path / "kept" / "seed-0.npz").arr_0.shape == (130, 32, 32, 3)


def test_the_report_is_written(model, tmp_path):
    done = CliRunner().invoke(main, ["evaluate", str(model), *TINY, "--out", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["metrics"]) == FEW
    assert report["sd_over"] == "2 sampling seeds of one training, not over trainings"
    first, over, *notes, path = done.stdout.splitlines()
    assert first.startswith("130 samples: fid ")
    assert " ± " in first
    assert over == "± is the sd over 2 sampling seeds of one training, not over trainings"
    assert notes == report["notes"]
    assert notes[0].startswith(
        "130 samples are too few to order models by fid (at least 1,280) and sfid (at least 2,560): below 20"
    )
    assert notes[1:] == ["fid_infinity is not measured: it needs at least 256 samples"]
    assert path == str(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("samples", "real", "told"),
    [
        (1279, 9000, ["1,279 samples are too few to order models by fid (at least 1,280) and sfid (at least 2,560)"]),
        (1280, 9000, ["1,280 samples are too few to order models by sfid (at least 2,560)"]),
        (2560, 9000, []),
        (2560, 2559, ["2,559 real images are too few to order models by sfid (at least 2,560)"]),
        (2560, None, []),
    ],
)
def test_too_few_images_to_order_models_by_fid_are_told_once(clothes, samples, real, told):
    moments = reference.Moments(np.zeros(1), np.eye(1), real)
    compared = reference.Reference(reference.ImageFeatures(moments, moments, None, None, real), "x", "x", kept=False)
    measured = Judged({"fid": 1.0, "fid_infinity": 0.9, "sfid": 1.0}, {"fid_infinity": 0.1})
    report = metrics_report([measured], samples, clothes, compared)
    assert [note.partition(":")[0] for note in report["notes"]] == told
    assert all(note.endswith("compare by kid, which is unbiased") for note in report["notes"])
    without = metrics_report([Judged({"inception_score": 1.0}, {})], samples, clothes, compared)
    assert without["notes"] == [], "what is not measured is not warned of"


def test_the_features_that_studies_count_are_those_of_the_extractors(clothes):
    dimensions = {"clothes": clothes.dimensions, "inception": inception.DIMENSIONS}
    assert {name: {"fid": found.pool, "sfid": found.spatial} for name, found in dimensions.items()} == FEATURES


def test_metrics_are_those_of_the_features(data, clothes):
    found, real = (features_of(batches, clothes) for batches in (some(data.validation, 256), some(data.train, 400)))
    told = []
    values, errors = judge(found, real, bar=told.append)
    assert set(values) == set(METRICS), "whatever an ablation can compare is measured"
    assert set(told) == {0}, "a long judgement shows progress"
    assert (values["fid_infinity"], errors["fid_infinity"]) == fid_infinity(found.rows, real.pool)
    assert values["fid"] == pytest.approx(fid(found.rows, real.rows))
    assert values["inception_score"] == inception_score(found.logits)
    assert (values["precision"], values["recall"]) == precision_recall(real.rows, found.rows)
    assert values["kid"] == pytest.approx(kid(real.rows, found.rows))
    assert values["sfid"] != values["fid"]


def some(split, count):
    images = np.concatenate(list(images_of(split, CPU)))[:count]
    for first in range(0, count, 64):
        yield images[first : first + 64]


def test_images_are_those_of_the_source(data):
    images = np.concatenate(list(images_of(data.validation, CPU)))
    assert images.shape == (1000, 1, 32, 32)
    stored = data.store.codec.decode(np.asarray(data.store.rows[data.validation.samples]))
    assert np.array_equal(images, stored)


def test_samples_do_not_depend_on_the_batch(model, monkeypatch):
    from nas.evaluation import evaluate
    from space import load

    found = []
    for batch in (128, 50):
        monkeypatch.setattr(evaluate, "BATCH", batch)
        images = drawn(load(model), codec_named("pixel-unshuffle-2"), Epsilon(), FidSettings(samples=130, steps=2), seed=3)
        found.append(np.concatenate(list(images)).astype(int))
    assert found[0].shape == (130, 1, 32, 32)
    assert np.abs(found[0] - found[1]).max() <= 1


def test_features_of_real_images_are_kept(data, clothes, cache, tmp_path, monkeypatch):
    first = reference_of_split(data.validation, "validation", clothes, CPU, tmp_path)
    second = reference_of_split(data.validation, "validation", clothes, CPU, tmp_path)
    assert (first.kept, second.kept) == (False, True)
    assert first.digest == second.digest
    assert np.array_equal(first.features.rows, second.features.rows)
    assert np.array_equal(first.features.pool.covariance, second.features.pool.covariance)
    assert np.array_equal(first.features.spatial.mean, second.features.spatial.mean)
    other = reference_of_split(data.train, "train", clothes, CPU, tmp_path)
    assert other.digest != first.digest
    # A damaged file in the cache is computed anew; a cache that cannot be written costs nothing but time.
    path = tmp_path / f"{first.digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert not reference_of_split(data.validation, "validation", clothes, CPU, tmp_path).kept
    assert reference_of_split(data.validation, "validation", clothes, CPU, tmp_path).kept
    (tmp_path / "file").write_text("")
    assert not reference_of_split(data.validation, "validation", clothes, CPU, tmp_path / "file" / "below").kept
    monkeypatch.setattr(reference, "MANIFOLD_IMAGES", 100)
    fewer = reference_of_split(data.validation, "validation", clothes, CPU, tmp_path / "other").features
    assert len(fewer.rows) == 100
    assert fewer.images == 1000
    assert np.array_equal(fewer.rows, first.features.rows[::10])
    monkeypatch.setattr(reference, "BATCH", 77)
    cut = reference_of_split(data.validation, "validation", clothes, CPU, tmp_path / "again").features
    np.testing.assert_allclose(cut.rows, fewer.rows, atol=1e-5)


def test_references_from_files(data, clothes, tmp_path):
    write_samples_npz((batch.transpose(0, 2, 3, 1) for batch in some(data.validation, 300)), tmp_path / "real.npz")
    found = reference_of_file(tmp_path / "real.npz", clothes, tmp_path / "cache")
    np.testing.assert_allclose(found.features.rows, features_of(some(data.validation, 300), clothes).rows, atol=1e-5)
    assert reference_of_file(tmp_path / "real.npz", clothes, tmp_path / "cache").kept
    np.savez(tmp_path / "bare.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ToolkitError, match="statistics of Inception's features, which clothes's cannot be compared with"):
        reference_of_file(tmp_path / "bare.npz", clothes)


def test_a_model_is_compared_with_a_file_without_its_data(model, data, tmp_path):
    write_samples_npz((batch.transpose(0, 2, 3, 1) for batch in some(data.validation, 200)), tmp_path / "real.npz")
    other = tmp_path / "other"
    facts = {"codec": "pixel-unshuffle-2", "data": {"source": str(tmp_path / "gone")}}
    torch.manual_seed(0)
    save(build(preset("u-dit-toy")), other, facts)
    report = evaluated(other, *TINY, "--reference", tmp_path / "real.npz")
    assert report["reference"]["images"] == 200
    assert "no data source 'gone'" in told(other, *TINY)


def test_images_are_streamed_from_files(data, tmp_path):
    whole = np.concatenate(list(some(data.validation, 150)))
    write_samples_npz([whole.transpose(0, 2, 3, 1)], tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", arr_0=np.repeat(whole.transpose(0, 2, 3, 1), 3, axis=3))
    for name in ("a.npz", "b.npz"):
        found = list(stream_images(tmp_path / name, 64))
        assert [len(batch) for batch in found] == [64, 64, 22]
        assert np.array_equal(np.concatenate(found)[..., 1], whole[:, 0])
        assert count_images(tmp_path / name) == 150
    np.savez(tmp_path / "c.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert count_images(tmp_path / "c.npz") == 0
    with pytest.raises(ToolkitError, match="holds no images; give a file with arr_0"):
        list(stream_images(tmp_path / "c.npz", 64))
    np.savez(tmp_path / "d.npz", arr_0=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ToolkitError, match="must be uint8"):
        list(stream_images(tmp_path / "d.npz", 64))


def test_bare_statistics_allow_fid_alone(data, clothes):
    whole = features_of(some(data.validation, 256), clothes)
    bare = reference.ImageFeatures(whole.pool, None, None, None, None)
    assert list(judge(whole, bare).values) == ["fid", "fid_infinity", "inception_score"]


def test_a_collector_without_images(clothes):
    with pytest.raises(ToolkitError, match="no images"):
        Collector(clothes).features()


def test_mistakes(model, tmp_path):
    assert "100 samples are too few for a covariance of 128 features; draw at least 129" in told(model, "--samples", 100)
    assert "name a file in a folder that exists" in told(model, *TINY, "--out", tmp_path / "none" / "x.json")
    assert "is not a model folder" in told(tmp_path / "none", *TINY, *REAL)
    assert "no data source 'fashion'" in told(model, *TINY, "--data", "fashion", "--codec", "pixel-unshuffle-2")
    assert "write train, validation or a .npz file" in told(model, *TINY, "--reference", "test")
    assert "is not there" in told(model, *TINY, "--reference", tmp_path / "none.npz")
    assert "is not there" in told(tmp_path / "none.npz", *REAL)
    assert "sampler heun does not fit" in told(model, *TINY, "--sampler", "heun")
    assert "which real images to compare with" in told("noise")
    assert "leave it out" in told("noise", *REAL, "--keep-samples", tmp_path)
    assert "cannot be written" in told(model, *TINY, "--out", tmp_path)
    torch.manual_seed(0)
    save(build(preset("u-dit-toy")), tmp_path / "bare", {})
    assert "does not say which codec" in told(tmp_path / "bare", *TINY)
    assert "the codec is vae:x, but the model's latents are those of pixel-unshuffle-2" in told(model, *TINY, "--codec", "vae:x")
