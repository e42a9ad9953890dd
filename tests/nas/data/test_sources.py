import dataclasses
import gzip

import numpy as np
import pytest
import torch

from nas.data.codecs import CODECS, codec_named
from nas.data.feed import Feed
from nas.data.idx import read_idx
from nas.data.sources import CLOTHES, EMBEDDED, load_data
from space import ToolkitError


def latents(split):
    return Feed(split, torch.device("cpu")).latents(torch.arange(len(split))).numpy()


def test_embedded_data_are_padded_scaled_and_split_evenly():
    data = load_data("fashion-mnist-10k", "pixel-unshuffle-2")
    train = latents(data.train)
    assert train.shape == (9000, 4, 16, 16)
    assert latents(data.validation).shape == (1000, 4, 16, 16)
    assert np.bincount(data.train.labels).tolist() == [900] * 10
    assert np.bincount(data.validation.labels).tolist() == [100] * 10
    assert train.min() == -1
    assert train.max() == 1
    images = data.store.codec.decode(train[:50])
    assert images.shape == (50, 1, 32, 32)
    border = np.ones((32, 32), dtype=bool)
    border[2:-2, 2:-2] = False
    assert (images[:, 0, border] == -1).all()
    assert len(data.store.header.class_names) == 10


def test_the_split_is_fixed_and_shares_no_image():
    first, second = (load_data("fashion-mnist-10k", "pixel-unshuffle-2") for _ in range(2))
    assert np.array_equal(first.validation.samples, second.validation.samples)
    assert not set(first.validation.samples) & set(first.train.samples)
    assert len(set(first.validation.samples) | set(first.train.samples)) == 10_000
    # Of every class, each tenth in the source's order.
    shoes = np.flatnonzero(first.store.labels == 9)
    assert set(shoes[9::10]) == {i for i in first.validation.samples if first.store.labels[i] == 9}
    assert len(load_data("fashion-mnist-10k", "pixel-unshuffle-2", held_out=0.02).validation) == 200


@pytest.mark.parametrize("name", CODECS)
def test_codecs_are_lossless(name):
    codec = codec_named(name)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    latents = codec.encode(images)
    assert latents.shape[1:] == codec.latent_shape((1, 32, 32))
    assert np.array_equal(codec.decode(latents), images)
    # Mirrored images have the latents flipped along their width, with the channels in another order.
    order = codec.mirror_channels(latents.shape[1])
    assert np.array_equal(codec.encode(images[..., ::-1]), latents[:, order][..., ::-1])


def test_codec_channels_are_the_phases_of_the_image():
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert codec_named("pixel-unshuffle-2").encode(image)[0, 1].tolist() == [[1, 3], [9, 11]]


@pytest.mark.parametrize(
    ("source", "codec", "message"),
    [
        ("fashion-mnist", "pixel-unshuffle-2", "no data source 'fashion-mnist'; did you mean 'fashion-mnist-10k'"),
        ("fashion-mnist-10k", "pixel-unshufle-2", "no codec 'pixel-unshufle-2'; did you mean 'pixel-unshuffle-2'"),
    ],
)
def test_unknown_names(source, codec, message):
    with pytest.raises(ToolkitError, match=message):
        load_data(source, codec)


@pytest.mark.parametrize("declared", [{"image_shape": (3, 32, 32)}, {"class_names": CLOTHES[:9]}])
def test_what_is_declared_of_an_embedded_source_is_checked_against_what_it_holds(declared, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "fashion-mnist-10k", dataclasses.replace(EMBEDDED["fashion-mnist-10k"], **declared))
    with pytest.raises(ToolkitError, match=r"holds images \(1, 32, 32\) with labels .* but is declared .* classes; correct"):
        load_data("fashion-mnist-10k", "pixel-unshuffle-2")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x1f\x8bnot gzip", "cannot be read"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde", mtime=0)[:-9], "cannot be read"),
        (b"noise", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "ends within its header of 16 bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc", mtime=0), r"3 bytes of data where shape \(5,\) needs 5"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01a", mtime=0), "not an IDX file of unsigned bytes"),
    ],
)
def test_damaged_files_are_named(tmp_path, raw, message):
    path = tmp_path / "images.gz"
    path.write_bytes(raw)
    with pytest.raises(ToolkitError, match=message):
        read_idx(path)
    with pytest.raises(ToolkitError, match=r"missing.gz: cannot be read"):
        read_idx(tmp_path / "missing.gz")
