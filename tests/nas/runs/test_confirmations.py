"""What fresh seeds say of the candidates of a search, on arrays: error rate, bias, verdicts and wording."""

import math

import numpy as np
import pytest

from nas.runs.confirmations import compare_with_baseline, conclusion
from nas.runs.events import CandidatesChosen, Confirmed
from nas.runs.records import Confirmation, Fresh
from nas.stats.hierarchical import RowVariances, posterior_variances, row_variances
from nas.stats.paired import holm
from nas.stats.verdicts import BETTER, NO_EVIDENCE, WORSE

TRIALS, BEST, SEEDS = 60, 3, 6


def rows_of(values):
    return [dict(enumerate(row)) for row in values]


class Confirmations:
    """Searches of 60 trials at one seed, and their best 3 on fresh seeds, in SDs of a seed's own luck.

    The baseline is half a spread better than the mean. With the seeds' luck comes as much that all rows share.
    """

    def __init__(self, spread, repetitions, seed):
        rng = np.random.default_rng(seed)
        true = spread * rng.standard_normal((repetitions, TRIALS))
        searched = true + rng.standard_normal((repetitions, TRIALS))
        best = np.argsort(searched, axis=1)[:, :BEST]
        self.true = np.take_along_axis(true, best, axis=1) + spread / 2
        self.luck = (np.take_along_axis(searched - true, best, axis=1))[:, 0]
        own = rng.standard_normal((repetitions, BEST + 1, SEEDS))
        shared = rng.standard_normal((repetitions, 1, SEEDS))
        self.fresh = np.concatenate([np.zeros((repetitions, 1)), self.true], axis=1)[..., None] + own + shared

    def p_values(self):
        """Holm's p of every candidate, by the rule, in all repetitions at once; with fewer draws than a table has."""
        variances = RowVariances(self.fresh, posterior_variances(self.fresh, 0, chains=4, kept=100), 0)
        alone = np.stack([variances.pairs(row, 0).p_value() for row in range(1, BEST + 1)], axis=1)
        return np.array([holm(row) for row in alone])


@pytest.mark.slow
def test_without_a_difference_a_winner_is_claimed_in_five_per_cent_at_most():
    searches = Confirmations(spread=0.0, repetitions=2000, seed=0)
    claimed = searches.p_values() < 0.05
    better = claimed & (searches.fresh[:, 1:].mean(2) < searches.fresh[:, :1].mean(2))
    assert better.any(1).mean() <= 0.05
    # Monte-Carlo error 0.005.
    assert 0.01 < claimed.any(1).mean() <= 0.05 + 2 * 0.005


@pytest.mark.slow
def test_a_true_difference_is_found_by_the_rule_of_the_tables():
    searches = Confirmations(spread=1.0, repetitions=2000, seed=1)
    p = searches.p_values()
    assert (p < 0.05).any(1).mean() > 0.4, "45 %, Monte-Carlo error 1"
    for index in range(6):
        found = compare_with_baseline(rows_of(searches.fresh[index]), "val_loss")["candidates"]
        assert [one["p"] for one in found] == pytest.approx(p[index], abs=0.05)
        sure = [place for place in range(BEST) if abs(p[index, place] - 0.05) > 0.02]
        assert [found[place]["verdict"] != NO_EVIDENCE for place in sure] == [p[index, place] < 0.05 for place in sure]


def test_the_confirmed_difference_is_unbiased_where_that_of_the_search_is_too_low():
    repetitions = 2000
    searches = Confirmations(spread=1.0, repetitions=repetitions, seed=2)
    first = searches.fresh[:, 1].mean(1) - searches.fresh[:, 0].mean(1)
    # The mean of six paired differences, of which each has twice the variance of a seed's own luck.
    assert abs(np.mean(first - searches.true[:, 0])) < 3 * math.sqrt(2 / SEEDS / repetitions)
    # The lowest of 60 values with SD √2, half of whose variance is luck, is by 1/√2 of its depth in SDs lucky.
    depth = np.random.default_rng(3).standard_normal((20_000, TRIALS)).min(axis=1).mean()
    assert np.mean(searches.luck) == pytest.approx(depth / math.sqrt(2), abs=3 * np.std(searches.luck) / math.sqrt(repetitions))
    assert np.mean(searches.luck) < -1.5
    found = compare_with_baseline(rows_of(searches.fresh[0]), "val_loss")
    assert found["candidates"][0]["difference"] == pytest.approx(first[0])


