"""Stores from image folders and from the datasets library, through a small VAE made on the spot, and training on them."""

import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from nas.cli.app import main
from nas.data.feed import Feed
from nas.data.store import Split, open_store

diffusers = pytest.importorskip("diffusers")


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    small = {"block_out_channels": (8, 8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 32}
    diffusers.AutoencoderKL(**blocks, **small).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("ant", 12), ("bee", 8)):
        (root / name).mkdir()
        for i in range(count):
            picture = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
            Image.fromarray(picture).resize((44, 33)).save(root / name / f"{i:03d}.png")
    return root


def prepared(out, *arguments):
    done = nas("data", "prepare", *arguments, "--out", out)
    assert done.exit_code == 0, done.output
    return open_store(out)


def test_an_image_folder_becomes_moments_with_mirror_images(tmp_path, vae, folder):
    store = prepared(tmp_path / "s", "images", folder, "--size", 32, "--codec", f"vae:{vae}", "--mirrored", "--batch-size", 3)
    assert store.header.content == "moments"
    assert store.header.shape == (4, 8, 8)
    assert store.header.scale == 0.18215
    assert store.header.class_names == ("ant", "bee")
    assert store.labels.tolist() == [0] * 12 + [1] * 8
    assert store.rows.shape == (40, 8, 8, 8)
    # Row 2i is image i, row 2i + 1 its mirror image, both as the VAE itself gives them.
    image = Image.open(folder / "ant" / "005.png").convert("RGB")
    cropped = np.asarray(image.resize((43, 32), Image.Resampling.BICUBIC))[:, 5:37]
    pixels = torch.from_numpy(cropped.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    network = diffusers.AutoencoderKL.from_pretrained(vae)
    for row, view in ((10, pixels), (11, pixels.flip(-1))):
        with torch.no_grad():
            found = network.encode(view).latent_dist
        np.testing.assert_allclose(store.rows[row], torch.cat([found.mean, found.logvar], dim=1)[0], rtol=1e-3, atol=1e-4)
    feed = Feed(Split(store, np.arange(20)), torch.device("cpu"), mirrored=True)
    plain, turned = (feed.latents(torch.tensor([5]), torch.tensor([flag])) for flag in (False, True))
    assert not torch.allclose(plain.flip(-1), turned, atol=1e-3)


def test_a_shorter_way_gives_the_same_store(tmp_path, vae, folder):
    how = ["images", folder, "--size", 32, "--codec", f"vae:{vae}", "--dtype", "float16"]
    first, second = prepared(tmp_path / "a", *how, "--batch-size", 20), prepared(tmp_path / "b", *how, "--batch-size", 20)
    assert first.header.checksum == second.header.checksum
    assert first.rows.dtype == np.float16


def test_an_image_folder_through_a_pixel_codec(tmp_path, folder):
    store = prepared(tmp_path / "s", "images", folder, "--size", 16, "--codec", "pixel-unshuffle-2")
    assert store.header.content == "pixels"
    assert store.header.shape == (12, 8, 8)


def test_the_datasets_library(tmp_path, folder):
    datasets = pytest.importorskip("datasets")
    local = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    local.save_to_disk(tmp_path / "saved")
    how = ["--size", 16, "--codec", "pixel-unshuffle-2"]
    store = prepared(tmp_path / "a", "dataset", tmp_path / "saved", *how)
    same = prepared(tmp_path / "b", "images", folder, *how)
    assert store.header.class_names == same.header.class_names
    assert np.array_equal(store.labels, same.labels)
    assert np.array_equal(store.rows, same.rows)


@pytest.fixture
def ants(tmp_path):
    """Ten images of one colour each, whose files are of one size, in two classes."""
    for i in range(10):
        path = tmp_path / "images" / ("ant" if i < 5 else "bee") / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return tmp_path / "images"


HOW = ["--size", 8, "--codec", "pixel-unshuffle-1", "--batch-size", 3]


def greys(store):
    return store.rows[:, 0, 0, 0].tolist()


def test_what_is_written_stays_valid_when_damaged_files_are_removed_or_restored(tmp_path, ants):
    good = (ants / "bee" / "7.bmp").read_bytes()
    for name in ("bee/7.bmp", "bee/9.bmp"):
        (ants / name).write_bytes(b"damaged")
    first = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s")
    assert first.exit_code == 2
    assert "2 of 10 images cannot be read: bee/7.bmp (not an image" in first.output
    assert "bee/9.bmp (" in first.output
    assert json.loads((tmp_path / "s" / "progress.json").read_text())["done"] == 6
    # One is restored, with another size, and one removed; more come, behind what is written.
    (ants / "bee" / "7.bmp").write_bytes(good + b"more")
    (ants / "bee" / "9.bmp").unlink()
    Image.new("RGB", (8, 8), (77, 77, 77)).save(ants / "bee" / "77.png")
    store = prepared(tmp_path / "s", "images", ants, *HOW)
    assert greys(store) == [0, 1, 2, 3, 4, 5, 6, 7, 77, 8]
    assert store.header.checksum == prepared(tmp_path / "other", "images", ants, *HOW).header.checksum


def test_what_is_written_is_not_valid_once_its_files_are_others(tmp_path, ants):
    (ants / "bee" / "9.bmp").write_bytes(b"damaged")
    assert nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s").exit_code == 2
    (ants / "bee" / "9.bmp").unlink()
    # The fourth of nine that are written: not among those at the ends that are read again.
    (ants / "ant" / "3.bmp").rename(ants / "ant" / "3a.bmp")
    again = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s")
    assert again.exit_code == 2
    assert "its first 9 samples are others; put them back, or remove the folder" in again.output
    (ants / "ant" / "3a.bmp").rename(ants / "ant" / "3.bmp")
    assert greys(prepared(tmp_path / "s", "images", ants, *HOW)) == list(range(9))


def test_damaged_images_are_left_out_and_recorded(tmp_path, ants):
    for name in ("ant/1.bmp", "bee/8.bmp", "bee/9.bmp"):
        (ants / name).write_bytes(b"damaged")
    done = nas("data", "prepare", "images", ants, *HOW, "--skip-damaged", "--out", tmp_path / "s")
    assert done.exit_code == 0
    assert "left out  3: ant/1.bmp, bee/8.bmp, bee/9.bmp" in done.output
    store = open_store(tmp_path / "s")
    assert greys(store) == [0, 2, 3, 4, 5, 6, 7]
    assert store.header.class_counts == (4, 3)
    assert store.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert store.header.left_out == ("ant/1.bmp", "bee/8.bmp", "bee/9.bmp")
    assert "the checksum fits" in nas("data", "info", tmp_path / "s", "--verify").output


@pytest.mark.parametrize("batch", range(1, 12))
def test_leaving_out_does_not_depend_on_batches(tmp_path, ants, batch):
    for name in ("ant/1.bmp", "ant/4.bmp", "bee/5.bmp", "bee/9.bmp"):
        (ants / name).write_bytes(b"damaged")
    how = ["--size", 8, "--codec", "pixel-unshuffle-1", "--mirrored", "--batch-size", batch, "--skip-damaged"]
    store = prepared(tmp_path / "s", "images", ants, *how)
    assert greys(store) == [i for i in (0, 2, 3, 6, 7, 8) for _ in range(2)]
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_preparation_that_leaves_images_out_is_resumed(tmp_path, ants, monkeypatch):
    good = (ants / "bee" / "7.bmp").read_bytes()
    (ants / "ant" / "1.bmp").write_bytes(b"damaged")
    (ants / "bee" / "7.bmp").unlink()
    (ants / "bee" / "7.bmp").symlink_to(tmp_path / "nowhere")
    first = nas("data", "prepare", "images", ants, *HOW, "--skip-damaged", "--out", tmp_path / "s")
    assert first.exit_code == 2
    assert "bee/7.bmp (No such file or directory); restore or remove them; --skip-damaged leaves out damaged" in first.output
    (ants / "bee" / "7.bmp").unlink()
    (ants / "bee" / "7.bmp").write_bytes(good)
    refused = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s")
    assert "leaves out 1 damaged images, ant/1.bmp being the first; repeat the command with --skip-damaged" in refused.output
    store = prepared(tmp_path / "s", "images", ants, *HOW, "--skip-damaged")
    assert greys(store) == [0, *range(2, 10)]
    assert store.header.left_out == ("ant/1.bmp",)


def test_an_earlier_version_began_the_store(tmp_path, ants):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "progress.json").write_text('{"plan": {"source": "x"}, "done": 3}')
    done = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s")
    assert "was begun by an earlier version, which prepared images in another way; remove the folder" in done.output


