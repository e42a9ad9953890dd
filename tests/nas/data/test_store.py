import hashlib
import json
import os

import numpy as np
import pytest
import torch

from nas.data.feed import Feed
from nas.data.header import Header
from nas.data.store import Split, Store, checksum, open_store, read_header
from nas.data.writer import StoreWriter
from space import ToolkitError

CPU = torch.device("cpu")


def header(**changes):
    facts = {"samples": 6, "shape": (2, 4, 4), "content": "latents", "dtype": "float32", "codec": "pixel-unshuffle-1"}
    return Header.model_validate({**facts, "class_names": ("a", "b"), "source": "here", **changes})


def rows(plan, seed=0):
    values = np.random.default_rng(seed).normal(size=plan.rows_shape)
    return (values * 100).astype(plan.dtype) if plan.dtype == "uint8" else values.astype(plan.dtype)


def written(folder, plan, values=None, labels=None, batches=(4, 2)):
    writer, first = StoreWriter(folder, plan), 0
    values = rows(plan) if values is None else values
    labels = np.arange(plan.samples) % 2 if labels is None else labels
    for count in batches:
        writer.write(values[first * plan.views : (first + count) * plan.views], labels[first : first + count])
        first += count
    return writer.finish(plan.class_names)


def test_what_is_written_is_read(tmp_path):
    store = written(tmp_path / "store", header())
    again = open_store(tmp_path / "store")
    assert again.header == store.header
    assert len(again.header.checksum) == 64
    assert np.array_equal(again.rows, rows(header()))
    assert again.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert isinstance(again.rows, np.memmap)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["header.json", "labels.npy", "latents.npy"]


def test_stores_of_earlier_versions_keep_their_checksums_and_go_on(tmp_path):
    plan = header(codec="vae:x", scale=0.5)
    store = written(tmp_path / "whole", plan)
    facts = json.loads((tmp_path / "whole" / "header.json").read_text())
    new = {key: facts.pop(key) for key in ("shift", "codec_digest", "left_out", "class_counts")}
    assert new == {"shift": None, "codec_digest": "", "left_out": [], "class_counts": [3, 3]}
    (tmp_path / "whole" / "header.json").write_text(json.dumps(facts))
    assert open_store(tmp_path / "whole").header == store.header
    of_then = hashlib.sha256(json.dumps({key: facts[key] for key in facts if key != "checksum"}, sort_keys=True).encode())
    of_then.update(np.ascontiguousarray(store.rows).data)
    of_then.update(np.ascontiguousarray(store.labels).data)
    assert store.header.checksum == of_then.hexdigest()
    assert written(tmp_path / "shifted", header(codec="vae:x", scale=0.5, shift=0.1)).header.checksum != store.header.checksum
    # A half-written one, whose plan has fewer keys.
    first = StoreWriter(tmp_path / "half", plan)
    first.write(rows(plan)[:4], np.arange(4) % 2)
    progress = json.loads((tmp_path / "half" / "progress.json").read_text())
    progress["plan"] = {key: value for key, value in progress["plan"].items() if key not in new}
    (tmp_path / "half" / "progress.json").write_text(json.dumps(progress))
    assert StoreWriter(tmp_path / "half", plan.model_copy(update={"codec_digest": "abc"})).done == 4


def test_the_checksum_tells_data_and_labels_apart(tmp_path):
    other = np.array([0, 1, 0, 1, 1, 1])
    sums = {
        written(tmp_path / "a", header()).header.checksum,
        written(tmp_path / "b", header(), values=rows(header(), 1)).header.checksum,
        written(tmp_path / "c", header(), labels=other).header.checksum,
    }
    assert len(sums) == 3
    assert written(tmp_path / "d", header(), batches=(1, 5)).header.checksum in sums


def test_an_interrupted_writing_resumes(tmp_path):
    folder, plan = tmp_path / "store", header()
    first = StoreWriter(folder, plan)
    first.write(rows(plan)[:4], np.array([0, 1, 0, 1]))
    # A crash in the middle of the next batch: the files hold samples that the progress file does not count.
    first._rows.append(np.full((1, 2, 4, 4), 7))
    del first
    with pytest.raises(ToolkitError, match=r"only half written; run the same"):
        open_store(folder)
    second = StoreWriter(folder, plan)
    assert second.done == 4
    with pytest.raises(ToolkitError, match="has 4 of 6 samples"):
        second.finish(("a", "b"))
    second.write(rows(plan)[4:], np.array([0, 1]))
    assert second.finish(("a", "b")).header.checksum == written(tmp_path / "whole", plan).header.checksum


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "store", header())
    writer.write(rows(header())[:4], np.array([0, 1, 0, 1]))

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ToolkitError, match="No space left on device; free some space and repeat the command"):
            writer.write(rows(header())[4:], np.array([0, 1]))
    again = StoreWriter(tmp_path / "store", header())
    assert again.done == 4
    again.write(rows(header())[4:], np.array([0, 1]))
    assert again.finish(("a", "b")).header.checksum == written(tmp_path / "other", header()).header.checksum


