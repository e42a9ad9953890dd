import doctest
import math

import numpy as np
import pytest
from scipy.special import stdtrit

from nas.stats import reliability as module
from nas.stats.paired import minimum_detectable_effect
from nas.stats.reliability import MOST_SEEDS, advantage_p, agreeing_sd, reliability, seeds_needed, split_half_tau
from space.errors import ToolkitError

JUDGED = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Six targets and four judges: the example of Shrout & Fleiss (1979)."""


def scores(rng, between, within, seed=1.0, shape=(6, 3)):
    a, k = shape
    return between * rng.normal(size=(a, 1)) + seed * rng.normal(size=(1, k)) + within * rng.normal(size=shape)


def test_the_examples_run():
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)


def test_the_published_example_has_its_published_figures():
    found = reliability(JUDGED)
    assert found.within_sd**2 == pytest.approx(1.02, abs=0.005), "EMS"
    assert 4 * found.between_sd**2 + found.within_sd**2 == pytest.approx(11.24, abs=0.005), "BMS"
    assert 6 * found.seed_sd**2 + found.within_sd**2 == pytest.approx(32.49, abs=0.005), "JMS"
    assert found.icc == pytest.approx(0.71, abs=0.005), "ICC(3,1)"
    parts = found.between_sd**2 + found.seed_sd**2 + found.within_sd**2
    assert found.between_sd**2 / parts == pytest.approx(0.29, abs=0.005), "ICC(2,1)"
    bms = 4 * found.between_sd**2 + found.within_sd**2
    wms = (3 * (6 * found.seed_sd**2 + found.within_sd**2) + 15 * found.within_sd**2) / 18
    assert (bms - wms) / (bms + 3 * wms) == pytest.approx(0.17, abs=0.005), "ICC(1,1)"


def test_what_a_seed_does_to_all_and_the_unit_change_no_share():
    rng = np.random.default_rng(0)
    values = scores(rng, 1.0, 1.0)
    moved = 1e-3 * values + np.array([0.0, 0.5, -0.2])
    one, two = reliability(values), reliability(moved)
    assert (two.icc, two.low, two.high) == pytest.approx((one.icc, one.low, one.high))
    assert two.within_sd == pytest.approx(1e-3 * one.within_sd)
    assert split_half_tau(moved) == pytest.approx(split_half_tau(values))


@pytest.mark.parametrize(("between", "within"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("shape", [(6, 3), (4, 2)])
def test_the_interval_covers_as_often_as_it_says(between, within, shape):
    rng = np.random.default_rng([int(10 * between), int(10 * within), *shape])
    true = between**2 / (between**2 + within**2)
    found = [reliability(scores(rng, between, within, shape=shape)) for _ in range(2000)]
    covered = np.mean([one.low <= true <= one.high for one in found])
    # Three Monte-Carlo errors of 0.5 %.
    assert covered == pytest.approx(0.95, abs=0.015)


def test_equal_scores_have_no_share_and_scores_without_luck_the_whole():
    level = 0.1 + 0.2
    assert math.isnan(reliability(np.full((3, 2), level)).icc)
    found = reliability(np.array([[0.1, 0.1 + 0.7], [0.3, 0.3 + 0.7], [0.2, 0.2 + 0.7]]))
    assert (found.icc, found.within_sd) == (1.0, 0.0), "differences of mere rounding are none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((1, 3)), r"scores of the shape \(1, 3\)"),
        (np.ones((3, 1)), r"scores of the shape \(3, 1\)"),
        (np.ones(3), r"scores of the shape \(3,\)"),
        (np.array([[1.0, np.nan], [1.0, 2.0]]), "not a finite number"),
    ],
)
def test_too_few_or_unfinished_scores_are_refused(values, message):
    with pytest.raises(ToolkitError, match=message):
        reliability(values)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_the_needed_seeds_are_the_least_that_show_the_difference(ratio):
    seeds = seeds_needed(ratio, 1.0)
    sd = math.sqrt(2) * ratio
    assert minimum_detectable_effect(sd, seeds) <= 1
    assert seeds == 2 or minimum_detectable_effect(sd, seeds - 1) > 1


def test_the_needed_seeds_have_their_limits():
    assert seeds_needed(1.0, 0.0) == math.inf
    assert seeds_needed(0.0, 1.0) == 2
    ratio = math.sqrt(MOST_SEEDS / 15.698)
    assert seeds_needed(ratio, 1.0) == pytest.approx(seeds_needed(ratio * 1.01, 1.0), rel=0.025), "no jump where it is approximated"


def test_the_power_at_the_needed_seeds_is_80_per_cent():
    rng = np.random.default_rng(3)
    seeds = seeds_needed(0.8, 1.0)
    differences = 1.0 + 0.8 * np.sqrt(2) * rng.normal(size=(20_000, seeds))
    t = differences.mean(axis=1) * np.sqrt(seeds) / differences.std(axis=1, ddof=1)
    share = np.mean(np.abs(t) > stdtrit(seeds - 1, 0.975))
    assert 0.79 < share < 0.85


def test_the_halves_of_the_seeds():
    values = np.array([[1.0, 3.0], [2.0, 1.0], [3.0, 2.0]])
    assert split_half_tau(values) == pytest.approx(-1 / 3), "one split: the orders 1 2 3 and 3 1 2"
    # One seed against the mean of two others: 1 2 3 against 4 3 5, twice, and 3 1 2 against 2 4 6.
    assert split_half_tau(np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 1.0], [3.0, 3.0, 2.0]])) == pytest.approx(
        (1 / 3 + 1 / 3 - 1 / 3) / 3
    )
    assert math.isnan(split_half_tau(np.ones((3, 2))))


def test_the_part_that_a_reference_shares():
    reference = np.array([1.0, 2.0, 4.0, 3.0])
    own = reference[:, None] * 0.5 + np.zeros((4, 2))
    assert agreeing_sd(own, reference) == pytest.approx(0.5 * reference.std(ddof=1))
    assert agreeing_sd(-own, reference) == pytest.approx(-0.5 * reference.std(ddof=1))
    assert math.isnan(agreeing_sd(own, np.ones(4)))
    with pytest.raises(ToolkitError, match="4 architectures were scored, but the reference has 3"):
        agreeing_sd(own, reference[:3])


def test_a_clear_advantage_is_seen_and_its_opposite_is_not():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 1))
    noisy, quiet = (truth + sd * rng.normal(size=(8, 4)) for sd in (1.0, 0.03))
    assert advantage_p(noisy, quiet) < 0.001
    assert advantage_p(quiet, noisy) > 0.99
    assert advantage_p(noisy, quiet, truth[:, 0]) < 0.001
    assert advantage_p(noisy, quiet, truth[:, 0], (1.0, 1e9)) > 0.99, "at a price that takes it all back"
    assert advantage_p(noisy, noisy) == 1.0
    assert advantage_p(noisy[:2], quiet[:2]) == 1.0, "two architectures show nothing"
    assert advantage_p(noisy, -quiet, truth[:, 0]) == 1.0, "orders that are not the reference's"
    with pytest.raises(ToolkitError, match="scores of 8 architectures × 4 seeds and of 7 × 4 cannot be compared"):
        advantage_p(noisy, quiet[:7])
    with pytest.raises(ToolkitError, match="of 8 × 3 cannot be compared"):
        advantage_p(noisy, quiet[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("between", [0.0, 1.0])
def test_equal_protocols_are_seldom_called_better(correlation, between):
    rng = np.random.default_rng([int(10 * correlation), int(between)])
    false, repetitions = 0, 1000
    for _ in range(repetitions):
        common = rng.normal(size=(6, 1))
        parts = [math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=(6, 1)) for _ in range(7)]
        own, *others = [between * part + rng.normal(size=(6, 3)) + rng.normal(size=(1, 3)) for part in parts]
        false += min(advantage_p(own, other) for other in others) <= 0.025 / 6
    # Three Monte-Carlo errors of 0.5 %.
    assert false / repetitions < 0.04
