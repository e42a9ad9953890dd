"""Stores from image folders and from the datasets library, through a small VAE made on the spot, and training on them."""

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