@pytest.mark.parametrize("name", ["progress.json.node-7.partial", "progress.partial", "header.json.node-7.partial"])
def test_what_a_full_disk_left_of_a_file_does_not_block_the_folder(tmp_path, name):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).write_bytes(b"{")
    written(tmp_path / "store", header())
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["header.json", "labels.npy", "latents.npy"]


def test_the_number_of_samples_may_change_while_a_store_is_written(tmp_path):
    first = StoreWriter(tmp_path / "store", header(samples=6))
    first.write(rows(header())[:5], np.arange(5) % 2)
    del first
    second = StoreWriter(tmp_path / "store", header(samples=1000))
    second.plan = header(samples=5, left_out=("c.png",))
    store = second.finish(("a", "b"))
    assert len(store) == 5
    assert np.array_equal(store.rows, rows(header())[:5])
    assert open_store(tmp_path / "store").header.left_out == ("c.png",)


def test_a_damaged_progress_file_is_one_sentence(tmp_path):
    StoreWriter(tmp_path / "store", header())
    for content in ("", "[]", "{}", '{"plan": 3, "done": 0}', '{"plan": {"source": "here"}, "done": "many"}'):
        (tmp_path / "store" / "progress.json").write_text(content)
        with pytest.raises(ToolkitError, match=r"progress\.json is damaged; remove"):
            StoreWriter(tmp_path / "store", header())


def test_names_that_are_no_utf8_are_escaped(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    store = written(tmp_path / "store", header(class_names=("a", odd), source=f"/{odd}", left_out=(f"{odd}/1.png",)))
    assert store.header.class_names == ("a", r"caf\xe9")
    assert store.header == open_store(tmp_path / "store").header
    assert store.header.source == r"/caf\xe9"
    assert store.header.left_out == (r"caf\xe9/1.png",)


def test_earlier_checksums_hold():
    plan = header()
    new = {"checksum", "shift", "codec_digest", "left_out", "class_counts"}
    facts = plan.model_dump(mode="json", exclude=new)
    values, labels = rows(plan), np.arange(6)
    expected = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + values.tobytes() + labels.tobytes()).hexdigest()
    assert checksum(plan, values, labels) == expected
    assert checksum(header(left_out=("a",)), values, labels) != expected
    assert checksum(header(class_counts=(3, 3)), values, labels) == expected


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    written(tmp_path / "whole", header())
    with pytest.raises(ToolkitError, match="already holds a whole store"):
        StoreWriter(tmp_path / "whole", header())
    StoreWriter(tmp_path / "half", header())
    with pytest.raises(ToolkitError, match=r"half written with source 'here', not 'there'"):
        StoreWriter(tmp_path / "half", header(source="there"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("text")
    with pytest.raises(ToolkitError, match="is not empty and is not a half-written store"):
        StoreWriter(tmp_path / "other", header())
    (tmp_path / "file").write_text("text")
    with pytest.raises(ToolkitError, match="cannot be written"):
        StoreWriter(tmp_path / "file", header())


def test_a_label_without_a_name_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="sample 3 has label 2, but there are 2 classes"):
        written(tmp_path / "store", header(), labels=np.array([0, 1, 0, 2, 0, 1]))
    assert not (tmp_path / "store" / "header.json").exists()


def test_a_class_without_samples_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="class b has no samples"):
        written(tmp_path / "store", header(), labels=np.zeros(6, np.int64))
    assert not (tmp_path / "store" / "header.json").exists()


def test_stores_of_earlier_versions_are_read_and_their_classes_counted(tmp_path):
    store = written(tmp_path / "store", header())
    path = tmp_path / "store" / "header.json"
    facts = json.loads(path.read_text())
    assert facts.pop("class_counts") == [3, 3]
    # The checksum is what it was before there were counts.
    assert facts["checksum"] == "e6293d4f2ca679cbd6292eca23eb5f890188a28c01f8bd441d92348042cfb32d"
    path.write_text(json.dumps(facts))
    assert read_header(tmp_path / "store").class_counts is None
    again = open_store(tmp_path / "store")
    assert again.header == store.header
    assert checksum(again.header, again.rows, again.labels) == again.header.checksum
    facts["class_names"] = ["a", "none", "b"]
    path.write_text(json.dumps(facts))
    assert open_store(tmp_path / "store").header.without_samples == ("b",)


