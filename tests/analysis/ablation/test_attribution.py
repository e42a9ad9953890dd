"""Attribution and factorial effects: worked examples from the books, and what must hold for any values."""

import doctest
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy import stats

from analysis.ablation import attribution
from analysis.ablation.attribution import factorial_effects, shapley
from nas.stats.paired import holm, paired_interval, paired_t_p, ratio_interval, sign_flip_p
from space import ToolkitError

NAMES = ("a", "b", "c", "d")


def tidy(games, factors=NAMES[:2], keep=lambda held: True, metric="val_loss"):
    """A frame from one function of the held components a seed."""
    rows = []
    for seed, game in enumerate(games):
        for on in product([False, True], repeat=len(factors)):
            held = frozenset(factor for factor, is_on in zip(factors, on, strict=True) if is_on)
            if keep(held):
                flags = dict(zip(factors, on, strict=True))
                rows.append({"variant": "+".join(sorted(held)) or "none", "seed": seed, metric: float(game(held)), **flags})
    return pd.DataFrame(rows)


def values_of(table, column="component"):
    return dict(zip(table[column], table["value"], strict=True))


@st.composite
def factorials(draw, most=4):
    """Factors and a full factorial of any values, a few seeds."""
    factors = NAMES[: draw(st.integers(1, most))]
    numbers = st.floats(-100, 100, allow_subnormal=False)
    games = []
    for _ in range(draw(st.integers(1, 3))):
        values = draw(st.lists(numbers, min_size=2 ** len(factors), max_size=2 ** len(factors)))
        games.append(lambda held, values=values: values[sum(2 ** NAMES.index(factor) for factor in held)])
    return factors, games


def test_docstrings():
    assert doctest.testmod(attribution).failed == 0


def test_shapley_of_the_airport_game():
    # Littlechild and Owen 1973: a runway for the longest plane; each stretch is shared equally by those that need it.
    length = {"a": 1, "b": 2, "c": 3}
    game = [lambda held: max((length[f] for f in held), default=0)]
    assert shapley(tidy(game * 2, NAMES[:3]), NAMES[:3])["share"].tolist() == pytest.approx([1 / 9, 5 / 18, 11 / 18])
    table = shapley(tidy(game, NAMES[:3]), NAMES[:3])
    assert table["component"].tolist() == ["a", "b", "c"]
    assert table["value"].tolist() == pytest.approx([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1])
    assert (table["kind"] == "shapley").all()
    assert (table["seeds"] == 1).all()
    assert table[["ci_low", "ci_high", "share", "share_low", "share_high"]].isna().all(axis=None), "a single seed has no interval"
    assert table.attrs["note"] == "no shares: without the spread of at least two seeds the total may be zero"
    assert table.attrs["metric"] == "val_loss"


def test_effects_of_the_pilot_plant():
    # Box, Hunter and Hunter, the 2^3 design of temperature, concentration and catalyst in standard order.
    yields = [60, 72, 54, 68, 52, 83, 45, 80]
    table = factorial_effects(
        tidy([lambda held: yields[sum(2 ** "TCK".index(factor) for factor in held)]], list("TCK"), metric="is"), list("TCK"), "is"
    )
    assert values_of(table, "effect") == {"T": 23, "C": -5, "K": 1.5, "T × C": 1.5, "T × K": 10, "C × K": 0}
    assert table[["ci_low", "ci_high", "p_value", "p_holm", "p_t", "p_t_holm"]].isna().all(axis=None)


@pytest.fixture
def four_seeds():
    """Effects of a by seed -3, -4, -5, -4; of b -1, 1, 0, 2; of a × b 0.5 always."""
    games = []
    for level, a, b in ((10, -3, -1), (20, -4, 1), (15, -5, 0), (12, -4, 2)):
        games.append(lambda held, level=level, a=a, b=b: level + a * ("a" in held) + b * ("b" in held) + _joint(held))
    return tidy(games)


def _joint(held):
    # ±1/4 moves no main effect.
    return 0.25 if len(held) % 2 == 0 else -0.25


