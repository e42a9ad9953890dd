"""What separates two specs, and the way from one to the other."""

import doctest
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from space import ModelSpec, diff, differences, preset
from space.errors import SpecError
from tests.space.strategies import specs

MANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
S = preset("u-dit-s")


def changes(found):
    return {one.path: one.new for one in found}


def test_examples():
    found = doctest.testmod(differences)
    assert found.attempted == 2
    assert not found.failed


@MANY
@given(a=specs(), b=specs())
def test_all_differences_lead_to_the_other_and_none_is_left_out_or_too_much(a, b):
    found = diff(a, b)
    assert a.replace(changes(found)).digest == b.digest
    assert a.replace(dict(reversed(changes(found).items()))).digest == b.digest, "in any order"
    assert bool(found) == (a.digest != b.digest)
    assert not diff(a, a)
    assert len(changes(found)) == len(found)
    for one in found:
        assert one.old != one.new
        try:
            without = a.replace(changes(other for other in found if other is not one))
        except SpecError:
            continue  # What goes together only: heads and their width, depths and lists of as many values.
        assert without.digest != b.digest


@MANY
@given(a=specs(), data=st.data())
def test_differences_of_a_few_values_are_taken_back_one_by_one(a, data):
    """Values of which any part makes a spec: each step is another architecture."""
    free = {"attention.tokens": "all", "attention.similarity": "dot", "feed_forward.kind": "mlp", "attention.kernel": 3}
    names = data.draw(st.lists(st.sampled_from(sorted(free)), unique=True))
    b = a.replace({name: free[name] for name in names} | {"depths": [depth + 1 for depth in a.depths]})
    found = diff(a, b)
    steps = [a.replace(changes(found[:count])) for count in range(len(found) + 1)]
    assert (steps[0], steps[-1].digest) == (a, b.digest)
    for (before, after), one in zip(pairwise(steps), found, strict=True):
        assert after.replace({one.path: one.old}).digest == before.digest


def test_the_order_is_that_of_fields_and_stages():
    b = S.replace({"skip": "add", "attention.tokens": "all", "depths": [3, 5, 8, 5, 1], "channels": 192})
    assert [one.path for one in diff(S, b)] == ["channels", "depths.encoder-1", "depths.decoder-1", "attention.tokens", "skip"]


def test_values_per_stage_are_named_by_stage_and_set_by_that_name():
    b = S.replace({"heads": [4, 4, 2, 4, 4]})
    assert diff(S, b) == [("heads.bottleneck", 4, 2)]
    assert diff(b, S) == [("heads.bottleneck", 2, 4)]
    assert S.replace({"heads.bottleneck": 2}) == S.replace({"heads.2": 2}) == b
    assert diff(S, S.replace({"heads": [4] * 5})) == []
    with pytest.raises(SpecError, match=r"no spec has 'heads\.trunk'"):
        S.replace({"heads.trunk": 1})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"feed_forward.kind": "mlp"}, {"feed_forward.kind": "mlp", "feed_forward.reparam": False}),
        ({"attention.tokens": "all"}, {"attention.tokens": "all", "attention.factor": 4, "attention.kernel": 3}),
        ({"feed_forward.reparam": False}, {"feed_forward.reparam": False, "feed_forward.branches": True}),
        ({"block_layers": 2, "depths": [1, 1, 1, 1, 1]}, {"block_layers": 1, "depths": [2, 2, 2, 2, 2]}),
        ({"feed_forward.ratio": 2.0}, {"feed_forward.ratio": 2.000001}),
    ],
)
def test_equal_architectures_have_no_differences(first, second):
    assert diff(S.replace(first), S.replace(second)) == []


def test_a_value_is_listed_where_the_other_spec_gives_it_a_meaning():
    mlp = S.replace({"feed_forward": {"kind": "mlp", "reparam": False}})
    assert [one.path for one in diff(S, mlp)] == ["feed_forward.kind"]
    assert diff(mlp, S) == [("feed_forward.kind", "mlp", "conv"), ("feed_forward.reparam", False, True)]


def test_specs_of_other_depths_differ_in_whole_lists_which_go_together():
    a = S.replace({"attention.tokens": ["all", "downsampled", "downsampled", "downsampled", "all"]})
    b = ModelSpec.model_validate(S.model_dump() | {"depths": (2, 8, 2)})
    found = diff(a, b)
    assert found == [
        ("depths", [2, 5, 8, 5, 2], [2, 8, 2]),
        ("attention.tokens", ["all", "downsampled", "downsampled", "downsampled", "all"], "downsampled"),
    ]
    with pytest.raises(SpecError, match="attention.tokens lists 5 values, but depths lists 3 stages"):
        a.replace(changes(found[:1]))
