"""Every value of every choice says how it is built, what it costs and what it keeps; a half-added one is refused."""

from typing import Literal, get_args

import pytest
import torch

from space import build, cost, cost_table, memory, preset
from space.choices.attention import Similarity, Tokens
from space.choices.downsampler import Downsampler
from space.choices.feed_forward import FeedForwardKind
from space.choices.position import Position
from space.choices.table import covering, rules_of
from space.domains.domain import Domain
from space.domains.space import SearchSpace
from space.spec import PER_STAGE

CHOICES = {
    "attention.tokens": Tokens,
    "attention.downsampler": Downsampler,
    "attention.similarity": Similarity,
    "attention.position": Position,
    "feed_forward.kind": FeedForwardKind,
}
VALUES = [(path, value) for path, literal in CHOICES.items() for value in get_args(literal)]


def test_every_choice_of_a_stage_is_listed_here():
    assert set(CHOICES) == set(PER_STAGE) - {"heads", "attention.factor"}


@pytest.mark.parametrize(("path", "value"), VALUES)
def test_every_value_is_built_counted_and_kept(path, value):
    spec = preset("u-dit-toy").replace({path: value})
    assert sum(parameter.numel() for parameter in build(spec).parameters()) == cost(spec).params_training
    assert memory(spec, 2).activations > 0
    table = cost_table(SearchSpace(spec, {path: Domain(choice=tuple(get_args(CHOICES[path])))}), 20)
    for row in range(20):
        assert table.macs[row] == cost(spec.replace(table.points.params(row))).macs


@pytest.mark.parametrize("path", CHOICES)
def test_values_differ_in_what_is_built(path):
    specs = [preset("u-dit-toy").replace({path: value}) for value in get_args(CHOICES[path])]
    outputs = set()
    for spec in specs:
        model = build(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.copy_(drawn * 0.1 - 0.05)
            x = torch.randn(1, 4, spec.input_size, spec.input_size, generator=torch.Generator().manual_seed(0))
            out = model(x, torch.tensor([500.0]), torch.tensor([1]))
            outputs.add(round(float(out.abs().double().sum()), 4))
    assert len(outputs) == len(specs)


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
