import numpy as np
import pytest

from space import Domain, Range, SearchSpace, ToolkitError, cost, preset
from space.spec import PER_STAGE


def space(domains, **constraints):
    return SearchSpace(
        preset("u-dit-toy"),
        {path: Domain.model_validate(domain) for path, domain in domains.items()},
        {metric: Range(**bounds) for metric, bounds in constraints.items()},
    )


def test_samples_keep_conditions_and_constraints():
    searched = space(
        {
            # The condition stands before what it depends on: the order in the file does not matter.
            "feed_forward.reparam": {"when": {"feed_forward.kind": "conv"}, "choice": [False, True]},
            "channels": [16, 24, 32],
            "depths": {"each": {"int": [1, 2]}},
            "feed_forward.kind": ["mlp", "conv"],
            "heads": [2, 4, 5],
        },
        gflops={"min": 0.02, "max": 0.03},
    )
    rng = np.random.default_rng(0)
    seen = [searched.sample_params(rng) for _ in range(40)]
    assert {params["feed_forward.kind"] for params in seen} == {"mlp", "conv"}
    for params in seen:
        assert ("feed_forward.reparam" in params) == (params["feed_forward.kind"] == "conv")
        assert 0.02 <= cost(searched.spec(params)).gflops <= 0.03
        assert params["heads"] != 5  # such specs cannot be built
    assert {f"depths.{stage}" for stage in range(5)} < seen[0].keys()


def test_a_condition_on_a_value_that_is_not_searched_looks_at_the_base():
    domains = {"attention.kernel": {"when": {"attention.downsampler": ["dwconv", "dwconv-shortcut"]}, "choice": [3, 5]}}
    assert "attention.kernel" in space(domains).points(np.random.default_rng(0), 1).params(0)
    domains["attention.kernel"]["when"] = {"attention.downsampler": "pixel-shuffle"}
    assert space(domains).points(np.random.default_rng(0), 1).params(0) == {}


def test_equal_seeds_sample_equal_specs():
    searched = space({"channels": [16, 24], "feed_forward.ratio": {"float": [1, 4], "log": True}})
    first, second = (searched.sample(np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_a_range_that_nothing_meets_says_how_near_the_nearest_comes():
    with pytest.raises(ToolkitError, match=r"gflops at least 3; the nearest has gflops 0\.0\d+, so widen"):
        space({"channels": [16, 24]}, gflops={"min": 3}).sample(np.random.default_rng(0), tries=50)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"attention.tokns": ["all"]}, "'attention.tokns', which no spec has; did you mean 'attention.tokens'"),
        ({"num_classes": [10]}, "which the data decide"),
        ({"channels": {"each": [16]}}, "one value for all stages"),
        ({"channels": {"when": {"headz": 2}, "choice": [16]}}, "depends on 'headz'.*did you mean 'heads'"),
        ({"heads": {"when": {"channels": 16}, "choice": [2]}, "channels": {"when": {"heads": 2}, "choice": [16]}}, "in a circle"),
        ({"channels": {"when": {"depths": 1}, "choice": [16]}, "depths": {"each": [1]}}, "one value per stage"),
        ({"attention.kernel": {"int": [1, 7]}}, "'attention.kernel' the value 2: 2 is not one of 1, 3, 5 or 7; the nearest is 1"),
        ({"channels": {"float": [16, 32]}}, "'channels' over real numbers, which it does not take"),
        ({"feed_forward.reparam": ["yes", "no"]}, "'feed_forward.reparam' the value 'yes': input should be a valid boolean"),
        ({"channels": ["16"]}, "'channels' the value '16': input should be a valid integer"),
        ({"channels": {"int": [8, 10**7]}}, "'channels' the value 10000000: input should be less than"),
    ],
)
def test_impossible_spaces(domains, message):
    with pytest.raises(ToolkitError, match=message):
        space(domains)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"int": [3, 1]}, "is empty"),
        ({"choice": [1], "int": [1, 2]}, "exactly one of"),
        ({"int": [0, 4], "log": True}, "above 0"),
        ([1, 1], "holds a value twice"),
        ({"each": {"each": [1]}}, "each takes a plain domain"),
        ({"float": [0, 1], "step": 2}, "step needs an int range"),
    ],
)
def test_impossible_domains(domain, message):
    with pytest.raises(ValueError, match=message):
        Domain.model_validate(domain)


def test_an_int_range_that_steps_over_the_holes_is_taken():
    found = space({"attention.kernel": {"int": [1, 8], "step": 2}, "channels": {"int": [8, 5000], "step": 2}})
    assert {found.sample(np.random.default_rng(seed)).attention.kernel for seed in range(30)} == {1, 3, 5, 7}