def test_intervals_and_p_values_by_hand(four_seeds):
    table = factorial_effects(four_seeds, ["a", "b"]).set_index("effect")
    by_seed = {"a": [-3, -4, -5, -4], "b": [-1, 1, 0, 2], "a × b": [0.5] * 4}
    assert table["value"].to_dict() == {"a": -4, "b": 0.5, "a × b": 0.5}
    half = stats.t.ppf(0.975, 3) * np.std(by_seed["a"], ddof=1) / 2
    assert table.loc["a", ["ci_low", "ci_high"]].tolist() == pytest.approx([-4 - half, -4 + half])
    assert table.loc["a", "p_value"] == 2 / 2**4
    # Of 16 flips of -1, 1, 0, 2 all but those with a sum of 0 are at least as far from 0 as 2.
    assert table.loc["b", "p_value"] == 12 / 16
    assert table.loc["a", "p_t"] == pytest.approx(stats.ttest_1samp(by_seed["a"], 0).pvalue)
    assert table["p_value"].tolist() == [sign_flip_p(by_seed[effect]) for effect in table.index]
    assert table["p_t"].tolist() == pytest.approx([paired_t_p(by_seed[effect]) for effect in table.index])
    assert table["p_holm"].tolist() == holm(table["p_value"].to_numpy()).tolist() == [0.375, 0.75, 0.375]
    assert table["p_t_holm"].tolist() == holm(table["p_t"].to_numpy()).tolist()
    assert (table["seeds"] == 4).all()
    half = stats.t.ppf(0.975, 3) * np.std(by_seed["b"], ddof=1) / 2
    attributed = shapley(four_seeds, ["a", "b"]).set_index("component")
    assert attributed.loc["b", ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.5, 0.5 - half, 0.5 + half])


@given(factorials())
@settings(deadline=None, max_examples=60)
def test_shapley_is_the_mean_over_all_orders(made):
    factors, games = made
    table = shapley(tidy(games, factors), factors)
    orders = list(permutations(factors))
    for factor in factors:
        added = [
            game(frozenset(o[: o.index(factor) + 1])) - game(frozenset(o[: o.index(factor)])) for game in games for o in orders
        ]
        assert values_of(table)[factor] == pytest.approx(sum(added) / len(added), abs=1e-9)
    total = sum(game(frozenset(factors)) - game(frozenset()) for game in games) / len(games)
    assert table["value"].sum() == pytest.approx(total, abs=1e-9)
    if len(games) > 1 and not table.attrs["total_low"] <= 0 <= table.attrs["total_high"]:
        assert table["share"].sum() == pytest.approx(1)
    else:
        assert table[["share", "share_low", "share_high"]].isna().all(axis=None)


@given(factorials())
@settings(deadline=None, max_examples=40)
def test_what_does_the_same_gets_the_same_and_what_does_nothing_nothing(made):
    factors, games = made
    if len(factors) > 1:
        # Only how many of the first two are held counts.
        alike = [
            lambda held, game=game: game((held - {"b"}) | {"a"} if "b" in held and "a" not in held else held) for game in games
        ]
        table = values_of(shapley(tidy(alike, factors), factors))
        assert table["a"] == pytest.approx(table["b"], abs=1e-9)
        effects = values_of(factorial_effects(tidy(alike, factors), factors), "effect")
        assert effects["a"] == pytest.approx(effects["b"], abs=1e-9)
    idle = [lambda held, game=game: game(held - {"a"}) for game in games]
    table = shapley(tidy(idle, factors), factors)
    assert table.loc[0, "value"] == 0
    if len(games) > 1:
        assert table.loc[0, ["ci_low", "ci_high"]].tolist() == [0, 0]
        effects = factorial_effects(tidy(idle, factors), factors).set_index("effect")
        of_a = effects[[name.startswith("a") for name in effects.index]]
        assert (of_a["value"] == 0).all()
        assert (of_a["p_value"] == 1).all()
        assert (of_a["p_t"] == 1).all()


@given(factorials(), st.randoms(use_true_random=False), st.floats(-100, 100))
@settings(deadline=None, max_examples=40)
def test_order_names_and_level_do_not_matter(made, random, level):
    factors, games = made
    frame = tidy(games, factors)
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = frame.iloc[order][list(reversed(frame.columns))]
    other_factors = list(factors)
    random.shuffle(other_factors)
    renamed = frame.assign(seed=-frame["seed"] * 7, variant=frame["variant"] + " (raw)", extra="x")
    raised = frame.assign(val_loss=frame["val_loss"] + level * (1 + frame["seed"]))
    for function, first in ((shapley, "component"), (factorial_effects, "effect")):
        table = function(frame, factors)
        assert_frame_equal(function(shuffled, factors), table, check_exact=True)
        assert values_of(function(renamed, factors), first) == pytest.approx(values_of(table, first), abs=1e-9)
        assert values_of(function(raised, factors), first) == pytest.approx(values_of(table, first), abs=1e-9)
        turned = function(frame, other_factors)
        if function is shapley:
            assert values_of(turned) == pytest.approx(values_of(table), abs=1e-9)
        else:
            singles = {frozenset(effect.split(" × ")): value for effect, value in values_of(turned, first).items()}
            expected = {frozenset(effect.split(" × ")): value for effect, value in values_of(table, first).items()}
            assert singles == pytest.approx(expected, abs=1e-9)


