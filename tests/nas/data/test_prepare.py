"""Preparing stores of every kind on the command line, and training on them."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
from click.testing import CliRunner

from nas.cli.app import main
from nas.data.store import open_store

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 4


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def prepared(tmp_path, *arguments):
    done = nas("data", "prepare", *arguments, "--out", tmp_path / "store")
    assert done.exit_code == 0, done.output
    return open_store(tmp_path / "store")


def idx(array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def test_idx_files(tmp_path):
    images = RNG.integers(0, 256, (40, 12, 12)).astype(np.uint8)
    (tmp_path / "images.gz").write_bytes(idx(images))
    (tmp_path / "labels.gz").write_bytes(idx(LABELS))
    how = ["--pad-to", 16, "--codec", "pixel-unshuffle-2", "--class-names", "a, b,c,d", "--batch-size", 7]
    store = prepared(tmp_path, "idx", tmp_path / "images.gz", tmp_path / "labels.gz", *how)
    assert store.header.shape == (4, 8, 8)
    assert store.header.class_names == ("a", "b", "c", "d")
    back = store.codec.decode(np.asarray(store.rows))
    assert np.array_equal(back[:, 0, 2:14, 2:14], images)
    assert back.sum() == images.sum()
    assert np.array_equal(store.labels, LABELS)
    told = nas("data", "info", tmp_path / "store", "--verify")
    assert "samples   40\nlatents   4×8×8, pixels as uint8\n" in told.output
    assert "the checksum fits" in told.output
    with (tmp_path / "store" / "latents.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01")
    assert "the data do not fit their checksum" in nas("data", "info", tmp_path / "store", "--verify").output


@pytest.mark.parametrize(
    ("images", "shape"),
    [((40, 8, 8, 3), (3, 8, 8)), ((40, 1, 8, 8), (1, 8, 8)), ((40, 8, 8), (1, 8, 8)), ((40, 8, 8, 1), (1, 8, 8))],
)
def test_arrays_of_images(tmp_path, images, shape):
    values = RNG.integers(0, 256, images).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=values, labels=LABELS)
    store = prepared(tmp_path, "arrays", tmp_path / "set.npz")
    assert store.header.shape == shape
    last = values if values.ndim == 3 else (values[..., -1] if values.shape[-1] in (1, 3) else values[:, -1])
    assert np.array_equal(store.rows[:, -1], last)
    assert store.header.class_names == ("0", "1", "2", "3")


def test_arrays_of_latents(tmp_path):
    values = RNG.normal(size=(40, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "latents.npy", values)
    np.save(tmp_path / "labels.npy", LABELS)
    how = ["--labels", tmp_path / "labels.npy", "--codec", "vae:some/vae", "--scale", 0.13025, "--shift", 0.5]
    store = prepared(tmp_path, "arrays", tmp_path / "latents.npy", *how)
    assert (store.header.scale, store.header.shift) == (0.13025, 0.5)
    assert store.header.content == "latents"
    assert store.header.codec == "vae:some/vae"
    assert np.array_equal(store.rows, values)


def feature_files(folder, count=40, shape=(1, 4, 8, 8)):
    values = RNG.normal(size=(count, *shape)).astype(np.float32)
    for name in ("imagenet256_features", "imagenet256_labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        np.save(folder / "imagenet256_features" / f"{index}.npy", values[index])
        np.save(folder / "imagenet256_labels" / f"{index}.npy", np.array([LABELS[index]]))
    return values


def test_feature_files(tmp_path):
    values = feature_files(tmp_path / "files")
    store = prepared(tmp_path, "features", tmp_path / "files", "--batch-size", 16)
    # In the order of the numbers, not of the names: 2 before 10.
    assert np.array_equal(store.rows, values[:, 0])
    assert np.array_equal(store.labels, LABELS)
    assert store.header.codec == "vae:stabilityai/sd-vae-ft-ema"


def test_faulty_feature_files_are_named_with_their_index_and_written_samples_are_kept(tmp_path):
    values = feature_files(tmp_path / "files")
    features, labels = tmp_path / "files" / "imagenet256_features", tmp_path / "files" / "imagenet256_labels"
    good = (features / "27.npy").read_bytes()

    def told(path, content):
        kept = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        done = nas("data", "prepare", "features", tmp_path / "files", "--batch-size", 10, "--out", tmp_path / "store")
        path.write_bytes(kept)
        assert done.exit_code == 2
        return done.output

    assert "imagenet256_features/27.npy (index 27) is truncated" in told(features / "27.npy", good[:-8])
    assert json.loads((tmp_path / "store" / "progress.json").read_text())["done"] == 20
    other = io.BytesIO()
    np.save(other, np.zeros((1, 4, 8, 9), np.float32))
    assert "27.npy (index 27) holds float32 (1, 4, 8, 9), but index 0 holds float32 (4, 8, 8)" in told(
        features / "27.npy", other.getvalue()
    )
    assert "(index 31) is truncated or not an array" in told(labels / "31.npy", b"")
    assert "holds float32 (1, 4, 8, 8), not one whole number" in told(labels / "31.npy", good)
    assert "imagenet256_labels/31.npy (index 31) is missing" in told(labels / "31.npy", None)
    assert "imagenet256_labels has 39; there must be one label per feature file" in told(labels / "39.npy", None)
    # Once the file is mended, the same command resumes.
    store = prepared(tmp_path, "features", tmp_path / "files", "--batch-size", 10)
    assert np.array_equal(store.rows, values[:, 0])


def test_a_preparation_does_not_resume_from_another_source(tmp_path):
    feature_files(tmp_path / "files")
    (tmp_path / "files" / "imagenet256_features" / "30.npy").write_bytes(b"")
    how = ["data", "prepare", "features", tmp_path / "files", "--batch-size", 10, "--out", tmp_path / "store"]
    assert nas(*how).exit_code == 2
    for path in (tmp_path / "files").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    feature_files(tmp_path / "files")
    other = nas(*how)
    assert other.exit_code == 2
    assert "the source is not the one from which" in other.output


def test_features_that_are_not_finite_and_codecs_that_are_none(tmp_path):
    feature_files(tmp_path / "files")
    how = ["data", "prepare", "features", tmp_path / "files", "--out", tmp_path / "store"]
    assert "no codec 'vea:vae'" in nas(*how, "--codec", "vea:vae").output
    assert not (tmp_path / "store").exists()
    np.save(tmp_path / "files" / "imagenet256_features" / "33.npy", np.full((1, 4, 8, 8), np.nan, np.float32))
    assert "sample 33 holds values that are not finite" in nas(*how).output


def test_a_gap_in_the_numbers_is_named(tmp_path):
    feature_files(tmp_path / "files")
    for name in ("imagenet256_features", "imagenet256_labels"):
        (tmp_path / "files" / name / "7.npy").unlink()
    done = nas("data", "prepare", "features", tmp_path / "files", "--out", tmp_path / "store")
    assert "imagenet256_features/7.npy (index 7) is missing; the files must be numbered from 0 without a gap" in done.output
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"pictures": np.zeros(3)}, [], "holds pictures; name the samples images, latents, x or arr_0"),
        ({"x": np.zeros((3, 8, 8, 5), np.uint8)}, [], r"images of shape (3, 8, 8, 5)"),
        ({"x": np.zeros((3, 8, 8))}, [], "neither uint8 images nor float latents"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.zeros(2, int)}, [], "3 samples, but labels of shape (2,)"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--pad-to", 4], "images of 8×8 do not fit into 4×4"),
        ({"x": np.zeros((3, 9, 9), np.uint8)}, ["--codec", "pixel-unshuffle-2"], "height and width divisible by 2, not 9×9"),
        ({"x": np.zeros((0, 9, 9), np.uint8)}, [], "holds no samples"),
        ({"x": np.full((3, 1, 2, 2), np.nan, np.float32)}, [], "sample 0 holds values that are not finite"),
        ({"x": np.array([{}], dtype=object)}, [], "x cannot be read (Object arrays"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--codec", "vae:some/vae"], "would have to encode; use `nas data prepare images`"),
        ({"x": np.full((3, 4, 8, 8), 1.5, np.float32)}, [], "floats beyond ±1, which no pixels have; name the VAE"),
        ({"x": np.zeros((3, 4, 8, 8), np.float32)}, ["--pad-to", 16], "latents, which are not padded"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0.5, 1, 2])}, [], "labels are float64, not whole numbers"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--codec", "pixel-unshufle-2"], "did you mean 'pixel-unshuffle-2'"),
    ],
)
def test_arrays_that_fit_nothing(tmp_path, content, arguments, message):
    np.savez(tmp_path / "set.npz", **content, allow_pickle=True)
    done = nas("data", "prepare", "arrays", tmp_path / "set.npz", *arguments, "--out", tmp_path / "store")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "store").exists()


def test_missing_files_are_reported(tmp_path):
    assert "none.npz: no such file" in nas("data", "prepare", "arrays", tmp_path / "none.npz", "--out", tmp_path / "x").output
    (tmp_path / "text.npz").write_text("text")
    assert (
        "cannot be read as NumPy arrays" in nas("data", "prepare", "arrays", tmp_path / "text.npz", "--out", tmp_path / "x").output
    )
    assert "0 folders named …_features" in nas("data", "prepare", "features", tmp_path, "--out", tmp_path / "x").output
    assert "is no data store" in nas("data", "info", tmp_path).output
