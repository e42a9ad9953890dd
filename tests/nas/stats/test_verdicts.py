"""Verdicts: what is corrected together, failed trials that count against claims, and rounding that is no evidence."""

import math

import numpy as np
import pytest

from nas.stats.paired import exaggeration, holm, paired_t_p
from nas.stats.sequential import looks, sequential_p
from nas.stats.verdicts import judged
from space.errors import ToolkitError

NAN = math.nan


def rows_of(*values):
    return [dict(enumerate(row)) for row in values]


def drawn(seed, *shifts, seeds=8, noise=0.01):
    random = np.random.default_rng(seed)
    return np.array(shifts)[:, None] + 0.3 + noise * random.standard_normal((len(shifts), seeds))


def against(*values, **how):
    """The results of comparing every row with the first."""
    return judged(rows_of(*values), [(number, 0) for number in range(1, len(values))], True, **how)


def test_all_comparisons_are_one_family():
    values = drawn(1, 0.0, -0.02, -0.02)
    found = judged(rows_of(*values), [(1, 0), (2, 0), (2, 1)], True, rule="t")
    p_values = [paired_t_p(values[row] - values[reference]) for row, reference in ((1, 0), (2, 0), (2, 1))]
    assert found["p_rule"] == pytest.approx(p_values)
    assert found["p_rule_holm"] == pytest.approx(holm(p_values).tolist())
    assert found["exaggeration"][0] == pytest.approx(
        exaggeration(found["difference"][0], (values[1] - values[0]).std(ddof=1) / 8**0.5, 7, 0.05 / 3)
    )


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("rule", ["t", "hierarchical"])
def test_a_failure_of_the_row_counts_against_better(lower, rule):
    """The failed pair counts as the largest difference of the row, with the other sign; other rows are as they were."""
    sign = 1 if lower else -1
    whole = sign * drawn(2, 0.0, -0.02, -0.02, seeds=12)
    failed = whole.copy()
    failed[1, 3] = NAN
    found, before = (judged(rows_of(*values), [(1, 0), (2, 0)], lower, rule=rule) for values in (failed, whole))
    assert before["verdict"] == found["verdict_without_failures"] == ["better", "better"]
    differences = np.delete(whole[1] - whole[0], 3)
    counted = np.insert(differences, 3, sign * np.abs(differences).max())
    assert found["p_rule"][0] == pytest.approx(max(paired_t_p(counted), found["p_rule"][0] if rule == "t" else 0))
    assert found["p_rule"][0] >= paired_t_p(counted) > before["p_rule"][0]
    assert (found["planned"], found["pairs"]) == ([12, 12], [11, 12])
    assert found["difference"][0] == pytest.approx(differences.mean())
    assert found["ci_low"][0] < counted.mean() < found["ci_high"][0]


def test_a_failure_of_the_baseline_alone_is_no_evidence_for_the_row():
    whole = drawn(3, 0.0, -0.03, 0.03, seeds=12)
    lost = whole.copy()
    lost[0, [2, 7]] = NAN
    better, worse = 0, 1
    found = against(*lost, rule="t")
    kept = against(*np.delete(whole, [2, 7], axis=1), rule="t")
    assert found["p_rule"][better] == kept["p_rule"][better], "the seeds count for nothing"
    assert found["p_rule"][worse] > kept["p_rule"][worse], "the baseline may have failed where it is bad"
    assert found["planned"] == [12, 12]
    both = lost.copy()
    both[1:, [2, 7]] = NAN
    assert against(*both, rule="t")["p_rule"] == kept["p_rule"], "what fails in both rows favours neither"


def test_six_pairs_of_which_one_failed_claim_nothing():
    values = drawn(4, 0.0, -1.0, seeds=6)
    assert against(*values)["verdict"] == ["better"]
    values[1, 0] = NAN
    found = against(*values)
    assert (found["verdict"], found["verdict_without_failures"]) == (["no evidence"], ["better"])


def test_seeds_that_were_not_trained_are_no_failures():
    values = drawn(5, 0.0, -0.05, 0.0, seeds=8)
    rows = rows_of(*values)
    for seed in (6, 7):
        del rows[1][seed]
    found = judged(rows, [(1, 0), (2, 0)], True)
    assert (found["planned"], found["pairs"]) == ([6, 8], [6, 8])
    assert found["verdict"] == found["verdict_without_failures"]
    assert found["verdict"][0] == "better"