def test_draws_cover_a_domain_evenly():
    rng = np.random.default_rng(0)
    stepped = Domain.model_validate({"int": [2, 8], "step": 3})
    counts = np.bincount(stepped.draw(rng, 600), minlength=9)
    assert set(np.flatnonzero(counts)) == {2, 5, 8}
    assert counts[counts > 0].min() > 150
    logs = Domain.model_validate({"int": [1, 100], "log": True}).draw(rng, 600)
    assert min(logs) >= 1
    assert max(logs) <= 100
    assert 5 <= np.median(logs) <= 16


TWO_VALUES = {
    "heads": [2, 4],
    "attention.tokens": ["all", "downsampled"],
    "attention.factor": [1, 2],
    "attention.downsampler": ["pixel-shuffle", "dwconv"],
    "attention.similarity": ["dot", "cosine"],
    "attention.position": ["none", "rope2d"],
    "feed_forward.kind": ["mlp", "conv"],
}


def test_every_per_stage_path_is_tried():
    assert TWO_VALUES.keys() == set(PER_STAGE)


@pytest.mark.parametrize("path", TWO_VALUES)
@pytest.mark.parametrize("domain", ["each", "shared", "listed"])
def test_a_spec_is_found_in_the_space_however_its_per_stage_values_are_written(path, domain):
    values = TWO_VALUES[path]
    varied = {"each": {"each": values}, "shared": values, "listed": [[value] * 5 for value in values]}[domain]
    searched = space({path: varied, "channels": [16, 24, 32]})
    for value in values:
        specs = [searched.base.replace({path: written}) for written in (value, (value,) * 5)]
        once, listed = (searched.params_of(spec) for spec in specs)
        assert once is not None
        assert once == listed
        assert searched.spec(once).digest == specs[0].digest
    mixed = searched.base.replace({path: (*values, *values, values[0])})
    found = searched.params_of(mixed)
    assert (found is not None) == (domain == "each")
    assert found is None or searched.spec(found) == mixed


def test_a_spec_is_found_with_the_values_of_the_domain_and_in_their_types():
    base = {"channels": [16], "feed_forward.ratio": [2, 4], "null_class": [False, True]}
    assert space(base).params_of(preset("u-dit-toy").replace({"feed_forward.ratio": 4})) is not None
    found = space(base | {"feed_forward.ratio": {"int": [2, 4]}}).params_of(preset("u-dit-toy"))
    assert [repr(value) for value in found.values()] == ["16", "4", "True"]
    assert space({"block_layers": {"int": [1, 9], "step": 2}}).params_of(preset("u-dit-toy")) is None


def test_a_value_without_effect_keeps_no_spec_outside_of_the_space():
    searched = space({"attention.tokens": ["all", "downsampled"], "attention.kernel": [1, 3]})
    spec = searched.base.replace({"attention.tokens": "all", "attention.kernel": 7})
    assert searched.spec(searched.params_of(spec)).digest == spec.digest
    assert searched.params_of(searched.base.replace({"attention.kernel": 7})) is None
    folded = space({"feed_forward.kind": ["mlp", "conv"], "channels": [16, 24]})
    assert folded.params_of(folded.base.replace({"feed_forward.kind": "mlp", "feed_forward.reparam": False})) is not None


def test_a_spec_with_other_stages_than_the_space_is_outside_of_it():
    searched = space({"depths": {"each": {"int": [1, 2]}}, "heads": {"each": [2, 4]}})
    assert searched.params_of(searched.base.replace({"depths": (1, 1, 1), "heads": 2})) is None
    lengths = space({"depths": [[1, 1, 1], [1, 1, 1, 1, 1]], "heads": [[2, 2, 2], [2] * 5]})
    found = lengths.params_of(lengths.base.replace({"depths": (1,) * 5, "heads": 2}))
    assert found == {"depths": [1] * 5, "heads": [2] * 5}


@pytest.mark.parametrize("wanted", [2, [2, 4], [[2] * 5]])
@pytest.mark.parametrize("written", [2, (2,) * 5])
def test_a_condition_holds_however_a_per_stage_value_is_written(wanted, written):
    varied = {"attention.kernel": {"when": {"attention.factor": wanted}, "choice": [3, 5]}, "channels": [16, 24]}
    parts = {path: Domain.model_validate(domain) for path, domain in varied.items()}
    searched = SearchSpace(preset("u-dit-toy").replace({"attention.factor": written}), parts)
    drawn = searched.points(np.random.default_rng(0), 1).params(0)
    assert "attention.kernel" in drawn
    assert searched.params_of(searched.spec(drawn)) == drawn
    chosen = space(varied | {"attention.factor": [list(written) if isinstance(written, tuple) else written, [1] * 5]})
    points = chosen.points(np.random.default_rng(0), 20)
    for params in map(points.params, range(20)):
        assert ("attention.kernel" in params) == (params["attention.factor"] != [1] * 5)
        assert searched.active(searched.parameters[0], params) == ("attention.kernel" in params)
