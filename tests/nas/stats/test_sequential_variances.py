"""Looks at a table's comparisons after every seed: levels, p-values, intervals and prospects."""

import doctest
import math

import numpy as np
import pytest
from scipy.special import ndtri

from benchmarks.sequential_seeds import played
from nas.stats import sequential_variances
from nas.stats.hierarchical import row_variances
from nas.stats.sequential import looks
from nas.stats.sequential_variances import SequentialVariances, expected_seeds, normal_levels, smallest_alpha
from space.errors import ToolkitError

LOOKS = looks(3, 12)


def drawn(seed, rows=5, seeds=12, effect=2.0):
    """Normal values with a common effect of the seed; row 1 differs from the others."""
    random = np.random.default_rng(seed)
    table = random.standard_normal((rows, seeds)) + random.standard_normal(seeds)
    table[1] += effect
    return table


def test_examples():
    found = doctest.testmod(sequential_variances)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.5])
def test_levels_spend_alpha_with_the_squared_share_of_the_pairs(alpha):
    statistics = np.random.default_rng(1).standard_normal((200_000, 12)).cumsum(axis=1)[:, 2:] / np.sqrt(LOOKS)
    crossed = np.logical_or.accumulate(np.abs(statistics) > -ndtri(normal_levels(LOOKS, alpha) / 2), axis=1).mean(axis=0)
    spent = alpha * (np.array(LOOKS) / 12) ** 2
    assert (np.abs(crossed - spent) < 4 * np.sqrt(spent / len(statistics)) + 0.01 * spent).all()


def test_the_level_of_a_single_look_is_alpha():
    assert normal_levels((12,), 0.05) == pytest.approx([0.05])


@pytest.mark.parametrize("alpha", [1e-12, 1e-5, 0.003, 0.05, 0.7])
def test_the_smallest_alpha_is_the_inverse_of_the_levels(alpha):
    for index in range(len(LOOKS)):
        p = normal_levels(LOOKS, alpha)[index] if alpha > 1e-8 else normal_levels(LOOKS, 1e-8)[index] * alpha / 1e-8
        assert smallest_alpha(LOOKS, index, p) == pytest.approx(alpha, rel=1e-6)
    assert smallest_alpha(LOOKS, 0, 1.0) == 1


def test_the_p_value_is_that_of_the_best_look_and_only_falls():
    table, planned, tables = drawn(2, effect=1.5)[:, :7], looks(3, 7), {}
    so_far = [SequentialVariances(table[:, :n], 0, planned, tables).compare(1, 0)[2] for n in range(8)]
    assert np.isnan(so_far[:3]).all()
    assert sorted(tables) == list(planned)
    expected = [float(smallest_alpha(planned, n - 3, tables[n].compare(1, 0)[2])) for n in planned]
    assert so_far[3:] == list(np.minimum.accumulate(expected))
    assert tables[5].compare(1, 0) == row_variances(table[:, :5], 0).compare(1, 0)


def test_a_claim_never_stands_beside_an_interval_that_holds_zero():
    random, claims = np.random.default_rng(3), 0
    for _ in range(4):
        table = random.standard_normal((3, 5))
        table[1, :3] += 4
        tests = SequentialVariances(table, 0, looks(3, 5))
        for row in (1, 2):
            low, high, p = tests.compare(row, 0)
            assert low < high
            assert p >= 0.05 or not low <= 0 <= high
            claims += p < 0.05
    assert claims


def test_seeds_that_others_get_later_change_no_look_of_a_row_that_has_ended():
    table = drawn(4)
    table[1, 4:] = np.nan
    ended = SequentialVariances(table[:, :4], 0, LOOKS)
    assert SequentialVariances(table, 0, LOOKS).compare(1, 0) == ended.compare(1, 0)
    assert SequentialVariances(table, 0, LOOKS).prospects(1, 0, 0.01) == ended.prospects(1, 0, 0.01)


def test_a_failed_pair_is_no_look():
    table = drawn(5)
    table[1, 3] = np.nan
    whole = SequentialVariances(table[:, :6], 0, LOOKS)
    whole.compare(1, 0)
    assert sorted(whole.tables) == [3, 5, 6], "with three pairs one looks once"


def test_prospects_follow_the_trend():
    none, some, sure = (
        SequentialVariances(drawn(6, effect=effect)[:, :4], 0, LOOKS).prospects(1, 0, 0.0125) for effect in (-1.0, 1.5, 6.0)
    )
    assert none < 0.1 < some < sure
    assert SequentialVariances(drawn(6)[:, :2], 0, LOOKS).prospects(1, 0, 0.01) == 1
    assert SequentialVariances(drawn(6, effect=9.0)[:, :5], 0, looks(3, 5)).prospects(1, 0, 0.01) == 1


def test_the_expected_seeds_are_between_the_least_and_the_most():
    found = expected_seeds(6, [(row, 0) for row in range(1, 6)], [0.01] * 5, LOOKS)
    assert found.sum() == pytest.approx(25.5, abs=1), "as many as with estimated variances, by benchmarks/sequential_seeds.py"
    assert found[0] == found.max()
    assert expected_seeds(2, [(1, 0)], [0.05], (3, 4))[0] == pytest.approx(expected_seeds(2, [(1, 0)], [0.05], (3, 4))[1])
    assert expected_seeds(2, [], [], LOOKS).tolist() == [3, 3]


def test_more_pairs_than_looks_are_refused():
    with pytest.raises(ToolkitError, match=r"12 pairs are more than the last planned look has \(3, 4, 5\); plan more looks"):
        SequentialVariances(drawn(7), 0, (3, 4, 5)).compare(1, 0)
    with pytest.raises(ToolkitError, match="alpha 0 is not between 0 and 1"):
        normal_levels(LOOKS, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "trainings", "power"), [(0.0, 27.0, math.nan), (1.5, 37.5, 0.89), (2.0, 34.0, 0.98)])
def test_futility_halves_the_trainings_without_errors_or_loss(effect, trainings, power):
    found = played("normal", effect, 500, "hierarchical", 0.1, seed=9)
    assert found.trainings <= trainings
    assert found.error <= 0.05
    assert not found.power < power
