import gzip

import numpy as np
import pytest

from nas.data.codecs import CODECS, codec_named
from nas.data.sources import load_data, read_idx
from space import NasError


def test_embedded_data_are_padded_scaled_and_split_evenly():
    data = load_data("fashion-mnist-10k", "pixel-unshuffle-2")
    assert data.train.latents.shape == (9000, 4, 16, 16)
    assert data.validation.latents.shape == (1000, 4, 16, 16)
    assert np.bincount(data.train.labels).tolist() == [900] * 10
    assert np.bincount(data.validation.labels).tolist() == [100] * 10
    assert data.train.latents.min() == -1
    assert data.train.latents.max() == 1
    images = data.codec.decode(data.train.latents[:50])
    assert images.shape == (50, 1, 32, 32)
    border = np.ones((32, 32), dtype=bool)
    border[2:-2, 2:-2] = False
    assert (images[:, 0, border] == -1).all()
    assert len(data.class_names) == 10


def test_the_split_is_fixed_and_shares_no_image():
    first, second = (load_data("fashion-mnist-10k", "pixel-unshuffle-2") for _ in range(2))
    assert np.array_equal(first.validation.latents, second.validation.latents)
    held_out = {image.tobytes() for image in first.validation.latents}
    assert len(held_out) == 1000
    # The data set holds a few identical images; a split that leaked would share hundreds.
    assert sum(image.tobytes() in held_out for image in first.train.latents) < 5


@pytest.mark.parametrize("name", CODECS)
def test_codecs_are_lossless(name):
    codec = codec_named(name)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    latents = codec.encode(images)
    assert latents.shape[1:] == codec.latent_shape((1, 32, 32))
    assert np.array_equal(codec.decode(latents), images)


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
    with pytest.raises(NasError, match=message):
        load_data(source, codec)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), r"3 bytes of data where shape \(5,\) needs 5"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01a"), "not an IDX file of unsigned bytes"),
    ],
)
def test_damaged_files_are_named(tmp_path, raw, message):
    path = tmp_path / "images.gz"
    path.write_bytes(raw)
    with pytest.raises(NasError, match=message):
        read_idx(path)
    with pytest.raises(NasError, match=r"missing.gz: cannot be read"):
        read_idx(tmp_path / "missing.gz")
