import errno
import io
import os
import shutil
import zipfile

import numpy as np
import pytest

from nas.evaluation.adm import read_reference_npz, write_samples_npz
from nas.evaluation.metrics import fid
from nas.evaluation.statistics import FeatureStatistics
from space.errors import DataError, RunError


def images(seed, count, size=8, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def moments(seed, dimensions):
    features = np.random.default_rng(seed).standard_normal((50, dimensions))
    return features.mean(axis=0), np.cov(features.T)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


# Samples.


@pytest.mark.parametrize("cuts", [(), (1,), (3, 3, 9)])
def test_samples_come_back_whatever_the_batches(tmp_path, cuts):
    samples, path = images(0, 10), tmp_path / "samples.npz"
    assert write_samples_npz(iter(np.split(samples, cuts)), path) == 10
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        found = archive["arr_0"]
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, samples)
    np.testing.assert_array_equal(read_reference_npz(path).arr_0, samples)
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.npz"]


def test_the_entry_is_the_one_that_numpy_writes(tmp_path):
    """The suite reads the entry as a stream by its header, so the bytes are those of np.savez, uncompressed."""
    samples = images(0, 5)
    write_samples_npz([samples], tmp_path / "ours.npz")
    np.savez(tmp_path / "theirs.npz", samples)
    with zipfile.ZipFile(tmp_path / "ours.npz") as ours, zipfile.ZipFile(tmp_path / "theirs.npz") as theirs:
        assert ours.testzip() is None
        assert ours.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        assert ours.read("arr_0.npy") == theirs.read("arr_0.npy")


def test_grey_images_get_three_equal_channels(tmp_path):
    grey, path = images(0, 6, channels=1), tmp_path / "samples.npz"
    write_samples_npz([grey[:4], grey[4:]], path)
    found = np.load(path)["arr_0"]
    assert found.shape == (6, 8, 8, 3)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], grey[..., 0])


def test_samples_in_another_memory_order(tmp_path):
    """A permuted (N, C, H, W) tensor has the right axes, but its bytes are in another order."""
    samples = images(0, 4)
    permuted = np.ascontiguousarray(samples.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert not permuted.flags.c_contiguous
    write_samples_npz([permuted], tmp_path / "samples.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], samples)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([images(0, 2), images(0, 2).astype(np.float32)], r"batch 1 .* float32 of shape \(2, 8, 8, 3\); it must be uint8"),
        ([images(0, 2)[0]], r"batch 0 .* shape \(8, 8, 3\)"),
        ([images(0, 2).transpose(0, 3, 1, 2)], r"batch 0 .* shape \(2, 3, 8, 8\); .*\(n, height, width, 3\)"),
        ([images(0, 2), images(0, 2, size=4)], "batch 1 .* 4×4 pixels and those before 8×8"),
        ([], "no samples"),
        ([images(0, 0)], "no samples"),
    ],
)
def test_samples_that_cannot_be_written_leave_the_old_file(tmp_path, batches, message):
    path = tmp_path / "samples.npz"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=message):
        write_samples_npz(batches, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.npz"]


def test_a_failing_source_leaves_nothing(tmp_path):
    def batches():
        yield images(0, 2)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_samples_npz(batches(), tmp_path / "samples.npz")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(source, target, length):
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "samples.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(RunError, match="samples.npz cannot be written: No space left on device"):
        write_samples_npz([images(0, 2)], path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.npz"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="nowhere is no folder"):
        write_samples_npz([images(0, 2)], tmp_path / "nowhere" / "samples.npz")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="file is no folder"):
        write_samples_npz([images(0, 2)], tmp_path / "file" / "samples.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(RunError, match="folder.npz cannot be written: Is a directory"):
        write_samples_npz([images(0, 2)], tmp_path / "folder.npz")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.npz"]


# References.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_whole_reference(tmp_path, dtype):
    (mu, sigma), (mu_s, sigma_s), samples = moments(0, 5), moments(1, 7), images(0, 3)
    arrays = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    path = save(tmp_path / "reference.npz", arr_0=samples, labels=np.array([{}], dtype=object), **arrays)
    found = read_reference_npz(path)
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), array.astype(np.float64))
        assert getattr(found, key).dtype == np.float64
    np.testing.assert_array_equal(found.arr_0, samples)
    assert found.pooled.mean.shape == (5,)
    assert found.spatial.covariance.shape == (7, 7)
    assert found.pooled.count is None


def test_absent_parts_of_a_reference_are_none(tmp_path):
    mu, sigma = moments(0, 5)
    found = read_reference_npz(save(tmp_path / "statistics.npz", mu=mu, sigma=sigma))
    assert found.pooled is not None
    assert (found.mu_s, found.sigma_s, found.spatial, found.arr_0) == (None,) * 4
    found = read_reference_npz(save(tmp_path / "samples.npz", arr_0=images(0, 3)))
    assert (found.mu, found.pooled, found.spatial) == (None,) * 3


