"""Comparisons, on data whose effects are known."""

import doctest
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.ablation import comparison
from analysis.ablation.attribution import shapley
from analysis.ablation.comparison import compare, ladder
from nas.stats.hierarchical import row_variances
from nas.stats.paired import holm, sign_flip_p
from nas.stats.sequential import bounds, looks, repeated_interval, sequential_p
from nas.stats.sequential_variances import SequentialVariances
from space.errors import ToolkitError

REPETITIONS = 2000
ERROR = 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)
"""Three standard errors of a share of 5 %."""
OWN = ["variant", "mean", "sd", "n"]
TESTED = ["difference", "ci_low", "ci_high", "p_value", "p_holm", "p_rule", "p_rule_holm"]
COLUMNS = [*OWN, "planned", "pairs", *TESTED, "verdict", "verdict_without_failures", "exaggeration", "rule"]


def drawn(seed, effects, seeds=6, noise=0.01, spread=0.05):
    """A tidy frame of losses: every seed has its own level, every variant its effect, and both their noise."""
    rng = np.random.default_rng(seed)
    levels = 0.3 + spread * rng.standard_normal(seeds)
    values = levels + np.array(list(effects.values()))[:, None] + noise * rng.standard_normal((len(effects), seeds))
    return frame_of(dict(zip(effects, values.tolist(), strict=True)))


def frame_of(values, metric="val_loss"):
    names = [name for name, own in values.items() for _ in own]
    seeds = [seed for own in values.values() for seed in range(len(own))]
    return pd.DataFrame({"variant": names, "seed": seeds, metric: list(itertools.chain.from_iterable(values.values()))})


def row(table, variant):
    return table.set_index("variant").loc[variant]


def test_examples():
    found = doctest.testmod(comparison)
    assert found.attempted > 10
    assert not found.failed


def test_a_row_says_what_scipy_says():
    frame = drawn(1, {"plain": 0, "cosine": -0.01, "rope": 0.02})
    table = compare(frame, "plain", rule="t")
    assert list(table.columns) == COLUMNS
    assert table["variant"].tolist() == ["plain", "cosine", "rope"]
    values = {name: own["val_loss"].to_numpy() for name, own in frame.groupby("variant")}
    p_values = []
    for name in ("cosine", "rope"):
        theirs = stats.ttest_rel(values[name], values["plain"])
        found = row(table, name)
        assert (found["n"], found["pairs"]) == (6, 6)
        assert found["mean"] == pytest.approx(values[name].mean())
        assert found["sd"] == pytest.approx(values[name].std(ddof=1))
        assert found["difference"] == pytest.approx((values[name] - values["plain"]).mean())
        assert (found["ci_low"], found["ci_high"]) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
        assert found["p_rule"] == pytest.approx(theirs.pvalue)
        assert found["p_value"] == sign_flip_p(values[name] - values["plain"])
        p_values.append(theirs.pvalue)
    np.testing.assert_allclose(table["p_rule_holm"][1:], holm(p_values))
    np.testing.assert_allclose(table["p_holm"][1:], holm(table["p_value"][1:]))
    first = table.iloc[0]
    assert first[TESTED].isna().all()
    assert (first["verdict"], first["n"], first["rule"]) == ("baseline", 6, "")
    assert set(table["rule"][1:]) == {"paired t"}


def test_tables_of_two_comparisons_share_their_variances():
    frame = drawn(1, {"plain": 0, "cosine": -0.01, "rope": 0.02})
    values = frame.pivot(index="variant", columns="seed", values="val_loss").loc[["plain", "cosine", "rope"]].to_numpy()
    table, by_t = compare(frame, "plain"), compare(frame, "plain", rule="t")
    assert table["rule"].tolist() == ["", "hierarchical variances", "hierarchical variances"]
    for number, name in enumerate(("cosine", "rope"), start=1):
        found = row(table, name)
        assert (found["ci_low"], found["ci_high"], found["p_rule"]) == row_variances(values, 0).compare(number, 0)
    np.testing.assert_allclose(table["p_rule_holm"][1:], holm(table["p_rule"][1:]))
    same = [*OWN, "planned", "pairs", "difference", "p_value", "p_holm"]
    pd.testing.assert_frame_equal(table[same], by_t[same])
    alone = compare(frame[frame["variant"] != "rope"], "plain")
    pd.testing.assert_series_equal(row(alone, "cosine")[TESTED[:4]].astype(float), row(by_t, "cosine")[TESTED[:4]].astype(float))
    assert row(alone, "cosine")["rule"] == "paired t", "one comparison has nothing to share"