def test_a_store_below_the_images_is_no_class(tmp_path, ants):
    (ants / "bee" / "9.bmp").write_bytes(b"damaged")
    assert nas("data", "prepare", "images", ants, *HOW, "--out", ants / "store").exit_code == 2
    (ants / "bee" / "9.bmp").unlink()
    store = prepared(ants / "store", "images", ants, *HOW)
    assert store.header.class_names == ("ant", "bee")
    assert prepared(tmp_path / "other", "images", ants, *HOW).header.checksum == store.header.checksum


def test_classes_and_files_whose_names_are_no_utf8(tmp_path, ants):
    odd = os.fsdecode(b"caf\xe9")
    try:
        (ants / "bee").rename(ants / odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (ants / odd / "6.bmp").rename(ants / odd / os.fsdecode(b"\xff.bmp"))
    (ants / odd / os.fsdecode(b"\xff.bmp")).write_bytes(b"damaged")
    told = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "t")
    assert r"1 of 10 images cannot be read: caf\xe9/\xff.bmp (" in told.output
    store = prepared(tmp_path / odd, "images", ants, *HOW, "--skip-damaged")
    assert store.header.class_names == ("ant", r"caf\xe9")
    assert store.header.left_out == (r"caf\xe9/\xff.bmp",)
    assert "the checksum fits" in nas("data", "info", tmp_path / odd, "--verify").output


