"""Preparing stores of every kind on the command line, and training on them."""

import gzip
import io
import json
import shutil
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


@pytest.mark.parametrize("codec", ["pixel-unshuffle-1", "vae:some/vae"])
@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (40, 8, 8, 3), (40, 4, 8, 8)])
@pytest.mark.parametrize("low", [0, -1])
def test_floats_that_could_be_images_are_a_question(tmp_path, codec, shape, low):
    values = RNG.uniform(low, 1, shape).astype(np.float32)
    np.save(tmp_path / "set.npy", values)
    done = nas("data", "prepare", "arrays", tmp_path / "set.npy", "--codec", codec, "--out", tmp_path / "store")
    assert done.exit_code == 2
    assert f"which could be images or latents of {codec}; say which with --values 0..1, -1..1 (images) or latents" in done.output
    # A name is no answer for values in [0, 1], which images of ToTensor have.
    np.savez(tmp_path / "set.npz", latents=np.abs(values))
    done = nas("data", "prepare", "arrays", tmp_path / "set.npz", "--codec", codec, "--out", tmp_path / "store")
    assert "which could be images or latents" in done.output
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("values", ["0..1", "-1..1"])
def test_images_of_floats_give_the_store_of_their_pixels(tmp_path, dtype, layout, values):
    pixels = RNG.integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    floats = (pixels / 255 if values == "0..1" else pixels / 127.5 - 1).astype(dtype).transpose(layout)
    np.savez(tmp_path / "set.npz", images=floats, labels=LABELS)
    store = prepared(tmp_path, "arrays", tmp_path / "set.npz", "--values", values, "--pad-to", 10)
    assert store.header.content == "pixels"
    assert np.array_equal(store.rows[:, :, 1:9, 1:9], pixels)
    assert np.asarray(store.rows).sum() == pixels.sum()


def test_images_of_floats_that_were_no_bytes_lose_nothing(tmp_path):
    values = RNG.uniform(0, 1, (40, 8, 8)).astype(np.float32)
    np.save(tmp_path / "set.npy", values)
    store = prepared(tmp_path, "arrays", tmp_path / "set.npy", "--values", "0..1", "--pad-to", 10, "--codec", "pixel-unshuffle-2")
    assert (store.header.content, store.header.shape) == ("latents", (4, 5, 5))
    images = store.codec.decode(np.asarray(store.rows))[:, 0]
    np.testing.assert_allclose(images[:, 1:9, 1:9], values * 2 - 1, atol=1e-6)
    assert (images[:, 0] == -1).all()


@pytest.mark.parametrize(
    ("labels", "names", "counts"),
    [
        (np.array([1, 2, 3, 3]), ("1", "2", "3"), (1, 1, 2)),
        (np.array([7, 0, 7, 2]), ("0", "2", "7"), (1, 1, 2)),
        (np.array(["dog", "cat", "dog", "dog"]), ("cat", "dog"), (1, 3)),
        (None, ("0",), (4,)),
    ],
)
def test_no_class_of_arrays_is_without_samples(tmp_path, labels, names, counts):
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8), np.uint8), **({} if labels is None else {"labels": labels}))
    store = prepared(tmp_path, "arrays", tmp_path / "set.npz")
    assert (store.header.class_names, store.header.class_counts) == (names, counts)
    if labels is not None:
        assert [names[label] for label in store.labels] == [str(label) for label in labels]
    listed = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
    each = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else str(counts[0])
    assert f"classes   {len(names)}, {each} samples each: {listed}\n" in nas("data", "info", tmp_path / "store").output


def test_idx_labels_that_begin_at_1_take_as_many_names(tmp_path):
    (tmp_path / "images.gz").write_bytes(idx(RNG.integers(0, 256, (40, 8, 8))))
    (tmp_path / "labels.gz").write_bytes(idx(LABELS + 1))
    files = ["idx", tmp_path / "images.gz", tmp_path / "labels.gz"]
    more = nas("data", "prepare", *files, "--class-names", "none,a,b,c,d", "--out", tmp_path / "store")
    assert "gives 5 names, but the samples are of 4 classes (1, 2, 3, 4); name exactly those, in this order" in more.output
    assert not (tmp_path / "store").exists()
    store = prepared(tmp_path, *files, "--class-names", "a,b,c,d")
    assert store.header.class_names == ("a", "b", "c", "d")
    assert np.array_equal(store.labels, LABELS)


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


