"""Many specs at once: equal to one by one, and what is built on it."""

import tracemalloc
from typing import get_args

import numpy as np
import pytest
from scipy.stats import chisquare

from space import Domain, ModelSpec, Range, SearchSpace, ToolkitError, cost, cost_table, match_cost, preset
from space.choices.feed_forward import FeedForwardKind
from space.domains.census import census
from space.domains.space import LARGEST_CHUNK, TRIES
from tests.space.strategies import KINDS

WIDE = {
    "channels": [7, 8, 12, 16, 24],
    "depths": {"each": {"int": [1, 3]}},
    "heads": {"each": [1, 2, 3, 4]},
    "block_layers": [1, 2],
    "attention.tokens": {"each": KINDS["tokens"]},
    "attention.factor": {"each": [1, 2, 4]},
    "attention.downsampler": {"each": KINDS["downsampler"]},
    "attention.kernel": [1, 3, 5, 7],
    "attention.similarity": KINDS["similarity"],
    "attention.position": {"each": KINDS["position"]},
    "feed_forward.kind": {"each": get_args(FeedForwardKind)},
    "feed_forward.ratio": {"float": [0.05, 4]},
    "feed_forward.reparam": {"when": {"skip": "add"}, "choice": [False, True]},
    "feed_forward.branches": [False, True],
    "modulation": ["layer", "level"],
    "skip": ["concat", "add"],
    "patch": [1, 2, 4],
    "stem": ["conv", "linear"],
    "absolute_position": ["none", "sincos"],
    "null_class": [False, True],
    "learned_variance": [False, True],
}
LEVELS = {
    "depths": [[1], [3], [1, 2, 1], [1, 1, 2, 1, 1], [2, 1, 1, 1, 1, 1, 1], [1, 1]],
    "channels": {"int": [8, 64], "step": 4},
    "heads": [2, [1, 2, 4, 2, 1], [1, 1, 1]],
    "feed_forward.ratio": {"float": [1, 4], "log": True},
    "attention.tokens": {"when": {"channels": [8, 16, 24]}, "each": ["all", "downsampled"]},
}
NARROW = {"channels": {"int": [8, 1024], "step": 8}, "depths": {"each": {"int": [1, 8]}}, "heads": [1, 2, 4, 8]}
SUMS = ("params", "params_training", "macs", "train_macs", "reparam_macs")


def space(domains, base="u-dit-toy", **constraints):
    return SearchSpace(
        preset(base),
        {path: Domain.model_validate(domain) for path, domain in domains.items()},
        {metric: Range(**bounds) for metric, bounds in constraints.items()},
    )


@pytest.mark.parametrize("domains", [WIDE, LEVELS, {}], ids=["every path", "levels", "nothing"])
def test_equal_to_the_cost_of_each(domains):
    searched = space(domains)
    table = cost_table(searched, 1500)
    built = 0
    for row in range(len(table)):
        spec = searched.spec_or_none(table.points.params(row))
        assert (spec is not None) == table.buildable[row], table.points.params(row)
        if spec is not None:
            built += 1
            assert [getattr(table, name)[row] for name in SUMS] == [getattr(cost(spec), name) for name in SUMS]
            assert table.gflops[row] == cost(spec).gflops
    assert built > 50


def test_every_path_is_varied():
    fixed = {"in_channels", "input_size", "num_classes"}
    paths = [
        f"{name}.{inner}" if inner else name
        for name, field in ModelSpec.model_fields.items()
        for inner in getattr(field.annotation, "model_fields", [None])
    ]
    assert set(paths) - fixed == set(WIDE)


def test_a_share_of_one_in_a_hundred_thousand_is_found():
    searched = space(NARROW, base="u-dit-b", gflops={"max": 0.065})
    found = census(searched, np.random.default_rng(0), 1_000_000)
    assert 0 < found.share < 3e-5
    params = searched.sample_params(np.random.default_rng(1))
    assert cost(searched.spec(params)).gflops <= 0.065


