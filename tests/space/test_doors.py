"""The names that `import space` offers."""

import doctest
import subprocess
import sys

import pytest

import space
import space.paths
from space.weights import load_as_saved


def test_the_public_names_are_listed_and_there():
    assert dir(space) == sorted(space.__all__)
    for name in dir(space):
        assert getattr(space, name) is not None
    with pytest.raises(AttributeError, match="No space attribute biuld"):
        _ = space.biuld


def test_names_that_need_torch_are_listed_before_it_is_imported():
    code = """
import sys, space
needing = {"build", "load", "save", "official"}
for name in set(dir(space)) - needing:
    getattr(space, name)
print(needing <= set(dir(space)), "torch" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", "False"]


def test_replace_changes_a_copy():
    toy = space.preset("u-dit-toy")
    wider = space.replace(toy, {"channels": 32, "attention.tokens.0": "all"})
    assert (wider.channels, wider.stages[0].tokens, toy.channels) == (32, "all", 16)
    with pytest.raises(space.ToolkitError, match="no spec has 'channel'"):
        space.replace(toy, {"channel": 32})


@pytest.mark.parametrize("folded", [True, False])
def test_save_writes_a_folder_that_loads(tmp_path, folded):
    model = space.build(space.preset("u-dit-toy"))
    space.save(model, str(tmp_path / "model"), folded=folded)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.safetensors", "spec.yaml"]
    assert load_as_saved(tmp_path / "model").training is not folded
    assert space.load(tmp_path / "model").spec == model.spec


def test_examples():
    result = doctest.testmod(space.paths)
    assert result.attempted
    assert not result.failed
