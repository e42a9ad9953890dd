"""Missing cells: what the others determine, by least squares, with intervals that cover."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from analysis.ablation.attribution import factorial_effects, shapley
from space import ToolkitError
from tests.analysis.ablation.test_attribution import NAMES, factorials, tidy


@pytest.fixture
def four_seeds():
    """A factorial of a and b in four seeds."""
    return tidy([lambda held, seed=seed: seed - 3 * ("a" in held) - seed * ("b" in held) + len(held) ** 2 for seed in range(4)])


def without(frame, *missing):
    """The frame without some cells, by seed and variant."""
    return frame[[cell not in missing for cell in zip(frame["seed"], frame["variant"], strict=True)]]


def by_regression(frame, factors, contrast):
    """A contrast of the combinations' effects, by least squares on indicators of seeds and combinations."""
    known = frame[np.isfinite(frame["val_loss"])]
    variants = list(frame["variant"].unique())
    design = pd.concat([pd.get_dummies(known[name]).astype(float) for name in ("seed", "variant")], axis=1)
    effects = np.linalg.lstsq(design.to_numpy(), known["val_loss"].to_numpy(), rcond=None)[0][-len(variants) :]
    order = pd.get_dummies(known["variant"]).columns
    weights = frame.drop_duplicates("variant").set_index("variant")[list(factors)].apply(contrast, axis=1)
    return float(effects @ weights[order].to_numpy())


ONE_EACH = [(0, "none"), (1, "a+b"), (2, "a"), (3, "b+c"), (4, "c"), (5, "a+b+c")]
"""Six of 48 cells, one in each seed."""


@pytest.fixture
def noisy_factorial():
    rng = np.random.default_rng(3)
    frame = tidy([lambda held: 0.0] * 6, NAMES[:3])
    cells = frame[["a", "b", "c"]].to_numpy() @ np.array([-0.3, 0.1, 0.02]) - 0.05 * (frame["a"] & frame["b"])
    return frame.assign(val_loss=1 + cells + rng.normal(0, 0.5, 6)[frame["seed"]] + rng.normal(0, 0.03, len(frame)))


@pytest.mark.parametrize("gap", [math.nan, math.inf, None])
def test_six_missing_cells_of_48_leave_all_effects_determined(noisy_factorial, gap):
    factors = NAMES[:3]
    if gap is None:
        frame = without(noisy_factorial, *ONE_EACH)
    else:
        cells = list(zip(noisy_factorial["seed"], noisy_factorial["variant"], strict=True))
        frame = noisy_factorial.assign(val_loss=noisy_factorial["val_loss"].where([cell not in ONE_EACH for cell in cells], gap))
    effects, complete = (factorial_effects(one, factors).set_index("effect") for one in (frame, noisy_factorial))
    assert (effects["seeds"] == 6).all()
    assert effects.loc["a", "value"] == pytest.approx(by_regression(frame, factors, lambda has: (2 * has["a"] - 1) / 4))
    assert effects.loc["a × b", "value"] == pytest.approx(
        by_regression(frame, factors, lambda has: (2 * has["a"] - 1) * (2 * has["b"] - 1) / 4)
    )
    assert (effects["value"] - complete["value"]).abs().max() < 0.02, "seeds differ by 0.5"
    widths = (effects["ci_high"] - effects["ci_low"]) / (complete["ci_high"] - complete["ci_low"])
    assert 0.7 < widths.median() < 1.6
    assert ((effects["ci_low"] + effects["ci_high"]) / 2).tolist() == pytest.approx(effects["value"].tolist())
    assert effects[["p_value", "p_holm", "p_t", "p_t_holm"]].notna().all(axis=None)
    # An interval that just holds zero is a p-value of 0.05.
    at_zero = frame.assign(val_loss=frame["val_loss"] - frame["c"] * effects.loc["c", "ci_low"])
    assert factorial_effects(at_zero, factors).set_index("effect").loc["c", "p_t"] == pytest.approx(0.05)
    table = shapley(frame, factors)
    assert table["value"].sum() == pytest.approx(table.attrs["total"])
    assert table["share"].sum() == pytest.approx(1)
    assert ((table["share_low"] < table["share"]) & (table["share"] < table["share_high"])).all()


@given(factorials(most=3), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_without_noise_missing_cells_change_nothing(made, random):
    factors, games = made
    frame = tidy([lambda held, level=level: games[0](held) + 10 * level for level in range(4)], factors)
    # A whole seed links all combinations, and two of them do so without each other.
    holes = frame[(frame["seed"] < 2) & np.array([random.random() < 0.4 for _ in range(len(frame))])]
    spoiled = frame.drop(index=holes.index)
    for function in (shapley, factorial_effects):
        table, complete = function(spoiled, factors), function(frame, factors)
        assert table["value"].tolist() == pytest.approx(complete["value"].tolist(), abs=1e-9)
        assert table["ci_low"].tolist() == pytest.approx(complete["ci_low"].tolist(), abs=1e-9)
        assert table["ci_high"].tolist() == pytest.approx(complete["ci_high"].tolist(), abs=1e-9)


def test_a_seed_with_one_cell_tells_nothing(four_seeds):
    more = pd.concat([four_seeds, four_seeds[four_seeds["seed"] == 0].assign(seed=9, val_loss=[math.nan, 3.0, math.inf, math.nan])])
    for function in (shapley, factorial_effects):
        assert_frame_equal(function(more, ["a", "b"]), function(four_seeds, ["a", "b"]))


def test_an_effect_that_hangs_on_one_seed_has_no_interval(four_seeds):
    frame = without(four_seeds, *[(seed, "a+b") for seed in (0, 1, 2)])
    effects = factorial_effects(frame, ["a", "b"])
    assert effects["value"].notna().all()
    assert effects[["ci_low", "ci_high", "p_value", "p_holm", "p_t", "p_t_holm"]].isna().all(axis=None)
    table = shapley(frame, ["a", "b"])
    assert table[["ci_low", "share", "share_low"]].isna().all(axis=None)
    assert table.attrs["note"].startswith("no shares: ")


def test_cells_that_no_seed_links_are_named(four_seeds):
    halves = four_seeds[(four_seeds["seed"] < 2) == four_seeds["a"]]
    for function in (shapley, factorial_effects):
        with pytest.raises(ToolkitError, match=r"no seed has val_loss both for one of a, a \+ b and for one of the other comb"):
            function(halves, ["a", "b"])


@pytest.mark.slow
def test_intervals_cover_where_cells_are_missing():
    rng, effects = np.random.default_rng(8), {"a": -0.02, "b": 0.01}
    frame = without(tidy([lambda held: 0.0] * 6, NAMES[:3]), *ONE_EACH)
    means = frame[["a", "b"]].to_numpy() @ np.array(list(effects.values()))
    covered = np.zeros(6)
    for _ in range(500):
        noise = rng.normal(0, 0.05, 6)[frame["seed"]] + rng.normal(0, 0.005, len(frame)) * np.where(frame["a"], 2.0, 0.5)
        table = factorial_effects(frame.assign(val_loss=means + noise), NAMES[:3])
        true = np.array([effects.get(effect, 0.0) for effect in table["effect"]])
        covered += (table["ci_low"] <= true) & (true <= table["ci_high"])
    # 95 % of 500 are 475, with a standard error of 5.
    assert ((covered > 458) & (covered < 492)).all(), covered