def test_samples_are_uniform_among_the_feasible():
    domains = {"channels": [8, 16, 24, 32], "heads": [1, 2, 3], "feed_forward.kind": ["mlp", "conv"]}
    searched = space(domains, gflops={"max": 0.06})
    table = cost_table(searched, 2000)
    feasible = {str(table.points.params(row)) for row in np.flatnonzero(searched.violation(table) == 0)}
    rng = np.random.default_rng(2)
    drawn = [str(searched.sample_params(rng)) for _ in range(1000)]
    assert set(drawn) == feasible
    assert 5 < len(feasible) < 24
    assert chisquare([drawn.count(params) for params in sorted(feasible)]).pvalue > 0.01


def test_values_that_are_never_feasible_are_told_where_draws_suffice():
    varied = {"channels": [16, 24, 32, 48], "heads": [2, 5], "feed_forward.kind": ["mlp", "conv"], "depths": {"each": [1, 9]}}
    narrow = {"max": cost(preset("u-dit-toy").replace({"channels": 24})).gflops}
    found = census(space(varied, gflops=narrow), np.random.default_rng(0), 20_000)
    table = cost_table(space(varied), 20_000)
    feasible = table.points.take(np.flatnonzero(table.buildable & (table.gflops <= narrow["max"])))
    seen = {name: {column.value(row) for row in range(feasible.count)} for name, column in feasible.columns.items()}
    assert seen["channels"] == {16, 24}
    assert found.never_feasible["channels"] == [32, 48]
    for name, column in feasible.columns.items():
        assert set(found.never_feasible.get(name, ())) == set(column.choices) - seen[name]
    few = census(space(varied, gflops=narrow), np.random.default_rng(0), 100)
    assert few.feasible < 20
    assert not few.never_feasible, "too few to say so"


def test_marginals_tell_what_the_constraints_leave():
    searched = space({"channels": {"int": [8, 64], "step": 8}, "feed_forward.kind": ["mlp", "conv"]}, gflops={"max": 0.1})
    found = census(searched, np.random.default_rng(0), 5000)
    widths = found.marginals["channels"]
    assert sum(part.drawn for part in widths) == pytest.approx(1)
    assert sum(part.feasible for part in widths) == pytest.approx(1)
    assert widths[0].feasible > 2 * widths[0].drawn
    assert widths[-1].feasible == 0
    kinds = {part.value: part for part in found.marginals["feed_forward.kind"]}
    assert kinds["mlp"].drawn == pytest.approx(0.5, abs=0.05)
    table = cost_table(searched, 5000)
    assert found.costs["gflops"] == (table.gflops.min(), table.gflops[table.gflops <= 0.1].max())


def test_a_census_goes_on_until_something_feasible_is_found():
    """One architecture in 100,000: the first 1,000 points hold none, and one more chunk does not always either."""
    searched = space(NARROW, base="u-dit-b", gflops={"max": 0.065})
    found = census(searched, np.random.default_rng(0), 1000, batch_size=8)
    assert found.feasible >= 1
    assert 1000 < found.draws <= TRIES
    assert 0 < found.share < 1e-4
    assert cost(found.cheapest).gflops <= 0.065
    assert cost(found.cheapest).step_macs(8) <= cost(found.dearest).step_macs(8) == found.dearest_step_macs
    assert found.nearest is not None
    assert census(searched, np.random.default_rng(0), 1000, batch_size=8) == found, "the same every time"


def test_the_cheapest_and_the_dearest_are_those_of_the_drawn_points():
    searched = space(WIDE, gflops={"max": 0.1})
    # More than a chunk, so that what is kept of the chunks is merged.
    draws = LARGEST_CHUNK + 500
    found, rng = census(searched, np.random.default_rng(3), draws, batch_size=8), np.random.default_rng(3)
    tables = [cost_table(searched, count, rng) for count in (LARGEST_CHUNK, 500)]
    steps = np.concatenate([table.step_macs(8)[searched.violation(table) == 0] for table in tables])
    assert (found.draws, found.feasible) == (draws, len(steps))
    assert cost(found.cheapest).step_macs(8) == steps.min()
    assert cost(found.dearest).step_macs(8) == steps.max() == found.dearest_step_macs
    assert all(not searched.violations(spec) for spec in (found.cheapest, found.dearest, found.nearest))
    assert found.costs["gflops"][1] == max(table.gflops[searched.violation(table) == 0].max() for table in tables)
    kernels = {part.value: part for part in found.marginals["attention.kernel"]}
    entries = np.concatenate([table.points.columns["attention.kernel"].entries for table in tables])
    assert kernels[7].drawn == (entries == 3).mean()