def rungs(*order):
    steps = {frozenset(order[:count]) for count in range(len(order) + 1)}
    return lambda held: held in steps


def test_a_ladder_is_attributed_in_its_order():
    worth = {frozenset(): 10, frozenset("b"): 8, frozenset("bc"): 9, frozenset("abc"): 4}
    frame = tidy([worth.get, lambda held: worth[held] + 2 * ("c" in held)], NAMES[:3], rungs("b", "c", "a"))
    table = shapley(frame, NAMES[:3])
    assert table["component"].tolist() == ["b", "c", "a"]
    assert table["value"].tolist() == [-2, 2, -5]
    assert table["share"].isna().all(), "the total's interval holds zero"
    assert table.attrs["note"] == "no shares: the 95 % interval of the total, -5 [-18, +7.7], holds zero"
    assert (table["kind"] == "in this order").all()
    assert (table["seeds"] == 2).all()
    assert table["ci_low"].tolist() == pytest.approx([-2, 2 - stats.t.ppf(0.975, 1), -5])
    with pytest.raises(ToolkitError, match="effects cannot be separated: 4 of the 8 combinations of a, b, c have no row"):
        factorial_effects(frame, NAMES[:3])


def test_one_component_is_ladder_and_factorial_in_one():
    table = shapley(tidy([lambda held: 3 - len(held)] * 2, ["a"]), ["a"])
    assert table["kind"].tolist() == ["shapley"]
    assert table[["value", "share", "share_low", "share_high"]].to_numpy().tolist() == [[-1, 1, 1, 1]]


def test_a_long_ladder_needs_no_list_of_all_combinations():
    factors = [f"f{place}" for place in range(40)]
    flags = np.tril(np.ones((41, 40), bool), k=-1)
    frame = pd.DataFrame(flags, columns=factors).assign(variant=range(41), seed=0, val_loss=np.arange(41.0))
    assert shapley(frame, factors)["value"].tolist() == [1.0] * 40
    with pytest.raises(ToolkitError, match="1099511627736 of the 1099511627776 combinations"):
        shapley(frame.drop(index=7), factors)


def test_a_total_of_zero_has_no_shares():
    worth = {"": 0.3, "a": 0.1, "b": 0.7, "c": 0.2, "ab": 0.6, "ac": 0.11, "bc": 0.13, "abc": 0.3}
    table = shapley(tidy([lambda held: worth["".join(sorted(held))]] * 3, NAMES[:3]), NAMES[:3])
    assert table["value"].sum() != 0, "the rounding that must not make shares"
    assert table["share"].isna().all()
    assert table.attrs["note"] == "no shares: the 95 % interval of the total, +0 [+0, +0], holds zero"


def test_shares_have_fiellers_interval_and_none_where_the_total_may_be_zero():
    rng, frame = np.random.default_rng(2), tidy([lambda held: 0.0] * 6)
    noise = rng.normal(0, 0.01, len(frame))
    clear = shapley(frame.assign(val_loss=noise - 0.06 * frame["a"] - 0.02 * frame["b"]), ["a", "b"])
    by_seed = frame.assign(val_loss=noise - 0.06 * frame["a"] - 0.02 * frame["b"]).pivot(index="seed", columns="variant")[
        "val_loss"
    ]
    total = by_seed["a+b"] - by_seed["none"]
    of_a = (by_seed["a"] - by_seed["none"] + by_seed["a+b"] - by_seed["b"]) / 2
    assert clear.loc[0, ["share_low", "share_high"]].tolist() == pytest.approx(ratio_interval(of_a, total))
    assert clear.loc[0, "share"] == pytest.approx(of_a.mean() / total.mean())
    assert clear.attrs["note"] == ""
    assert [clear.attrs[name] for name in ("total_low", "total_high")] == pytest.approx(paired_interval(total))
    shown = 0
    for _ in range(60):
        table = shapley(frame.assign(val_loss=rng.normal(size=len(frame))), ["a", "b"])
        shown += table["share"].notna().any()
        assert (
            table["share"].isna().all() == bool(table.attrs["note"]) == (table.attrs["total_low"] <= 0 <= table.attrs["total_high"])
        )
    assert shown < 9, "3 of 60 are expected, with a standard error of 1.7"