def test_copies_of_rows_share_no_variance():
    frame = drawn(1, {"plain": 0, "cosine": -0.01})
    copies = [frame, frame[frame["variant"] == "plain"].assign(variant="plain again")]
    copies.append(frame[frame["variant"] == "cosine"].assign(variant="cosine again"))
    table = compare(pd.concat(copies), "plain")
    assert set(table["rule"]) == {"", "paired t"}
    assert row(table, "plain again")["verdict"] == "no evidence"
    assert row(table, "cosine")["p_rule_holm"] == 3 * row(compare(frame, "plain"), "cosine")["p_rule"]


@pytest.mark.parametrize("seeds", [6, 8, 12])
def test_intervals_cover_known_effects(seeds):
    """93 to 97 % of 2,000 data sets: in one table, whose baseline has no noise of its own, so that they are independent."""
    rng = np.random.default_rng(seeds)
    levels, effects = 0.3 + 0.05 * rng.standard_normal(seeds), 0.02 * rng.standard_normal(REPETITIONS)
    values = levels + effects[:, None] + 0.01 * rng.standard_normal((REPETITIONS, seeds))
    table = compare(frame_of({"plain": levels.tolist()} | dict(enumerate(values.tolist()))), "plain", rule="t").iloc[1:]
    assert 0.93 <= ((table["ci_low"] <= effects) & (effects <= table["ci_high"])).mean() <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [6, 8, 12])
def test_intervals_of_separate_tables_cover_known_effects(seeds):
    """The same where every data set has a baseline of its own."""
    effects = {"plain": 0.0, "better": -0.013}
    covered = 0
    for repetition in range(REPETITIONS):
        found = compare(drawn((seeds, repetition), effects, seeds), "plain").iloc[1]
        covered += found["ci_low"] <= -0.013 <= found["ci_high"]
    assert 0.93 <= covered / REPETITIONS <= 0.97


def test_claims_err_in_five_of_a_hundred_tables_at_most():
    """Six variants without any effect that share a baseline, by the rule t and by the exact test with eight seeds."""
    frame = drawn(0, dict.fromkeys("abcdefg", 0.0), seeds=8)
    levels, noise = (np.random.default_rng(1).standard_normal((REPETITIONS, n, 8)) for n in (1, 7))
    claims = exact = uncorrected = 0
    for values in 0.3 + 0.05 * levels + 0.01 * noise:
        table = compare(frame.assign(val_loss=values.ravel()), "a", rule="t")
        claims += not {"better", "worse"}.isdisjoint(table["verdict"])
        exact += table["p_holm"].min() < 0.05
        uncorrected += table["p_rule"].min() < 0.05
    assert claims / REPETITIONS <= 0.05 + ERROR
    assert exact / REPETITIONS <= 0.05 + ERROR
    assert claims > 0.02 * REPETITIONS, "the bound is not kept by never claiming anything"
    assert exact > 0
    assert uncorrected / REPETITIONS > 0.15


def test_orders_of_rows_variants_and_seeds_change_no_row():
    frame = drawn(2, {"plain": 0, "a": -0.02, "b": 0.004, "c": 0.03}, seeds=7)
    frame.loc[[3, 9], "val_loss"] = np.nan
    for planned in (None, looks(3, 12)):
        expected = compare(frame, "plain", looks=planned).set_index("variant")
        for shuffle in range(10):
            shuffled = frame.sample(frac=1, random_state=shuffle)
            found = compare(shuffled, "plain", looks=planned)
            assert found["variant"].tolist() == list(dict.fromkeys(shuffled["variant"])), "in the order of first appearance"
            pd.testing.assert_frame_equal(found.set_index("variant").loc[expected.index], expected, check_exact=True)
    renamed = frame.assign(seed=frame["seed"].map({0: 40, 1: 3, 2: 17, 3: 5, 4: 99, 5: 0, 6: 8}))
    pd.testing.assert_frame_equal(compare(renamed, "plain"), compare(frame, "plain"), rtol=1e-12)