def test_what_can_never_be_feasible_is_told_without_end():
    drawn = []
    searched = space({"channels": [8, 16], "heads": [1, 2]}, gflops={"max": 1e-9})
    original = searched.points
    searched.points = lambda rng, count: drawn.append(count) or original(rng, count)
    found = census(searched, np.random.default_rng(0), 100)
    assert (found.feasible, found.cheapest, found.dearest, found.dearest_step_macs) == (0, None, None, 0)
    # Four points: each has been drawn many times over long before TRIES.
    assert sum(drawn) == found.draws < TRIES
    assert found.draws >= 50 * 4
    assert found.nearest is not None
    several = space({"channels": {"int": [8, 4096], "log": True}}, gflops={"max": 1e-9})
    assert census(several, np.random.default_rng(0), 100).draws == TRIES


def test_the_memory_of_a_census_does_not_grow_with_its_draws():
    searched = space({"channels": {"int": [8, 64], "step": 8}, "heads": [1, 2]})
    peaks = []
    for chunks in (1, 4):
        tracemalloc.start()
        census(searched, np.random.default_rng(0), chunks * LARGEST_CHUNK)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_a_census_needs_draws():
    with pytest.raises(ToolkitError, match="draw at least 1"):
        census(space(NARROW), np.random.default_rng(0), 0)


@pytest.mark.parametrize("metric", ["gflops", "train_gflops", "params_m"])
def test_match_cost_finds_the_nearest_width(metric):
    spec = preset("u-dit-t")
    target = getattr(cost(spec.replace({"channels": 62})), metric)
    found = match_cost(spec, 1.003 * target, metric=metric)
    assert found.spec.channels == 62
    assert found.within
    assert found.error == pytest.approx(1 / 1.003 - 1)
    # No width between the neighbours of what was found comes nearer.
    found = match_cost(spec, 0.5, metric="gflops")
    errors = {c: abs(cost(spec.replace({"channels": c})).gflops - 0.5) for c in range(4, 80, 2)}
    assert found.spec.channels == min(errors, key=errors.get)


def test_match_cost_says_how_near_it_came():
    found = match_cost(preset("u-dit-t+reparam"), 0.9)
    assert not found.within
    assert str(found) == "no valid value comes within 1%: the nearest, channels 48 has gflops 0.9501, +5.57% from 0.9"
    finer = match_cost(preset("u-dit-t+reparam"), 0.9, by="feed_forward.ratio")
    assert finer.within
    assert finer.spec.channels == 48
    # Some quotients of a hidden width by 98 fall below it again when multiplied; every width is reached all the same.
    odd = preset("dit-s/2").replace({"channels": 98, "heads": 1, "depths": (1,), "absolute_position": "none"})
    for hidden in range(2, 98 * 4, 16):
        wanted = odd.replace({"feed_forward.ratio": (hidden + 0.5) / 98})
        assert wanted.stages[0].hidden == hidden
        assert match_cost(odd, cost(wanted).gflops, by="feed_forward.ratio").error == 0
    large = match_cost(preset("u-dit-s"), 5000)
    assert large.within
    assert large.spec.channels > 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0}, "not above 0"),
        ({"target": 1, "by": "heads"}, "by channels or feed_forward.ratio"),
        ({"target": 1, "metric": "gflop"}, "did you mean 'gflops'"),
    ],
)
def test_impossible_matches(arguments, message):
    with pytest.raises(ToolkitError, match=message):
        match_cost(preset("u-dit-t"), **arguments)