def test_files_that_are_passed_over_are_told(tmp_path, ants):
    (ants / "bee" / "1.gif").write_bytes(b"")
    done = nas("data", "prepare", "images", ants, *HOW, "--out", tmp_path / "s")
    assert "passed over: 1 .gif\n" in done.output


@pytest.fixture
def pictures(tmp_path, ants):
    """A saved data set of twelve samples: a damaged one, one without an image, a lying one and one of 16 bits among them."""
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8) * 30, 8).reshape(8, 8)).save(ants / "bee" / "5.png", exif=exif)
    Image.new("I;16", (8, 8), 257 * 6).save(ants / "bee" / "6.png")
    raw = [(ants / name).read_bytes() for name in ("ant/0.bmp", "ant/1.bmp", "bee/5.png", "bee/6.png")]
    samples = [{"bytes": content, "path": None} for content in (*raw, b"damaged", *raw)] + [None, {"bytes": raw[0], "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": samples, "label": [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).with_format("torch").save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_damaged_samples_of_a_data_set(tmp_path, pictures, ants):
    told = nas("data", "prepare", "dataset", pictures, *HOW, "--out", tmp_path / "s")
    assert told.exit_code == 2
    assert "2 of 11 images cannot be read: sample 4 (not an image" in told.output
    assert "sample 9 (there is no image)" in told.output
    store = prepared(tmp_path / "s", "dataset", pictures, *HOW, "--skip-damaged")
    assert store.header.left_out == ("sample 4", "sample 9")
    assert store.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert store.header.class_counts == (5, 4)
    assert store.rows[3, 0, 0, 0] == 6
    # As `images` stores them.
    folder = prepared(tmp_path / "f", "images", ants, *HOW)
    names = ["ant/0.bmp", "ant/1.bmp", "ant/2.bmp", "ant/3.bmp", "ant/4.bmp", "bee/5.bmp", "bee/5.png", "bee/6.bmp", "bee/6.png"]
    for row, name in enumerate(("ant/0.bmp", "ant/1.bmp", "bee/5.png", "bee/6.png")):
        assert np.array_equal(store.rows[row], folder.rows[names.index(name)])


def test_a_mode_that_a_data_set_declares_holds(tmp_path, ants):
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(ants / "red.bmp")
    features = datasets.Features({"image": datasets.Image(mode="L")})
    datasets.Dataset.from_dict({"image": [str(ants / "red.bmp")]}, features=features).save_to_disk(tmp_path / "saved")
    assert prepared(tmp_path / "s", "dataset", tmp_path / "saved", *HOW).rows[0, :, 0, 0].tolist() == [76, 76, 76]


def test_mistakes_are_reported(tmp_path, folder, vae):
    out = ["--out", tmp_path / "s"]
    assert "no codec 'pixel-unshufle-2'" in nas("data", "prepare", "images", folder, "--codec", "pixel-unshufle-2", *out).output
    missing = nas("data", "prepare", "images", folder, "--size", 32, "--codec", f"vae:{tmp_path / 'none'}", *out)
    assert missing.exit_code == 2
    assert "none" in missing.output
    odd = nas("data", "prepare", "images", folder, "--size", 30, "--codec", f"vae:{vae}", *out)
    assert odd.exit_code == 2
    assert "30" in odd.output
    absent = nas("data", "prepare", "dataset", tmp_path / "nothing", *out)
    assert absent.exit_code == 2
    assert "cannot be loaded" in absent.output
    assert not (tmp_path / "s").exists()