def test_images_can_stay_unread(tmp_path):
    mu, sigma = moments(0, 5)
    path = save(tmp_path / "reference.npz", mu=mu, sigma=sigma, arr_0=images(0, 3))
    assert read_reference_npz(path, images=False).arr_0 is None
    samples = save(tmp_path / "samples.npz", arr_0=images(0, 3))
    assert read_reference_npz(samples, images=False).arr_0 is None


def test_fid_against_a_reference_file(tmp_path):
    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((200, 6)), rng.standard_normal((100, 6)) + 1
    statistics = FeatureStatistics()
    statistics.update(real)
    path = save(tmp_path / "reference.npz", mu=statistics.mean, sigma=statistics.covariance)
    assert fid(read_reference_npz(path).pooled, made) == pytest.approx(fid(real, made), rel=1e-14)


MU, SIGMA = moments(0, 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU}, "holds mu but not sigma"),
        ({"sigma": SIGMA}, "holds sigma but not mu"),
        ({"mu": MU, "sigma": SIGMA, "sigma_s": SIGMA}, "holds sigma_s but not mu_s"),
        ({"features": MU}, "neither arr_0 nor mu and sigma"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu of .* has shape \(1, 4\); it must be \(D,\)"),
        ({"mu": MU[:0], "sigma": SIGMA}, r"mu of .* has shape \(0,\)"),
        ({"mu": MU, "sigma": SIGMA[:3]}, r"sigma of .* has shape \(3, 4\); beside mu it must be \(4, 4\)"),
        ({"mu_s": MU, "sigma_s": np.eye(5)}, r"sigma_s of .* has shape \(5, 5\); beside mu_s it must be \(4, 4\)"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "mu of .* int64; it must be floating-point"),
        ({"mu": MU, "sigma": SIGMA.astype(complex)}, "sigma of .* complex128"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "mu and sigma of .*: .*NaN or infinity"),
        ({"mu": MU, "sigma": np.triu(SIGMA)}, "mu and sigma of .*: .*not symmetric"),
        ({"mu": MU.astype(object), "sigma": SIGMA}, r"mu of .* cannot be read as an array \(D,\) \(Object arrays"),
        ({"arr_0": images(0, 3).astype(np.float32)}, r"arr_0 of .* float32 .* uint8 of shape \(N, height, width, 3\)"),
        ({"arr_0": images(0, 3, channels=1)}, r"arr_0 of .* shape \(3, 8, 8, 1\)"),
        ({"arr_0": images(0, 3)[0]}, r"arr_0 of .* shape \(8, 8, 3\)"),
        ({"arr_0": images(0, 0)}, r"arr_0 of .* shape \(0, 8, 8, 3\)"),
        ({"arr_0": np.array([images(0, 1)], dtype=object)}, r"arr_0 of .* cannot be read as an array \(N, height, width, 3\)"),
    ],
)
def test_references_that_cannot_be_used(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        read_reference_npz(save(tmp_path / "reference.npz", **arrays))
    assert "reference.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archives(tmp_path):
    with pytest.raises(DataError, match="missing.npz is not there"):
        read_reference_npz(tmp_path / "missing.npz")
    with pytest.raises(DataError, match="is not there"):
        read_reference_npz(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="text.npz is no .npz file"):
        read_reference_npz(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", MU)
    with pytest.raises(DataError, match="single.npy is no .npz file"):
        read_reference_npz(tmp_path / "single.npy")
    whole = save(tmp_path / "whole.npz", arr_0=images(0, 3)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-200])
    with pytest.raises(DataError, match="cut.npz is no .npz file, or is cut short"):
        read_reference_npz(tmp_path / "cut.npz")
    (tmp_path / "prefixed.npz").write_bytes(b"junk" + whole)
    with pytest.raises(DataError, match="prefixed.npz is a damaged .npz file"):
        read_reference_npz(tmp_path / "prefixed.npz")


def test_a_flipped_bit_is_found(tmp_path):
    path = save(tmp_path / "reference.npz", arr_0=images(0, 3))
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"arr_0 of .*reference.npz cannot be read .*Bad CRC"):
        read_reference_npz(path)


def test_entries_that_are_no_arrays(tmp_path):
    def archive_of(entry, content):
        with zipfile.ZipFile(tmp_path / "reference.npz", "w") as archive:
            archive.writestr(entry, content)
        return tmp_path / "reference.npz"

    with pytest.raises(DataError, match="arr_0 of .* is no NumPy array"):
        read_reference_npz(archive_of("arr_0.npy", b"plain text"))
    long = b"\x93NUMPY\x01\x00" + (20000).to_bytes(2, "little") + b" " * 20000
    with pytest.raises(DataError, match="arr_0 of .* cannot be read as an array") as caught:
        read_reference_npz(archive_of("arr_0.npy", long))
    assert "\n" not in str(caught.value)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 256, 256, 3)})
    with pytest.raises(DataError, match="arr_0 of .* cannot be read as an array"):
        read_reference_npz(archive_of("arr_0.npy", header.getvalue() + bytes(100)))