def test_failures_count_at_their_look():
    values = drawn(6, 0.0, -0.05, seeds=5)
    values[1, 1] = NAN
    found = against(*values, looks=looks(3, 8))
    differences = values[1] - values[0]
    differences[1] = np.nanmax(np.abs(differences))
    assert found["p_rule"][0] == max(sequential_p(differences, looks(3, 8)), sequential_p(np.delete(differences, 1), looks(3, 8)))
    assert found["rule"] == ["group-sequential t"]


@pytest.mark.parametrize("rule", ["hierarchical", "t"])
def test_a_claim_that_later_pairs_speak_against_stands_no_more(rule):
    values = drawn(1, 0, 0, 0, seeds=9)
    values[1][:4] -= 1.0
    early = against(*(row[:4] for row in values), looks=looks(3, 12), rule=rule)
    assert early["verdict"][0] == "better"
    values[1][4:] += 1.5
    late = against(*values, looks=looks(3, 12), rule=rule)
    assert late["p_rule_holm"][0] < 0.001, "the p-value of the claiming look"
    assert late["ci_low"][0] < 0 < late["ci_high"][0]
    assert late["verdict"][0] == "no evidence"


def failing_where_bad(seed, seeds, quantile, repetitions):
    """Baseline and row of one law, whose trials fail above its quantile: in the row alone, or in the baseline alone."""
    random = np.random.default_rng(seed)
    row, baseline = random.standard_normal((2, repetitions, seeds))
    return np.where(row > np.quantile(row, quantile), NAN, row), baseline


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [6, 8, 12])
@pytest.mark.parametrize("failures", [0.16, 0.31, 0.5])
def test_rows_that_fail_at_bad_seeds_are_not_called_better(seeds, failures):
    """One-sided 2.5 %, in 1,500 repetitions; without the failures it would be 5 to 27 %."""
    claims, dropped = np.zeros(2), np.zeros(2)
    for row, baseline in zip(*failing_where_bad(seeds, seeds, 1 - failures, 1500), strict=True):
        for side, values in enumerate(((baseline, row), (row, baseline))):
            found = against(*values)
            claims[side] += found["verdict"][0] == ("better", "worse")[side]
            dropped[side] += found["verdict_without_failures"][0] == ("better", "worse")[side]
    assert (claims / 1500 <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 1500)).all()
    assert (dropped / 1500 > 0.04).all()


def test_rounding_is_no_evidence():
    """A row that is the baseline but for the rounding of its values, whose differences of 1e-17 may have one sign."""
    plain = 0.08 + 0.003 * np.random.default_rng(7).standard_normal(6)
    for copy in ((plain + 0.1) - 0.1, plain * (1 + 2e-16), plain * (1 - 2e-16)):
        for lower in (True, False):
            found = judged(rows_of(plain, copy, plain + 0.001), [(1, 0), (2, 0), (2, 1)], lower)
            assert found["verdict"] == ["no evidence"] * 3
            assert found["difference"][0] == 0
            assert (found["p_value"][0], found["p_rule"][0], found["ci_low"][0], found["ci_high"][0]) == (1, 1, 0, 0)


def test_the_spread_of_a_shifted_copy_is_rounding_too():
    """Differences of 0.001 at values of 1e6, which are equal but for their rounding: 1e-7 of the difference."""
    plain = 1e6 + np.random.default_rng(8).standard_normal(8)
    found = against(plain, plain - 0.001, rule="t")
    assert found["p_rule"] == found["p_value"] == [2 / 2**8]
    assert found["ci_low"] == found["ci_high"] == found["difference"]


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1.0, 1e12, 1e90])
@pytest.mark.parametrize("rule", ["t", "hierarchical"])
def test_the_unit_changes_no_verdict(scale, rule):
    values = drawn(9, 0.0, -0.03, 0.01)
    found, scaled = (against(*(factor * values), rule=rule) for factor in (1.0, scale))
    assert scaled["verdict"] == found["verdict"]
    if scale > 1e-200:
        assert scaled["p_rule"] == pytest.approx(found["p_rule"])
        assert scaled["ci_low"] == pytest.approx([scale * low for low in found["ci_low"]])


@pytest.mark.parametrize("large", [1e200, 1e308, -1e308])
def test_values_whose_squares_overflow_are_refused(large):
    values = drawn(10, 0.0, -0.03)
    values[1, 0] = large
    with pytest.raises(ToolkitError, match="a value is beyond ±1e\\+100.*leave that value empty"):
        against(*values)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ToolkitError, match="no rule 'welch'; known here: hierarchical, t"):
        against(*drawn(1, 0.0, 0.0), rule="welch")