def test_better_is_lower_for_losses_and_higher_for_precision():
    effects = {"plain": 0.0, "down": -0.2, "up": 0.2, "same": 0.0}
    frame = drawn(3, effects)
    assert compare(frame, "plain")["verdict"].tolist() == ["baseline", "better", "worse", "no evidence"]
    precision = compare(frame.rename(columns={"val_loss": "precision"}), "plain", "precision")
    assert precision["verdict"].tolist() == ["baseline", "worse", "better", "no evidence"]


def test_the_level_sets_interval_and_claim():
    frame = drawn(6, {"plain": 0.0, "a": -0.03})
    p_value = compare(frame, "plain")["p_rule_holm"][1]
    assert 0.001 < p_value < 0.05
    assert compare(frame, "plain", level=1 - 1.01 * p_value)["verdict"][1] == "better"
    strict = compare(frame, "plain", level=1 - 0.99 * p_value)
    assert strict["verdict"][1] == "no evidence"
    assert strict["ci_low"][1] < 0 < strict["ci_high"][1]


def test_six_seeds_and_six_comparisons_by_the_exact_test():
    """Effects of twenty standard deviations: the t test claims all, the exact one cannot get below 0.1875."""
    effects = {"plain": 0.0} | {f"v{number}": -0.2 for number in range(6)}
    table = compare(drawn(4, effects), "plain")
    assert (table["p_holm"][1:] == 0.1875).all()
    assert (table["verdict"][1:] == "better").all()


def test_unfinished_seeds_are_left_out_of_their_pairs():
    frame = frame_of({"plain": [0.3, 0.4, 0.5, math.nan], "a": [0.2, math.nan, 0.45, 0.1], "b": [0.1, 0.3, math.inf, 0.2]})
    table = compare(frame, "plain")
    assert table["n"].tolist() == [3, 3, 3]
    assert table["pairs"].tolist() == [0, 2, 2]
    assert row(table, "a")["difference"] == pytest.approx((-0.1 - 0.05) / 2)
    assert row(table, "a")["mean"] == pytest.approx(0.25)
    assert row(table, "b")["difference"] == pytest.approx((-0.2 - 0.1) / 2)


def test_single_seeds_get_no_verdict_and_say_why():
    frame = frame_of({"plain": [0.3, 0.31, 0.33], "one": [0.2], "none": [math.nan, math.nan], "two": [0.2, 0.22]})
    table = compare(frame, "plain", rule="t")
    assert table["verdict"].tolist()[1:3] == ["one seed: no test", "no common seed: no test"]
    one, none = row(table, "one"), row(table, "none")
    assert one["difference"] == pytest.approx(-0.1)
    assert one[["sd", *TESTED[1:]]].isna().all()
    assert none[["mean", "sd", "difference", "p_value"]].isna().all()
    two = row(table, "two")
    assert two["p_rule_holm"] == pytest.approx(min(1, 3 * two["p_rule"])), "what is still to be tested counts too"


def test_equal_rows_make_sense():
    frame = frame_of({"plain": [0.3, 0.32, 0.35], "same": [0.3, 0.32, 0.35], "shifted": [0.2, 0.22, 0.25]})
    table = compare(frame, "plain")
    same, shifted = row(table, "same"), row(table, "shifted")
    assert (same["difference"], same["p_value"], same["p_rule"], same["verdict"]) == (0, 1, 1, "no evidence")
    assert (same["ci_low"], same["ci_high"]) == (0, 0)
    assert shifted["p_rule"] == shifted["p_value"] == 0.25, "equal differences tell nothing of a spread"
    assert shifted["verdict"] == "no evidence"


def test_only_a_baseline_is_a_table_of_one_row():
    table = compare(frame_of({"plain": [0.3, 0.4]}), "plain")
    assert table["verdict"].tolist() == ["baseline"]


