"""Gains at equal cost: their shares, intervals and verdicts, on data whose effects are known."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.ablation.comparison import compare, gain_at_equal_cost
from nas.stats.paired import holm, paired_t_p
from space.errors import ToolkitError
from tests.analysis.ablation.test_comparison import REPETITIONS, drawn, frame_of, row


def gains(seed, raw, matched, seeds=6, noise=0.01):
    """Baseline `plain` at raw, `big` at raw and flop-matched, with known differences to it."""
    frame = drawn(seed, {"plain": 0.0, "big": raw, "matched": matched}, seeds, noise)
    control = frame["variant"].map({"plain": "raw", "big": "raw", "matched": "flop-matched"})
    return frame.assign(control=control, variant=frame["variant"].replace("matched", "big"))


def test_shares_of_a_gain_cover():
    """A third of the gain is left; Fieller's interval is exact for normal values, correlated ones too."""
    rng = np.random.default_rng(3)
    levels, common = 0.3 + 0.05 * rng.standard_normal(6), 0.01 * rng.standard_normal((REPETITIONS, 6))
    raw, matched = (levels + gain + common + 0.01 * rng.standard_normal((REPETITIONS, 6)) for gain in (-0.9, -0.3))
    frames = [frame_of({"plain": levels} | dict(enumerate(raw))).assign(control="raw")]
    frames.append(frame_of(dict(enumerate(matched))).assign(control="flop-matched"))
    found = gain_at_equal_cost(pd.concat(frames), "plain", rule="t")
    assert (found["note"] == "").all()
    assert 0.93 <= ((found["share_low"] <= 1 / 3) & (found["share_high"] >= 1 / 3)).mean() <= 0.97


def test_a_share_stands_beside_its_two_differences():
    frame = gains(1, -0.09, -0.03)
    other = frame[(frame["variant"] == "plain") | (frame["control"] == "raw")]
    (found,) = gain_at_equal_cost(frame, "plain").itertuples()
    raw = row(compare(other, "plain"), "big")
    matched = row(compare(frame[(frame["variant"] == "plain") | (frame["control"] == "flop-matched")], "plain"), "big")
    (by_t,) = gain_at_equal_cost(frame, "plain", rule="t").itertuples()
    assert (by_t.raw, by_t.raw_low, by_t.raw_high) == tuple(raw[["difference", "ci_low", "ci_high"]])
    assert (by_t.matched, by_t.matched_low, by_t.matched_high) == tuple(matched[["difference", "ci_low", "ci_high"]])
    assert by_t.p_rule_holm == pytest.approx(holm([raw["p_rule"], matched["p_rule"]])[1])
    assert (found.raw_verdict, found.verdict, found.rule) == ("better", "better", "hierarchical variances")
    assert found.share == pytest.approx(matched["difference"] / raw["difference"])
    assert found.share_low < found.share < found.share_high
    wide = frame.assign(key=frame["variant"] + frame["control"]).pivot(index="seed", columns="key", values="val_loss")
    for bound in (found.share_low, found.share_high):
        left = (wide["bigflop-matched"] - wide["plainraw"]) - bound * (wide["bigraw"] - wide["plainraw"])
        assert paired_t_p(left.to_numpy()) == pytest.approx(0.05)


def test_a_share_is_given_only_where_the_corrected_raw_verdict_claims_a_gain():
    """A raw gain whose own interval excludes 0, among eight rows without any."""
    frame = drawn(11, {"plain": 0.0, "big": -0.016, "matched": -0.01} | dict.fromkeys("abcdefgh", 0.0))
    control = frame["variant"].map({"matched": "flop-matched"}).fillna("raw")
    frame = frame.assign(control=control, variant=frame["variant"].replace("matched", "big"))
    for rule in ("t", "hierarchical"):
        big = row(gain_at_equal_cost(frame, "plain", rule=rule), "big")
        assert big["raw_high"] < 0
        assert (big["raw_verdict"], big["note"]) == ("no evidence", "no gain to share")
        assert big[["share", "share_low", "share_high"]].isna().all()
    alone = row(gain_at_equal_cost(frame[frame["variant"].isin(["plain", "big"])], "plain", rule="t"), "big")
    assert (alone["raw_verdict"], alone["note"]) == ("better", "")


@pytest.mark.parametrize("raw", [0.0, 0.09])
def test_without_a_gain_there_is_no_share(raw):
    (found,) = gain_at_equal_cost(gains(1, raw, -0.03), "plain").itertuples()
    assert found.note == "no gain to share"
    assert math.isnan(found.share)
    assert math.isnan(found.share_low)
    assert not math.isnan(found.matched)


def test_gains_of_metrics_that_should_rise():
    frame = gains(1, 0.09, 0.03).rename(columns={"val_loss": "precision"})
    (found,) = gain_at_equal_cost(frame, "plain", "precision").itertuples()
    assert (found.note, found.verdict) == ("", "better")
    (fallen,) = gain_at_equal_cost(
        gains(1, -0.09, -0.03).rename(columns={"val_loss": "precision"}), "plain", "precision"
    ).itertuples()
    assert (fallen.note, fallen.verdict) == ("no gain to share", "worse")


def test_gains_take_the_seeds_that_all_have():
    frame = gains(1, -0.09, -0.03)
    left_out = (frame["variant"] == "big") & (frame["control"] == "raw") & (frame["seed"] < 2)
    left_out |= (frame["control"] == "flop-matched") & (frame["seed"] == 2)
    frame.loc[left_out, "val_loss"] = np.nan
    (found,) = gain_at_equal_cost(frame, "plain").itertuples()
    assert found.pairs == 3
    frame.loc[frame["seed"] < 5, "val_loss"] = np.nan
    (single,) = gain_at_equal_cost(frame, "plain").itertuples()
    assert (single.pairs, single.note, single.verdict) == (1, "one seed: no test", "one seed: no test")
    unmatched = pd.concat([frame, frame[frame["control"] == "raw"].replace("big", "odd")[lambda f: f["variant"] == "odd"]])
    assert gain_at_equal_cost(unmatched, "plain")["note"].tolist()[1] == "no common seed: no test"


GOOD = frame_of({"plain": [0.3, 0.4], "cosine": [0.2, 0.3]})
CONTROLLED = gains(1, -0.1, -0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gain_at_equal_cost(GOOD, "plain"), "the frame has no column 'control'"),
        (lambda: gain_at_equal_cost(CONTROLLED, "big "), "did you mean 'big'?"),
        (
            lambda: gain_at_equal_cost(CONTROLLED, "plain", control="flops-matched"),
            "no control 'flops-matched'.*did you mean 'flop-matched'?",
        ),
        (lambda: gain_at_equal_cost(CONTROLLED, "plain", control="raw"), "no control 'raw'"),
        (lambda: gain_at_equal_cost(CONTROLLED[CONTROLLED["variant"] == "big"], "plain"), "no variant 'plain'"),
        (
            lambda: gain_at_equal_cost(CONTROLLED.assign(control="flop-matched", seed=range(18)), "plain"),
            "'plain' has no rows of control raw",
        ),
        (
            lambda: gain_at_equal_cost(pd.concat([CONTROLLED] * 2), "plain"),
            "variant 'plain' of control raw, seed 0 has two rows",
        ),
    ],
)
def test_refusals_are_one_sentence(call, message):
    with pytest.raises(ToolkitError, match=message) as refusal:
        call()
    assert ". " not in str(refusal.value)
