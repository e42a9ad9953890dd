"""Random damage ends in a sentence, whatever is damaged (`tests/damage.py`, which repeats it as often as wanted)."""

import random
import shutil

import pytest
from click.testing import CliRunner

from nas.cli.app import main
from tests.damage import damage_bytes, damage_values, faults, subjects

NAMES = ("study", "ledger", "store", "checkpoint", "export", "authors")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return subjects(tmp_path_factory.mktemp("sound"))


def test_all_that_is_handed_over_is_damaged(found):
    assert tuple(found) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_damage_ends_in_a_traceback(found, name, tmp_path):
    assert faults(found[name], 25, 0, tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_damaged_is_read(found, name, tmp_path):
    """Else every damage would be told by the same sentence, and the test above could not fail."""
    shutil.copytree(found[name].sound, tmp_path / "whole")
    for command in found[name].commands(tmp_path / "whole"):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, (command, done.output)


def test_damages_differ_and_are_repeated():
    document = {"a": [1, 2, {"b": None}], "c": {"d": "text"}}
    some = [damage_values(document, random.Random(seed)) for seed in range(50)]
    assert len({str(one) for one in some}) > 25
    assert str(some) == str([damage_values(document, random.Random(seed)) for seed in range(50)])
    content = bytes(range(256))
    assert len({damage_bytes(content, random.Random(seed)) for seed in range(50)}) > 40
    assert damage_bytes(b"", random.Random(0))