def test_sequential_seeds_get_repeated_intervals_and_sequential_p():
    planned = looks(3, 12)
    frame = drawn(5, {"plain": 0.0, "a": -0.05, "b": 0.0, "few": 0.1}, seeds=9)
    frame = frame[(frame["variant"] != "few") | (frame["seed"] < 2)]
    frame = frame[(frame["variant"] != "a") | (frame["seed"] < 4)].sample(frac=1, random_state=0)
    table = compare(frame, "plain", looks=list(planned), rule="t")
    a = row(table, "a")
    wide = frame.pivot(index="seed", columns="variant", values="val_loss")
    differences = (wide["a"] - wide["plain"]).dropna().to_numpy()
    assert len(differences) == a["pairs"] == 4
    assert (a["ci_low"], a["ci_high"]) == pytest.approx(repeated_interval(differences, planned))
    assert a["p_value"] == a["p_rule"] == pytest.approx(sequential_p(differences, planned))
    assert a["p_holm"] == pytest.approx(3 * a["p_value"])
    few = row(table, "few")
    assert few["verdict"] == "before the first look: no test"
    assert few["difference"] > 0
    assert few[["ci_low", "p_value", "p_rule_holm"]].isna().all()
    with pytest.raises(ToolkitError, match="more than the last planned look|not one of the planned looks"):
        compare(frame, "plain", looks=looks(3, 6))
    shared = compare(frame, "plain", looks=planned)
    assert set(shared["rule"]) == {"", "group-sequential hierarchical variances"}
    values = wide[["plain", "a", "b", "few"]].to_numpy().T
    expected = SequentialVariances(values, 0, planned).compare(1, 0)
    assert tuple(row(shared, "a")[["ci_low", "ci_high", "p_rule"]]) == pytest.approx(expected)
    assert row(shared, "few")["verdict"] == "before the first look: no test"


def test_claims_of_sequential_seeds_stay_true():
    """Six variants, stopped each as soon as its own comparison would be claimed."""
    planned = looks(3, 8)
    values = np.random.default_rng(9).standard_normal((400, 7, 8))
    differences = values[:, 1:] - values[:, :1]
    sizes = [np.abs(stats.ttest_1samp(differences[..., :n], 0, axis=-1).statistic) for n in planned]
    exceeded = np.array(sizes) > np.array(bounds(planned, 0.05 / 6))[:, None, None]
    stops = np.where(exceeded.any(axis=0), exceeded.argmax(axis=0) + 3, 8)
    false = 0
    for own, stopped in zip(values, stops, strict=True):
        kept = {"plain": own[0]} | {f"v{place}": own[place + 1, :stop] for place, stop in enumerate(stopped)}
        false += compare(frame_of(kept), "plain", looks=planned, rule="t")["verdict"].isin(["better", "worse"]).any()
    assert 0 < false / len(values) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(values))


def test_a_ladder_compares_with_the_first_and_the_row_before():
    frame = drawn(8, {"plain": 0.0, "other": 0.5, "a": -0.1, "b": -0.1, "c": 0.1})
    order = ["plain", "a", "b", "c"]
    table = ladder(frame.sample(frac=1, random_state=1), order, rule="t")
    assert table["variant"].tolist() == order
    to_first = compare(frame[frame["variant"] != "other"], "plain", rule="t")
    own = [*OWN, "planned", "pairs", *TESTED[:4], "p_rule"]
    pd.testing.assert_frame_equal(table[own], to_first[own])
    names = {"pairs": "step_pairs", "difference": "step", "ci_low": "step_low", "ci_high": "step_high", "p_value": "step_p"}
    names |= {"p_rule": "step_p_rule", "planned": "step_planned"}
    for before, name in itertools.pairwise(order):
        alone = row(compare(frame[frame["variant"].isin([before, name])], before), name)
        found = row(table, name)
        for column, step in names.items():
            assert found[step] == pytest.approx(alone[column])
    for kind in ("p_value", "p_rule"):
        step, adjusted = ("step_p", "p_holm") if kind == "p_value" else ("step_p_rule", "p_rule_holm")
        # The first step is the first rung's difference, and counts once.
        family = holm([*table[kind][1:], *table[step][2:]])
        np.testing.assert_allclose(table[adjusted][1:], family[:3])
        np.testing.assert_allclose(table[f"step_{adjusted}"][1:], [family[0], *family[3:]])
    assert table["step_verdict"].tolist() == ["baseline", "better", "no evidence", "worse"]
    assert table.iloc[0][["step", "step_low", "step_p", "step_p_holm"]].isna().all()


