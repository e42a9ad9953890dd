"""Repeated intervals and p-values, by simulated peeking."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from nas.stats import sequential
from nas.stats.paired import paired_interval
from nas.stats.sequential import bounds, looks, repeated_interval, sequential_p, settled
from space.errors import ToolkitError

REPETITIONS = 2000
ERROR = 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)
"""Three standard errors of a share of 5 %."""
LOOKS = looks(3, 12)


def drawn(seed, effect=0.0, pairs=12, repetitions=REPETITIONS):
    return effect + np.random.default_rng(seed).standard_normal((repetitions, pairs))


def pairs_used(row):
    """The first look whose interval excludes zero, or the last."""
    for n in LOOKS:
        low, high = repeated_interval(row[:n], LOOKS)
        if not low <= 0 <= high:
            break
    return n


def test_examples():
    found = doctest.testmod(sequential)
    assert found.attempted > 4
    assert not found.failed


def test_peeking_keeps_its_promise_where_plain_intervals_do_not():
    """No effect: the chance that any look from 3 to 12 pairs excludes zero."""
    samples = drawn(1)
    assert abs(np.mean([settled(row, LOOKS, 0.05) for row in samples]) - 0.05) < ERROR
    plain = [any(not low <= 0 <= high for low, high in (paired_interval(row[:n]) for n in LOOKS)) for row in samples]
    assert np.mean(plain) > 0.10


@pytest.mark.parametrize("alpha", [0.001, 0.004, 0.01, 0.05, 0.066, 0.3])
def test_bounds_spend_alpha_in_proportion_to_the_pairs(alpha):
    samples = drawn(2, repetitions=100_000)
    crossed = np.zeros(len(samples), dtype=bool)
    for n, bound in zip(LOOKS, bounds(LOOKS, alpha), strict=True):
        crossed |= np.abs(stats.ttest_1samp(samples[:, :n], 0, axis=1).statistic) > bound
        spent = alpha * n / 12
        tolerance = 4 * math.sqrt(spent / len(samples)) + 0.03 * spent
        assert crossed.mean() < spent + tolerance
        # Below the grid they are Bonferroni's, which spend less.
        assert crossed.mean() > (0.5 * spent if alpha < sequential.GRID[0] else spent) - tolerance


def test_bounds_of_a_single_look_are_students():
    assert bounds((12,), 0.05) == (pytest.approx(stats.t.ppf(0.975, 11)),)
    assert bounds((3, 12), 0.05)[0] == pytest.approx(stats.t.ppf(1 - 0.05 * 3 / 12 / 2, 2))


def test_bounds_fall_as_alpha_grows():
    alphas = np.geomspace(1e-6, 0.99, 60)
    rows = np.array([bounds(LOOKS, float(alpha)) for alpha in alphas])
    assert (np.diff(rows, axis=0) <= 0).all()
    assert (rows[:, -1] > stats.t.ppf(1 - alphas / 2, 11)).all(), "looking earlier costs something at the end"


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0])
def test_the_interval_at_the_stopping_look_covers(effect):
    covered = []
    for row in drawn(3, effect):
        low, high = repeated_interval(row[: pairs_used(row)], LOOKS)
        covered.append(low <= effect <= high)
    assert np.mean(covered) >= 0.95 - ERROR


def test_all_intervals_cover_together():
    together = [
        all(low <= 0.5 <= high for low, high in (repeated_interval(row[:n], LOOKS) for n in LOOKS)) for row in drawn(4, 0.5)
    ]
    assert abs(np.mean(together) - 0.95) < ERROR


def test_large_effects_need_fewer_pairs():
    used = [np.mean([pairs_used(row) for row in drawn(5, effect, repetitions=500)]) for effect in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert used == sorted(used, reverse=True)
    assert used[0] > 11.5
    assert used[-1] < 5


def test_the_p_value_keeps_its_level_at_any_stop():
    values = np.array([sequential_p(row, LOOKS) for row in drawn(6)])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert abs(np.mean(values < level) - level) < 3 * math.sqrt(level * (1 - level) / REPETITIONS)


def test_the_p_value_agrees_with_the_intervals_and_only_falls():
    for row in drawn(7, 0.6, repetitions=200):
        so_far = [sequential_p(row[:n], LOOKS) for n in range(13)]
        assert so_far[:3] == [1, 1, 1]
        assert so_far == sorted(so_far, reverse=True)
        for alpha in (0.0005, 0.01, 0.05, 0.2):
            for n in (3, 7, 12):
                assert settled(row[:n], LOOKS, alpha) == (so_far[n] < alpha)
                low, high = repeated_interval(row[:n], LOOKS, alpha)
                if not low <= 0 <= high:
                    assert so_far[n] < alpha


def test_tiny_p_values_are_bonferronis():
    strong = 100 + drawn(8, repetitions=1)[0]
    first = stats.ttest_1samp(strong[:12], 0).pvalue
    assert sequential_p(strong, LOOKS) == pytest.approx(12 * first, rel=1e-6)


def test_a_settled_difference_stays_settled():
    row = [1.0, 1.01, 0.99, 1.0, -9.0]
    assert settled(row[:4], LOOKS, 0.05)
    assert repeated_interval(row, LOOKS)[0] < 0
    assert settled(row, LOOKS, 0.05)


def test_a_margin_settles_differences_that_do_not_matter():
    none = 0.1 * drawn(9, repetitions=1)[0]
    assert not settled(none, LOOKS, 0.05)
    assert settled(none, LOOKS, 0.05, margin=1.0)
    assert not settled(none[:3], LOOKS, 0.05, margin=0.1)
    beyond = 0.9 + none
    assert not settled(beyond[:4] - 0.9, LOOKS, 0.05, margin=0.01)


def test_a_margin_is_rarely_wrong():
    """A true difference at the margin itself is called within it with a chance below alpha."""
    wrong = [settled(row, LOOKS, 0.05, margin=1.0) and not settled(row, LOOKS, 0.05) for row in drawn(10, 1.0)]
    assert np.mean(wrong) <= 0.025 + ERROR


def test_a_missing_pair_leaves_the_bounds_of_the_remaining_pairs():
    """One pair in five fails, whatever its difference: numbers are skipped at looks, and the chance to err does not grow."""
    samples = drawn(11)
    trained = np.random.default_rng(12).random(samples.shape) > 0.2
    wrong = 0
    for row, there in zip(samples, trained, strict=True):
        # One looks after every third seed only.
        parts = [row[:seeds][there[:seeds]] for seeds in (3, 6, 9, 12)]
        looked = [repeated_interval(part, LOOKS) for part in parts if len(part) >= 3]
        wrong += any(not low <= 0 <= high for low, high in looked)
    assert wrong / REPETITIONS <= 0.05 + ERROR
    four = samples[0][:4]
    half = bounds(LOOKS, 0.05)[1] * four.std(ddof=1) / 2
    assert repeated_interval(four, LOOKS) == (pytest.approx(four.mean() - half), pytest.approx(four.mean() + half))


def test_equal_differences_are_no_evidence_but_equal_architectures_are_settled():
    assert sequential_p([0.1] * 6, LOOKS) == 1
    assert not settled([0.1] * 6, LOOKS, 0.05)
    assert not settled([0.1] * 6, LOOKS, 0.05, margin=1)
    assert sequential_p([0.0] * 6, LOOKS) == 1
    assert settled([0.0] * 3, LOOKS, 0.05)
    assert not settled([0.0] * 2, LOOKS, 0.05)
    assert repeated_interval([0.0] * 3, LOOKS) == (0, 0)


def test_before_the_first_look_nothing_is_known():
    assert not settled([], LOOKS, 0.05)
    assert sequential_p([5.0, 5.1], LOOKS) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: looks(2, 6), "looks from 2 to 6 pairs are none; take a minimum of at least 3"),
        (lambda: looks(6, 5), "looks from 6 to 5 pairs are none"),
        (lambda: bounds((), 0.05), "looks at no pairs do not rise"),
        (lambda: bounds((3, 3), 0.05), "looks at 3, 3 pairs do not rise"),
        (lambda: bounds((2, 3), 0.05), "do not rise from 3"),
        (lambda: bounds((3, 4), 1.0), "alpha 1.0 is not between 0 and 1"),
        (lambda: repeated_interval([0.1, 0.2], (3, 4)), r"2 pairs are not one of the planned looks \(3, 4\)"),
        (lambda: repeated_interval([0.1, 0.2, 0.3, 0.4], (3, 5)), "4 pairs are not one of the planned looks"),
        (lambda: repeated_interval([0.1, 0.2, math.nan], (3, 4)), "not a finite number"),
        (lambda: sequential_p([0.1] * 5, (3, 4)), "5 pairs are more than the last planned look"),
        (lambda: sequential_p([math.inf], (3, 4)), "not a finite number"),
        (lambda: settled([0.1] * 5, (3, 4), 0.05), "5 pairs are more than the last planned look"),
        (lambda: settled([0.1] * 3, (3, 4), 0.0), "alpha 0.0 is not between 0 and 1"),
        (lambda: settled([0.1] * 3, (3, 4), 0.05, margin=0), "margin of 0 is not positive"),
    ],
)
def test_refusals_are_one_sentence(call, message):
    with pytest.raises(ToolkitError, match=message) as refusal:
        call()
    assert ". " not in str(refusal.value)
