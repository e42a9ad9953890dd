"""Every value of every choice says how it is built, what it costs and what it keeps; a half-added one is refused."""

from collections.abc import Mapping
from typing import Literal, get_args

import pytest

from space import build, cost, cost_table, memory, preset
from space.choices.attention import SIMILARITIES, TOKENS, Similarity, Tokens
from space.choices.downsampler import DOWNSAMPLERS, Downsampler
from space.choices.feed_forward import FEED_FORWARDS, FeedForwardKind
from space.choices.position import POSITIONS, Position
from space.choices.table import covering, rules_of
from space.domains.domain import Domain
from space.domains.space import SearchSpace
from space.model.attention import ATTENTION_MODULES, DOWNSAMPLER_MODULES
from space.model.position import POSITION_ROTATIONS
from space.spec import PER_STAGE

CHOICES = {
    "attention.tokens": (Tokens, TOKENS, ATTENTION_MODULES),
    "attention.downsampler": (Downsampler, DOWNSAMPLERS, DOWNSAMPLER_MODULES),
    "attention.similarity": (Similarity, SIMILARITIES, SIMILARITIES),
    "attention.position": (Position, POSITIONS, POSITION_ROTATIONS),
    "feed_forward.kind": (FeedForwardKind, FEED_FORWARDS, FEED_FORWARDS),
}
VALUES = [(path, value) for path, (literal, _, _) in CHOICES.items() for value in get_args(literal)]


def test_every_choice_of_a_stage_is_listed_here():
    assert set(CHOICES) == set(PER_STAGE) - {"heads", "attention.factor"}


@pytest.mark.parametrize(("literal", "facts", "modules"), CHOICES.values(), ids=CHOICES)
def test_tables_cover_the_names(literal, facts: Mapping, modules: Mapping):
    assert set(get_args(literal)) == set(facts) == set(modules)


@pytest.mark.parametrize(("path", "value"), VALUES)
def test_every_value_is_built_counted_and_kept(path, value):
    spec = preset("u-dit-toy").replace({path: value})
    assert sum(parameter.numel() for parameter in build(spec).parameters()) == cost(spec).params_training
    assert memory(spec, 2).activations > 0
    table = cost_table(SearchSpace(spec, {path: Domain(choice=tuple(get_args(CHOICES[path][0])))}), 20)
    for row in range(20):
        assert table.macs[row] == cost(spec.replace(table.points.params(row))).macs


@pytest.mark.parametrize("path", CHOICES)
def test_values_differ_in_what_is_built_or_counted(path):
    literal = CHOICES[path][0]
    specs = [preset("u-dit-toy").replace({path: value}) for value in get_args(literal)]
    assert len({spec.digest for spec in specs}) == len(specs)


def test_a_choice_without_an_entry_is_refused():
    with pytest.raises(TypeError, match=r"one entry in each of its tables; without one: \['blur'\]"):
        covering(Literal["dwconv", "blur"], {"dwconv": 1})
    with pytest.raises(TypeError, match=r"without one: \['dwconf', 'dwconv'\]"):
        covering(Literal["dwconv"], {"dwconf": 1})


def test_rules_are_followed_once_each():
    assert list(rules_of(lambda encode: encode("b"), {"a": "first", "b": "second", "c": "second", "d": None})) == [("second", 1)]
    assert list(rules_of(lambda encode: encode("d"), {"a": "first", "d": None})) == []
    with pytest.raises(KeyError):
        list(rules_of(lambda encode: encode("unknown"), {"a": "first"}))
