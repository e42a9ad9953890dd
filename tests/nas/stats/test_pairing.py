"""What pairing by seed removes: against an analysis of variance by hand, by simulation, and the rule of √m."""

import doctest

import numpy as np
import pytest

from nas.stats import pairing
from nas.stats.pairing import seed_correlation, spared_variance


def drawn(seed, icc, rows=6, seeds=8, repetitions=1):
    random = np.random.default_rng(seed)
    common = random.standard_normal((repetitions, 1, seeds))
    own = random.standard_normal((repetitions, rows, seeds))
    return np.sqrt(icc) * common + np.sqrt(1 - icc) * own + random.standard_normal((repetitions, rows, 1))


def test_examples():
    found = doctest.testmod(pairing)
    assert found.attempted > 1
    assert not found.failed


def test_a_worked_example():
    """Row effects of ±1, seed effects of -3, 0, 3 and an interaction of ±1: MS_seeds = 18, MS_error = 2."""
    values = 10 + np.array([[1.0], [-1.0]]) + np.array([-3.0, 0.0, 3.0]) + np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    found = seed_correlation(values)
    assert found.icc == pytest.approx((18 - 2) / (18 + 2))
    assert (found.rows, found.seeds) == (2, 3)


@pytest.mark.parametrize("icc", [0.0, 0.2, 0.9])
def test_the_interval_covers_what_is_common(icc):
    found = [seed_correlation(values) for values in drawn(1, icc, repetitions=1000)]
    assert np.mean([one.icc for one in found]) == pytest.approx(icc, abs=0.05)
    assert 0.93 <= np.mean([one.low <= icc <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("icc", [0.0, 0.6])
def test_it_is_the_variance_that_pairing_removes(icc):
    own = drawn(3, icc, rows=2, seeds=40_000)[0]
    paired, apart = np.var(own[0] - own[1]), np.var(own[0]) + np.var(own[1])
    assert 1 - paired / apart == pytest.approx(icc, abs=0.02)
    assert seed_correlation(own).icc == pytest.approx(icc, abs=0.02)


def test_missing_seeds_and_copies_say_nothing():
    values = drawn(4, 0.5)[0]
    lacking = np.vstack([values, values[:1], np.full((1, 8), np.nan)])
    lacking[2, 5] = np.nan
    assert seed_correlation(lacking) == seed_correlation(np.delete(values, 5, axis=1))
    assert seed_correlation(values[:1]) is None
    assert seed_correlation(values[:, :1]) is None
    assert seed_correlation(np.ones((3, 4))) is None
    assert seed_correlation(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])).icc == 1


@pytest.mark.parametrize(("icc", "rows"), [(0.0, 4), (0.0, 16), (0.3, 16)])
def test_more_seeds_for_the_baseline_spare_what_is_said(icc, rows):
    few = 8 if rows == 4 else 4
    root = round(rows**0.5)
    random = np.random.default_rng(5)
    common = np.sqrt(icc) * random.standard_normal((100_000, root * few))
    row = common[:, :few] + np.sqrt(1 - icc) * random.standard_normal((100_000, few))
    baseline = common + np.sqrt(1 - icc) * random.standard_normal((100_000, root * few))
    unequal = np.var(row.mean(axis=1) - baseline.mean(axis=1))
    equal = 2 * (1 - icc) * (rows + 1) / (few * (rows + root))
    assert 1 - unequal / equal == pytest.approx(spared_variance(icc, rows), abs=0.01)
