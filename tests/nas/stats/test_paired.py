"""Paired differences: against scipy, against enumeration, and against simulation where a chance is promised."""

import doctest
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nas.stats import paired
from nas.stats.paired import (
    attainable_p,
    exaggeration,
    holm,
    mean_and_spread,
    minimum_detectable_effect,
    paired_differences,
    paired_interval,
    paired_t_p,
    pairs_needed,
    ratio_interval,
    sign_flip_p,
)
from space.errors import ToolkitError

REPETITIONS = 2000


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def coverage(draws):
    intervals = np.array([paired_interval(row) for row in draws])
    return np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))


def test_examples():
    found = doctest.testmod(paired)
    assert found.attempted > 10
    assert not found.failed


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("pairs", [2, 3, 6, 30])
def test_the_interval_and_p_are_those_of_the_paired_t_test(pairs, level):
    one, other = normal(pairs, 2, pairs) * 0.02 + 0.3
    theirs = stats.ttest_rel(one, other)
    ours = paired_interval(one - other, level)
    np.testing.assert_allclose(ours, tuple(theirs.confidence_interval(level)), rtol=1e-9)
    assert paired_t_p(one - other) == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("pairs", [3, 4, 5, 6, 12])
def test_the_interval_covers_normal_differences_at_any_number_of_pairs(pairs):
    assert 0.935 <= coverage(normal(pairs, REPETITIONS, pairs)) <= 0.965


def test_bootstrap_intervals_of_six_pairs_cover_too_little():
    """The reason for the t interval: if a bootstrap interval covered better, it should be used instead."""
    draws = normal(6, REPETITIONS, 6)
    skewed = np.random.default_rng(6).exponential(size=(REPETITIONS, 6)) - 1
    for method in ("percentile", "BCa"):
        for sample, at_most in ((draws, 0.88), (skewed, coverage(skewed) - 0.03)):
            found = stats.bootstrap((sample,), np.mean, axis=-1, n_resamples=499, method=method, random_state=0)
            low, high = found.confidence_interval
            assert np.mean((low <= 0) & (high >= 0)) < at_most


def by_enumeration(differences):
    observed = abs(np.mean(differences))
    means = [abs(np.mean(np.multiply(differences, signs))) for signs in itertools.product((1, -1), repeat=len(differences))]
    return np.mean([mean >= observed - 1e-12 for mean in means])


@pytest.mark.parametrize("pairs", range(1, 11))
def test_sign_flips_by_enumeration(pairs):
    differences = normal(pairs, pairs) + 0.5
    assert sign_flip_p(differences) == by_enumeration(differences)
    # Ties, of which each pattern must count.
    rounded = np.round(differences)
    assert sign_flip_p(rounded) == by_enumeration(rounded)


def test_sign_flips_are_scipys():
    differences = normal(1, 8) + 0.6
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == theirs.pvalue


def test_rounding_of_the_losses_makes_no_difference():
    losses = np.array([0.3, 0.7, 1.1, 1.9, 2.3, 250.1])
    # 0.1 each, but not to the last digit; then two of one size.
    assert sign_flip_p((losses + 0.1) - losses) == 2 / 2**6
    assert sign_flip_p([0.1 + 0.2, -0.3, 0.05]) == by_enumeration([0.3, -0.3, 0.05])


def test_twenty_pairs_are_exact_and_more_are_sampled():
    assert sign_flip_p(np.arange(1.0, 21.0)) == 2 / 2**20
    differences = normal(3, 24) + 0.4
    sampled = sign_flip_p(differences)
    assert sampled == pytest.approx(paired_t_p(differences), rel=0.2)
    assert sampled == sign_flip_p(differences[::-1]), "the same every time, in any order"
    assert sign_flip_p(np.ones(30)) == pytest.approx(1 / (1 + paired.RESAMPLES))


def test_equal_differences_show_no_spread():
    assert paired_t_p(np.zeros(6)) == 1
    assert sign_flip_p(np.zeros(6)) == 1
    assert paired_interval(np.zeros(6)) == (0, 0)
    equal = np.full(3, 0.1)
    assert paired_t_p(equal) == sign_flip_p(equal) == 0.25
    assert mean_and_spread([0.3 - 0.2, 0.1, 0.4 - 0.3]) == (pytest.approx(0.1), 0)
    assert paired_interval(equal) == (pytest.approx(0.1), pytest.approx(0.1))


def test_holm_by_a_worked_example():
    # 0.005·4, 0.01·3, 0.03·2, and 0.04·1 raised to the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1, 1])
    assert holm([]).shape == (0,)


def test_holm_holds_the_chance_of_any_false_claim():
    """All six hypotheses true and their tests sharing one baseline; uncorrected, one in five repetitions would claim something."""
    values = normal(5, REPETITIONS, 7, 6)
    theirs = stats.ttest_rel(values[:, 1:], values[:, :1], axis=-1).pvalue
    assert np.mean((theirs < 0.05).any(axis=1)) > 0.15
    assert np.mean([holm(row).min() < 0.05 for row in theirs]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)