def test_damaged_stores_are_refused(tmp_path):
    folder = tmp_path / "store"
    written(folder, header())
    whole = {path: path.read_bytes() for path in folder.iterdir()}

    def told(name, content):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(ToolkitError) as caught:
            open_store(folder)
        (folder / name).write_bytes(whole[folder / name])
        return str(caught.value)

    assert "latents.npy is truncated or damaged" in told("latents.npy", whole[folder / "latents.npy"][:-1])
    assert "latents.npy is missing" in told("latents.npy", None)
    assert "labels.npy is truncated or damaged" in told("labels.npy", b"")
    assert "no data store: it has no header.json" in told("header.json", None)
    assert "header.json: " in told("header.json", b"{")
    facts = json.loads(whole[folder / "header.json"])
    assert "header.json: dtype" in told("header.json", json.dumps({**facts, "dtype": "float8"}).encode())
    wrong = json.dumps({**facts, "samples": 7, "class_counts": None}).encode()
    assert "float32 (6, 2, 4, 4) where the header says float32 (7, 2, 4, 4)" in told("header.json", wrong)
    assert "no codec 'pixel'" in told("header.json", json.dumps({**facts, "codec": "pixel"}).encode())
    assert "class_counts must count all 7 samples, in 2 classes" in told(
        "header.json", json.dumps({**facts, "samples": 7}).encode()
    )
    others = json.dumps({**facts, "class_counts": [2, 4]}).encode()
    assert "labels.npy has other numbers of samples per class than the header says" in told("header.json", others)
    raw = whole[folder / "labels.npy"]
    assert "labels.npy: sample 5 has label 9, but the header names 2 classes" in told("labels.npy", raw[:-8] + b"\x09" + raw[-7:])
    # An object array would have to be unpickled.
    np.save(folder / "labels.npy", np.array([{}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(ToolkitError, match=r"labels.npy is truncated or damaged"):
        open_store(folder)


def store(plan, values=None):
    return Store("made", plan, rows(plan) if values is None else values, np.arange(plan.samples) % 2)


def test_a_feed_gathers_the_samples_of_its_split():
    plan = header()
    feed = Feed(Split(store(plan), np.array([1, 3, 5])), CPU)
    assert torch.equal(feed.latents(torch.tensor([2, 0])), torch.from_numpy(rows(plan)[[5, 1]]))
    assert feed.labels.tolist() == [1, 1, 1]
    assert len(feed) == 3
    half = header(dtype="float16")
    assert torch.equal(
        Feed(Split(store(half), np.arange(6)), CPU).latents(torch.tensor([2])), torch.from_numpy(rows(half)[2:3]).float()
    )


def test_moments_are_sampled_and_scaled():
    plan = header(content="moments", scale=0.5)
    assert plan.rows_shape == (6, 4, 4, 4)
    feed, noise = Feed(Split(store(plan), np.arange(6)), CPU), torch.randn(2, 2, 4, 4)
    mean, log_variance = torch.from_numpy(rows(plan)[[4, 1]]).chunk(2, dim=1)
    index = torch.tensor([4, 1])
    torch.testing.assert_close(feed.latents(index), 0.5 * mean)
    torch.testing.assert_close(feed.latents(index, noise=noise), 0.5 * (mean + (log_variance / 2).exp() * noise))


def test_mirror_images_come_from_the_second_view():
    plan = header(views=2)
    feed = Feed(Split(store(plan), np.array([2, 4])), CPU, mirrored=True)
    found = feed.latents(torch.tensor([1, 0, 1]), torch.tensor([True, False, False]))
    assert torch.equal(found, torch.from_numpy(rows(plan)[[9, 4, 8]]))
    assert torch.equal(feed.latents(torch.tensor([1])), torch.from_numpy(rows(plan)[8:9]))


def test_mirror_images_of_pixels_are_exact():
    plan = header(content="pixels", dtype="uint8", codec="pixel-unshuffle-2", shape=(4, 2, 2))
    feed = Feed(Split(store(plan), np.arange(6)), CPU, mirrored=True)
    index, codec = torch.tensor([3, 0]), feed.store.codec
    plain, mirrored = feed.latents(index), feed.latents(index, torch.tensor([True, False]))
    assert np.array_equal(codec.decode(mirrored.numpy())[0], codec.decode(plain.numpy())[0, ..., ::-1])
    assert torch.equal(mirrored[1], plain[1])
    assert plain.max() <= 1


def test_latents_of_a_vae_are_not_mirrored():
    with pytest.raises(
        ToolkitError, match=r"holds no mirror images, and those of vae:x .* prepare it with --mirrored, or leave data.flip"
    ):
        Feed(Split(store(header(codec="vae:x")), np.arange(6)), CPU, mirrored=True)