def test_a_ladder_takes_looks():
    frame = drawn(8, {"plain": 0.0, "a": -0.1, "b": -0.11}, seeds=5)
    table = ladder(frame, ["plain", "a", "b"], looks=looks(3, 6), rule="t")
    assert table["step_p"].equals(table["step_p_rule"])
    assert row(table, "b")["step_low"] == row(compare(frame, "a", looks=looks(3, 6), rule="t"), "b")["ci_low"]


FACTORS = frame_of({"plain": [0.3, 0.4], "cosine": [0.2, 0.3]}).assign(a=[False, False, True, True])
GOOD = frame_of({"plain": [0.3, 0.4], "cosine": [0.2, 0.3]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare(GOOD.drop(columns="seed"), "plain"), "the frame has no column 'seed'; known here: variant, val_loss"),
        (lambda: compare(GOOD, "plain", "fid"), "the frame has no column 'fid'"),
        (lambda: compare(GOOD, "plane"), "no variant 'plane' in the frame; did you mean 'plain'?"),
        (lambda: compare(GOOD.assign(loss=1.0), "plain", "loss"), "whether less of 'loss' is better is not known"),
        (lambda: compare(pd.concat([GOOD, GOOD.iloc[:1]]), "plain"), "variant 'plain', seed 0 has two rows"),
        (lambda: compare(GOOD.assign(val_loss=math.nan), "plain"), "column val_loss holds no finite value"),
        (lambda: compare(GOOD.iloc[:0], "plain"), "column val_loss holds no finite value"),
        (lambda: compare(GOOD.assign(val_loss="low"), "plain"), "column 'val_loss' does not hold numbers"),
        (lambda: compare(GOOD.assign(seed=[0, 1, None, 1]), "plain"), "a row of the frame has no variant or no seed"),
        (lambda: compare(GOOD.assign(seed=[0, "1"] * 2), "plain"), "seeds of several types, such as '1' \\(str\\), 0 \\(int\\)"),
        (lambda: compare(GOOD.assign(seed=[0, 1, "0", "1"]), "plain"), "which make no pairs; convert the column to one type"),
        (lambda: shapley(FACTORS.assign(seed=[0, "0"] * 2), ["a"]), "'seed' holds seeds of several types"),
        (lambda: compare(pd.concat([GOOD, GOOD[["val_loss"]]], axis=1), "plain"), "the frame has two columns 'val_loss'"),
        (lambda: compare(pd.concat([GOOD, GOOD[["seed"]]], axis=1), "plain"), "the frame has two columns 'seed'"),
        (lambda: compare(GOOD.assign(val_loss=GOOD["val_loss"] + 1j), "plain"), "column 'val_loss' does not hold numbers"),
        (lambda: compare(GOOD.assign(val_loss=[0.3, 0.4, 1e200, 0.3]), "plain"), "'cosine', seed 0 has val_loss 1e\\+200, beyond"),
        (lambda: compare(GOOD.assign(val_loss=[0.3, -1e308, 1e308, 0.3]), "plain"), "which no difference can be computed"),
        (lambda: compare(GOOD, "plain", rule="welch"), "no rule 'welch'"),
        (lambda: compare(GOOD, "plain", order=["cosine", "plain"]), "the order cosine, plain does not start from 'plain'"),
        (lambda: compare(GOOD, "plain", level=95), "level 95 is not between 0 and 1"),
        (lambda: ladder(GOOD, ["plain"]), "a ladder of plain has no steps"),
        (lambda: ladder(GOOD, ["plain", "cosine", "plain"]), "each once"),
        (lambda: ladder(GOOD, ["plain", "cosin"]), "did you mean 'cosine'?"),
    ],
)
def test_refusals_are_one_sentence(call, message):
    with pytest.raises(ToolkitError, match=message) as refusal:
        call()
    assert ". " not in str(refusal.value)