def test_feature_files_without_gaps_in_their_classes_and_of_their_codec(tmp_path):
    values = feature_files(tmp_path / "files")
    for index in range(40):
        np.save(tmp_path / "files" / "imagenet256_labels" / f"{index}.npy", np.array([LABELS[index] * 2 + 1]))
    how = ["data", "prepare", "features", tmp_path / "files", "--out", tmp_path / "store"]
    assert "floats beyond ±1" in nas(*how, "--codec", "pixel-unshuffle-2").output
    shutil.rmtree(tmp_path / "store")
    assert "has latents of 1 or 3 channels, not 4" in nas(*how, "--codec", "pixel-unshuffle-1").output
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"latent_channels": 16}))
    assert "has latents of 16 channels, not 4" in nas(*how, "--codec", f"vae:{tmp_path / 'vae'}").output
    assert not (tmp_path / "store").exists()
    store = prepared(tmp_path, "features", tmp_path / "files", "--batch-size", 16)
    assert store.header.class_names == ("1", "3", "5", "7")
    assert store.header.class_counts == (10, 10, 10, 10)
    assert np.array_equal(store.labels, LABELS)
    assert np.array_equal(store.rows, values[:, 0])


def test_classes_that_are_numbered_anew_are_no_resumption(tmp_path):
    feature_files(tmp_path / "files")
    features, labels = tmp_path / "files" / "imagenet256_features", tmp_path / "files" / "imagenet256_labels"
    for index in range(40):
        # Sample 15 is not among those at the ends of what is written, which are read again.
        np.save(labels / f"{index}.npy", np.array([5 if index == 15 else 1]))
    whole = (features / "35.npy").read_bytes()
    (features / "35.npy").write_bytes(b"")
    how = ["features", tmp_path / "files", "--batch-size", 8]
    assert nas("data", "prepare", *how, "--out", tmp_path / "store").exit_code == 2
    (features / "35.npy").write_bytes(whole)
    (features / "40.npy").write_bytes(whole)
    np.save(labels / "40.npy", np.array([3]))
    done = nas("data", "prepare", *how, "--out", tmp_path / "store")
    assert "sample 15 has another label, or classes came or went and are numbered anew" in done.output
    np.save(labels / "40.npy", np.array([7]))
    store = prepared(tmp_path, *how)
    assert (store.header.class_names, store.header.class_counts) == (("1", "5", "7"), (39, 1, 1))


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
        ({"x": np.zeros((3, 4, 8, 8), np.float32)}, ["--pad-to", 16, "--values", "latents"], "latents, which are not padded"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0.5, 1, 2])}, [], "labels are float64, not whole numbers"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--codec", "pixel-unshufle-2"], "did you mean 'pixel-unshuffle-2'"),
        ({"x": np.array(3, np.uint8)}, [], "holds no samples"),
        ({"x": np.zeros((2, 3, 0, 8), np.float32)}, [], "holds no samples"),
        ({"x": np.zeros((2, 3, 8, 3), np.uint8)}, [], "could have their channels first or last"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--values", "0..1"], "holds uint8, which are images of 0 to 255; leave --values"),
        ({"x": np.full((3, 8, 8), 1.5)}, ["--values", "-1..1"], "holds values from 1.5 to 1.5, which are not in -1..1"),
        ({"x": np.full((3, 8, 8), -0.5)}, ["--values", "0..1"], "holds values from -0.5 to -0.5, which are not in 0..1"),
        ({"x": np.full((3, 8, 8), np.nan)}, ["--values", "0..1"], "sample 0 holds values that are not finite"),
        ({"x": np.zeros((3, 8, 8, 3))}, ["--values", "0..1", "--codec", "vae:some/vae"], "use `nas data prepare images`"),
        (
            {"x": np.zeros((3, 3, 8, 8), np.float32)},
            ["--values", "latents", "--codec", "pixel-unshuffle-2"],
            "codec pixel-unshuffle-2 has latents of 4 or 12 channels, not 3; name the codec that made them",
        ),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0, -1, 2])}, [], "sample 1 has -1; label or remove it"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, ["--class-names", "a,b"], "gives 2 names, but the samples are of 1 classes (0)"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, 1])}, ["--class-names", "a,a"], "empty or gives one twice"),
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
