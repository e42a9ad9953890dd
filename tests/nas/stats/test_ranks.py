"""Agreement of two orders: SciPy's numbers, for any ties, in a small part of the time."""

import time

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas.stats import ranks
from nas.stats.ranks import Agreement, agreement, resampled


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


def test_a_thousand_resamples_take_a_fraction_of_scipys_time():
    losses, last = np.random.default_rng(2).normal(size=(2, 40))
    drawn = resampled(40)
    start = time.process_time()
    agreement(losses, last, drawn)
    mine = time.process_time() - start
    start = time.process_time()
    by_scipy(losses, last, drawn[:100], 0.95)
    assert mine < time.process_time() - start, "ten times faster at least; measured alone, it is over a hundred times"
