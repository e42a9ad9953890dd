import struct

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from space.tensors import read_tensors, write_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "none": torch.empty(0, 2),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"facts": "{}"})
    return tmp_path / "x.safetensors"


def test_what_is_written_is_read(path):
    tensors, metadata = read_tensors(path)
    assert metadata == {"facts": "{}"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items())


def test_every_changed_byte_is_noticed(path):
    sound = path.read_bytes()
    (length,) = struct.unpack("<Q", sound[:8])
    for at in range(8, len(sound)):
        changed = bytearray(sound)
        changed[at] ^= 1
        path.write_bytes(changed)
        try:
            tensors, metadata = read_tensors(path)
        except (SafetensorError, OSError):
            continue
        # In the header a space may become another character that JSON passes over, and the checksum's own name may be lost.
        assert at < 8 + length
        unchanged = metadata == {"facts": "{}"} and all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
        lost_its_checksum = len(metadata) == 2
        assert unchanged or lost_its_checksum, at


def test_files_without_a_checksum_are_read(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"facts": "1"})
    assert read_tensors(tmp_path / "old.safetensors")[1] == {"facts": "1"}


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(OSError, match="No such file"):
        write_tensors(path.parent / "nowhere" / "x.safetensors", TENSORS, {})
    monkeypatch.setattr("space.tensors.save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        write_tensors(path, TENSORS, {})
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]