def test_six_seeds_and_six_comparisons_cannot_reach_below_0_1875():
    assert attainable_p(6, 6) == 0.1875
    p_values = [sign_flip_p(normal(seed, 6) * 0.01 - 1) for seed in range(6)]
    assert holm(p_values).min() == attainable_p(6, 6)
    assert attainable_p(3, 1) == 0.25
    assert attainable_p(2, 12) == 1


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("comparisons", [1, 2, 6, 40])
def test_pairs_needed_are_the_fewest_that_do(comparisons, alpha):
    pairs = pairs_needed(comparisons, alpha)
    assert attainable_p(pairs, comparisons) <= alpha < attainable_p(pairs - 1, comparisons)


def test_below_six_pairs_the_sign_flip_test_reaches_nothing():
    assert pairs_needed(1) == 6
    assert pairs_needed(6) == 8


@pytest.mark.parametrize("pairs", [2, 3, 6, 12, 40])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.05 / 6, 0.9)])
def test_the_smallest_difference_is_found_with_the_chance_it_promises(pairs, alpha, power):
    sd = 0.02
    difference = minimum_detectable_effect(sd, pairs, alpha, power)
    p_values = stats.ttest_1samp(difference + sd * normal(pairs, 20_000, pairs), 0, axis=1).pvalue
    assert np.mean(p_values < alpha) == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / 20_000))


def test_the_smallest_difference_grows_only_with_the_spread():
    assert minimum_detectable_effect(0.4, 6) == pytest.approx(4 * minimum_detectable_effect(0.1, 6))
    assert minimum_detectable_effect(0, 6) == 0


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("effect", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("pairs", [3, 6, 12])
def test_claimed_effects_are_too_large_by_what_is_said(pairs, effect, alpha):
    drawn = effect + normal(pairs, 100_000, pairs)
    claimed = np.abs(drawn.mean(axis=1))[stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha]
    error = claimed.std() / effect / math.sqrt(len(claimed))
    assert claimed.mean() / effect == pytest.approx(exaggeration(effect, pairs**-0.5, pairs - 1, alpha), abs=5 * error + 0.001)


def test_a_known_error_exaggerates_like_a_normal_estimate_cut_off():
    """Gelman & Carlin (2014): a true effect of 2 % (standard error 8.1) is overestimated 9.7 times, by their simulation."""
    assert exaggeration(2, 8.1, math.inf) == pytest.approx(9.7, abs=0.3)
    assert exaggeration(-2, 8.1, math.inf) == exaggeration(2, 8.1, math.inf)
    assert exaggeration(100, 1, 5) == pytest.approx(1)


def test_the_bounds_of_a_ratio_are_where_the_t_test_turns():
    denominators = 2 + 0.3 * normal(1, 8)
    numerators = 0.6 * denominators + 0.2 * normal(2, 8)
    low, high = ratio_interval(numerators, denominators)
    assert low < numerators.mean() / denominators.mean() < high
    for bound in (low, high):
        assert paired_t_p(numerators - bound * denominators) == pytest.approx(0.05)


def test_a_ratio_to_what_may_be_zero_has_no_bounds():
    assert ratio_interval([1, 2, 3], [-1.0, 1.5, 0.2]) == (-math.inf, math.inf)
    assert ratio_interval([2, 2.5, 3], [4, 5, 6]) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_interval([0.1]), "1 paired differences are too few"),
        (lambda: paired_t_p([]), "0 paired differences are too few"),
        (lambda: sign_flip_p([]), "0 paired differences are too few"),
        (lambda: mean_and_spread([[0.1, 0.2]]), "too few, this takes a list"),
        (lambda: paired_interval([0.1, math.nan]), "not a finite number; leave out seeds"),
        (lambda: paired_t_p([0.1, math.inf]), "not a finite number"),
        (lambda: sign_flip_p([0.1, -math.inf]), "not a finite number"),
        (lambda: paired_interval([0.1, 0.2], 95), "level 95 is not between 0 and 1; take 0.95"),
        (lambda: holm([0.1, math.nan]), "numbers from 0 to 1"),
        (lambda: holm([1.1]), "numbers from 0 to 1"),
        (lambda: attainable_p(0, 1), "0 paired seeds test nothing"),
        (lambda: attainable_p(6, 0), "0 comparisons leave nothing"),
        (lambda: pairs_needed(0), "0 comparisons leave nothing"),
        (lambda: pairs_needed(3, 0), "alpha 0 is not between 0 and 1; take 0.05"),
        (lambda: minimum_detectable_effect(1, 1), "1 paired seeds show no difference"),
        (lambda: minimum_detectable_effect(math.nan, 6), "standard deviation of nan"),
        (lambda: minimum_detectable_effect(1, 6, power=0.04), "power of 0.04 does not lie between alpha"),
        (lambda: minimum_detectable_effect(1, 6, alpha=2), "alpha 2 is not between"),
        (lambda: exaggeration(0, 1, 5), "an effect of 0 with a standard error of 1"),
        (lambda: exaggeration(1, 0, 5), "an effect of 1 with a standard error of 0"),
        (lambda: paired_differences([1e300], [0.0]), "a value is beyond ±1e\\+100"),
        (lambda: paired_interval([1e200, 0.0]), "a paired difference is beyond ±1e\\+100"),
        (lambda: ratio_interval([1, 2], [1, 2, 3]), "2 numerators and 3 denominators are not pairs"),
        (lambda: ratio_interval([1, 2], [1, math.nan]), "not a finite number"),
    ],
)
def test_refusals_are_one_sentence(call, message):
    with pytest.raises(ToolkitError, match=message) as refusal:
        call()
    assert ". " not in str(refusal.value)