def test_rounding_is_no_evidence():
    # 0.1 + 0.2 is not 0.3 in floating point, by as much and in the same direction for every seed.
    table = factorial_effects(tidy([lambda held: 0.3 + 0.1 * len(held)] * 8), ["a", "b"]).set_index("effect")
    assert table.loc["a × b", ["value", "p_value", "p_t"]].tolist() == [0, 1, 1]
    assert table.loc["a", "p_value"] == 2 / 2**8


def test_intervals_cover():
    rng = np.random.default_rng(1)
    true, covered = np.array([-0.02, 0.01]), 0
    frame = tidy([lambda held: 0.0] * 6)
    effects = frame[["a", "b"]].to_numpy() @ true
    for _ in range(500):
        level = rng.normal(0, 0.05, 6)[frame["seed"]]
        table = shapley(frame.assign(val_loss=level + effects + rng.normal(0, 0.005, len(frame))), ["a", "b"])
        covered += ((table["ci_low"] <= true) & (true <= table["ci_high"])).sum()
    # Four Monte-Carlo errors about 95 %: nearly independent, as the two values share their cells with opposite signs.
    assert 0.92 < covered / 1000 < 0.98


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        # Add-one-in, leave-one-out, and a ladder with a rung too many or too few.
        (lambda held: len(held) < 2, r"4 of the 8 combinations of a, b, c have no row \(a \+ b, a \+ c, b \+ c, a \+ b \+ c\)"),
        (
            lambda held: len(held) > 1,
            r"4 of the 8 .* \(none of them, a, b, c\); a factorial design has all of them; a ladder, at least",
        ),
        (lambda held: rungs("a", "b", "c")(held) or held == {"b"}, r"3 of the 8 .* \(c, a \+ c, b \+ c\)"),
        (lambda held: rungs("a", "b", "c")(held) and held != {"a"}, r"5 of the 8 .* \(a, b, c, a \+ c, …\)"),
        (lambda held: held in ({"a"}, {"a", "b"}, {"a", "b", "c"}, {"c"}), r"4 of the 8"),
        (lambda held: held in (set(), {"a"}, {"b", "c"}, {"a", "b", "c"}), r"4 of the 8"),
    ],
)
def test_neither_all_combinations_nor_a_ladder(keep, message):
    with pytest.raises(ToolkitError, match=message):
        shapley(tidy([len], NAMES[:3], keep), NAMES[:3])
    with pytest.raises(ToolkitError, match="cannot be separated"):
        factorial_effects(tidy([len], NAMES[:3], keep), NAMES[:3])


def test_every_mistake_is_one_sentence(four_seeds):
    def refuses(frame, message, factors=("a", "b"), metric="val_loss"):
        for function in (shapley, factorial_effects):
            with pytest.raises(ToolkitError, match=message) as caught:
                function(frame, factors, metric)
            assert "\n" not in str(caught.value)

    refuses(four_seeds, "factors are 'ab'", "ab")
    refuses(four_seeds, "each once", ["a", "a"])
    refuses(four_seeds, "factors are ", [])
    refuses(four_seeds, "no column 'fid', 'c'", ["a", "c"], "fid")
    refuses(four_seeds.assign(b=four_seeds["b"].astype(object).where(four_seeds["seed"] > 0)), "column b must be true")
    refuses(four_seeds.assign(b=2), "column b must be true")
    refuses(four_seeds.assign(val_loss="0.1"), "does not hold numbers")
    refuses(pd.concat([four_seeds, four_seeds.iloc[[5]]]), "variant b has two rows for seed 1")
    matched = four_seeds[four_seeds["variant"] == "b"].assign(variant="b flop-matched")
    refuses(pd.concat([four_seeds, matched]), "variants b and b flop-matched both have b; keep the rows of one block")
    refuses(four_seeds.assign(variant="x"), "variant x has different components in some rows than in others")
    refuses(
        four_seeds.assign(val_loss=four_seeds["val_loss"].where(four_seeds["variant"] != "a")),
        "no seed has val_loss both for a and for",
    )
    refuses(four_seeds.iloc[:0], "4 of the 4 combinations")


def test_flags_may_be_numbers_or_nullable(four_seeds):
    table = shapley(four_seeds, ["a", "b"])
    assert_frame_equal(shapley(four_seeds.astype({"a": int, "b": "boolean"}), ["a", "b"]), table)
