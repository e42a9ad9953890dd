"""Agreement of two orders: SciPy's numbers, for any ties, in a small part of the time."""

import time

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas.stats import ranks
from nas.stats.ranks import LEAST, Agreement, agreement, agreement_across_seeds, resampled


def by_scipy(losses, last, drawn, level):
    taus = [kendalltau(losses[rows], last[rows], method="asymptotic").statistic for rows in [np.arange(len(last)), *drawn]]
    return Agreement(float(taus[0]), *np.nanpercentile(taus[1:], [50 - 50 * level, 50 + 50 * level]).tolist())


@pytest.mark.parametrize("digits", [9, 0])
def test_tau_and_its_interval_are_scipys_to_the_last_bit(monkeypatch, digits):
    monkeypatch.setattr(ranks, "RESAMPLES", 60)
    rng = np.random.default_rng(digits)
    for count in (3, 8, 25, 60):
        last = rng.normal(size=count).round(digits)
        losses = (last + rng.normal(size=count)).round(digits)
        losses[0], last[:2] = np.inf, np.inf
        assert agreement(losses, last, resampled(count), 0.9) == by_scipy(losses, last, resampled(count), 0.9)


def test_no_order_has_no_agreement():
    some, none = np.arange(9.0), Agreement(None, None, None)
    assert agreement(np.ones(9), some, resampled(9)) == none
    assert agreement(some, np.full(9, 2.0), resampled(9)) == none
    assert agreement(np.where(some == 4, np.nan, some), some, resampled(9)) == none
    assert agreement(some, np.where(some == 4, np.nan, some), resampled(9)) == none


NAN = np.nan


def test_two_seeds_agree_as_kendalls_tau_of_their_orders(monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 200)
    last = np.random.default_rng(3).normal(size=(12, 2))
    found, count = agreement_across_seeds(last, last)
    assert count == 12
    assert found.tau == pytest.approx(kendalltau(last[:, 0], last[:, 1]).statistic)
    alone = agreement(last[:, 0], last[:, 1], resampled(12))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_rungs_are_compared_with_the_end_of_other_seeds_only():
    rung = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0]])
    last = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    # Seed 0 at the rung against seed 1 at the end: all three pairs turned round; seed 1 against seed 0: one of three.
    found, count = agreement_across_seeds(rung, last)
    assert (found.tau, found.low, count) == (pytest.approx((-3 + 1) / 6), None, 3)


def test_what_replicates_lack_is_left_out():
    last = np.array([[1.0, 1.5, NAN], [2.0, 1.0, NAN], [3.0, NAN, NAN], [NAN, 4.0, 3.0], [NAN, 5.0, 7.0], [NAN, NAN, 9.0]])
    # Seeds 0 and 1 share the first two, which are turned round; 1 and 2 the fourth and fifth, which are not.
    found, count = agreement_across_seeds(last, last)
    assert (found.tau, count) == (0, 4)
    unknown = (Agreement(None, None, None), 0)
    assert agreement_across_seeds(last[:, :1], last[:, :1]) == unknown
    assert agreement_across_seeds(last[:, [0, 2]], last[:, [0, 2]]) == unknown
    assert agreement_across_seeds(np.ones((9, 2)), np.ones((9, 2))) == (Agreement(None, None, None), 9)
    assert agreement_across_seeds(last[:3, :2], last[:3, :2])[0].low is None, f"fewer than {LEAST} have no interval"


def test_identical_architectures_agree_within_seeds_and_not_across():
    rng, within, across = np.random.default_rng(6), [], []
    for _ in range(10):
        last = rng.normal(size=(60, 2))
        rung = 0.9 * last + np.sqrt(1 - 0.9**2) * rng.normal(size=(60, 2))
        within.append(agreement(rung[:, 0], last[:, 0], resampled(60)).tau)
        across.append(agreement_across_seeds(rung, last)[0].tau)
    assert np.mean(within) == pytest.approx(2 / np.pi * np.arcsin(0.9), abs=0.05)
    assert np.mean(across) == pytest.approx(0, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("architectures", [8, 12, 24])
def test_the_interval_of_the_noise_ceiling_covers_it(monkeypatch, architectures):
    monkeypatch.setattr(ranks, "RESAMPLES", 300)
    rng = np.random.default_rng(architectures)
    truth, hits = 2 / np.pi * np.arcsin(0.5), 0
    for _ in range(400):
        last = (rng.normal(size=(architectures, 1)) + rng.normal(size=(architectures, 2))) / np.sqrt(2)
        found, _ = agreement_across_seeds(last, last)
        hits += found.low <= truth <= found.high
    # 95 % of 400 are 380, with a standard error of 4.4.
    assert 364 <= hits <= 396


def test_a_thousand_resamples_take_a_fraction_of_scipys_time():
    losses, last = np.random.default_rng(2).normal(size=(2, 40))
    drawn = resampled(40)
    start = time.process_time()
    agreement(losses, last, drawn)
    mine = time.process_time() - start
    start = time.process_time()
    by_scipy(losses, last, drawn[:100], 0.95)
    assert mine < time.process_time() - start, "ten times faster at least; measured alone, it is over a hundred times"