def test_intervals_are_of_all_candidates_together():
    values = np.random.default_rng(4).standard_normal((BEST + 1, SEEDS))
    together = compare_with_baseline(rows_of(values), "val_loss")["candidates"]
    variances = row_variances(values, 0)
    for place, one in enumerate(together, start=1):
        low, high, _ = variances.compare(place, 0, 1 - 0.05 / 3)
        assert (one["low"], one["high"]) == pytest.approx((low, high))


def test_a_candidate_that_failed_everywhere_claims_nothing():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(3, 6))
    values[2] = math.nan
    result = compare_with_baseline(rows_of(values), "val_loss")
    failed = result["candidates"][1]
    assert (failed["mean"], failed["difference"], failed["p"], failed["pairs"]) == (None, None, None, 0)
    assert "no test" in failed["verdict"]


def test_the_difference_that_would_have_been_seen_is_that_of_the_spread():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(2, 400)) * 0.01
    few = compare_with_baseline(rows_of(values[:, :6]), "val_loss")["visible"]
    many = compare_with_baseline(rows_of(values), "val_loss")["visible"]
    # Two-sided, level 0.05, power 0.8: (1.960 + 0.842) standard errors.
    assert many == pytest.approx((1.960 + 0.842) * math.sqrt(2) * 0.01 / 20, rel=0.05)
    assert few > 5 * many


class Recorded:
    """The part of a run that a sentence is made of."""

    def __init__(self, confirmed, trials):
        self.confirmed, self.trials = confirmed, trials


class Costing:
    def __init__(self, gflops):
        self.cost = self
        self.gflops = gflops


def fresh(trial, difference, verdict, p=0.001):
    sd, half = 0.002, 0.0024
    return Fresh(
        trial=trial,
        searched=0.07,
        mean=0.08 + difference,
        sd=sd,
        pairs=6,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=p,
        verdict=verdict,
    )


def sentence(*candidates, chosen=7, gflops=0.025, **more):
    claimed = any(one.verdict == BETTER for one in candidates)
    settings = {"metric": "val_loss", "baseline": "u-dit-t", "gflops": 0.025, "mean": 0.08, "sd": 0.002, "visible": 0.004}
    result = Confirmation(candidates=candidates, claimed=claimed, rule="paired t", **settings | more)
    return conclusion(Recorded(Confirmed(chosen=chosen, result=result), dict.fromkeys(range(9), Costing(gflops))))


def test_a_winner_is_one_sentence():
    assert sentence(fresh(7, -0.0055, BETTER)) == (
        "trial 7 is better than u-dit-t by 0.0055 [0.0031, 0.0079] at equal GFLOPs (6 fresh paired seeds, p = 0.001)"
    )
    dearer = sentence(fresh(7, -0.0055, BETTER), fresh(3, -0.001, NO_EVIDENCE, 0.4), gflops=0.02)
    assert dearer.endswith("at 0.02 against 0.025 GFLOPs (6 fresh paired seeds, p = 0.001 of 2 comparisons)")


def test_no_winner_is_one_sentence_too():
    three = [fresh(trial, -0.001, NO_EVIDENCE, 0.5) for trial in (7, 3, 5)]
    assert sentence(*three) == "no evidence that any of the 3 is better than u-dit-t; a difference of 0.0040 would have been seen"
    assert sentence(three[0], visible=None) == "no evidence that trial 7 is better than u-dit-t"
    worse = sentence(three[0], fresh(3, 0.0055, WORSE))
    assert worse.endswith("; trial 3 is worse than u-dit-t by 0.0055 [0.0031, 0.0079] (p = 0.001 of 2 comparisons)")


def test_seeds_that_were_added_after_a_look_are_told():
    assert sentence(fresh(7, -0.0055, BETTER), replanned=True).endswith("which no p-value allows for")


def test_events_are_read_as_they_are_written():
    for event in (CandidatesChosen(trials=(7, 3)), Confirmed(chosen=7, result=_result())):
        assert type(event).model_validate(event.plain()) == event


def _result():
    return Confirmation(
        metric="val_loss",
        baseline="u-dit-t",
        gflops=0.025,
        mean=0.08,
        sd=0.002,
        candidates=(fresh(7, -0.0055, BETTER),),
        claimed=True,
        visible=0.004,
        rule="paired t",
    )
