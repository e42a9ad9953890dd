"""Scaling fits against curves that are known, and against data that bear none."""

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

import analysis.scaling.fit
import analysis.scaling.power_law
from analysis.scaling.fit import scaling_fit
from analysis.scaling.power_law import fit_law
from nas.study.metrics import METRICS
from space.errors import ToolkitError

LAWS = {"DiT": (0.3, 0.3, 0.5), "U-DiT": (0.25, 0.45, 0.5)}


def curves(seeds=6, budgets=6, laws=LAWS, of_seed=0.005, of_run=0.005, of_budget=0.0, draw=0, metric="val_loss"):
    """Runs of known laws at budgets 1, 2, 4, …: each noise is relative, that of a seed common to all its runs."""
    rng = np.random.default_rng(draw)
    compute = 2.0 ** np.arange(budgets)
    common = of_seed * rng.standard_normal((seeds, 1))
    frames = []
    for family, (E, A, alpha) in laws.items():
        noise = common + of_run * rng.standard_normal((seeds, budgets)) + of_budget * rng.standard_normal(budgets)
        values = pd.DataFrame((E + A * compute**-alpha) * (1 + noise), columns=compute).rename_axis(index="seed")
        frames.append(
            values.melt(var_name="train_tflops", value_name=metric, ignore_index=False).reset_index().assign(family=family)
        )
    return pd.concat(frames, ignore_index=True)


def of_means(means, metric="val_loss", spread=0.001, seeds=4):
    """Runs whose means are given, one a budget 1, 2, 4, …"""
    rng = np.random.default_rng(0)
    noise = spread * rng.standard_normal((seeds, len(means)))
    rows = [
        (seed, 2.0**place, mean + noise[seed, place] - noise[:, place].mean())
        for seed in range(seeds)
        for place, mean in enumerate(means)
    ]
    return pd.DataFrame(rows, columns=["seed", "train_tflops", metric])


def held(table, laws=LAWS):
    """Whether the intervals of E, A and alpha hold the truth, one row a family."""
    return [
        [
            row[f"{name}_low"] <= truth <= row[f"{name}_high"]
            for name, truth in zip(("E", "A", "alpha"), laws[row["family"]], strict=True)
        ]
        for _, row in table.iterrows()
    ]


def test_doctests():
    for module in (analysis.scaling.power_law, analysis.scaling.fit):
        assert doctest.testmod(module).failed == 0


def test_curves_without_noise_are_found_exactly():
    table = scaling_fit(curves(of_seed=0, of_run=0)).table
    assert table["family"].tolist() == ["DiT", "U-DiT"]
    for _, row in table.iterrows():
        assert row[["E", "A", "alpha"]].tolist() == pytest.approx(LAWS[row["family"]], rel=1e-4)
        assert row["r2"] == pytest.approx(1)
        assert row["error_percent"] == pytest.approx(0, abs=1e-3)
        assert row[["problem", "held_out_problem"]].tolist() == ["", ""]


def test_noisy_curves_are_found_within_their_intervals():
    table = scaling_fit(curves()).table
    assert np.all(held(table))
    assert ((table["E_high"] - table["E_low"]) < 0.1).all()
    assert (table["budgets"] == 6).all()
    assert (table["seeds"] == 6).all()


@pytest.mark.parametrize("draw", range(5))
def test_the_fit_is_the_best_there_is(draw):
    """Never worse than a general optimiser's best of many starts, bounds included."""
    rng = np.random.default_rng(draw)
    compute, weights = np.geomspace(1, 500, 6), rng.uniform(0.5, 2, 6)
    means = np.sort(rng.uniform(0.2, 1, (4, 6)))[:, ::-1]
    law = fit_law(means, compute, weights, sign=1, limit=0.0)
    for row, own in zip(means, ((law.at(compute) - means) * weights) ** 2, strict=True):

        def off(p, row=row):
            return (p[0] + p[1] * (compute / law.unit) ** -p[2] - row) * weights

        bounds = ([0, 0, 0.01], [np.inf, np.inf, 3])
        other = min(2 * least_squares(off, (0.1, 0.3, alpha), bounds=bounds).cost for alpha in (0.05, 0.3, 1, 2.5))
        assert own.sum() <= other * (1 + 1e-6)


def many(repeats, **noise):
    """As many independent data sets of both laws, as families of one frame; and their laws."""
    frames = [curves(draw=draw, **noise) for draw in range(repeats)]
    named = [frame.assign(family=frame["family"] + f" {draw}") for draw, frame in enumerate(frames)]
    laws = {f"{family} {draw}": law for family, law in LAWS.items() for draw in range(repeats)}
    return pd.concat(named, ignore_index=True), laws


NOISE = pytest.mark.parametrize("noise", [{}, {"of_budget": 0.005}, {"seeds": 3}, {"seeds": 1, "of_seed": 0}], ids=str)


@NOISE
def test_intervals_cover(noise):
    """Seeds drawn with replacement alone would cover 86 %, and 44 % where the means miss the law by as much as the seeds do."""
    frame, laws = many(75, **noise)
    found = np.mean(held(scaling_fit(frame, held_out=False, resamples=300).table, laws), axis=0)
    assert (found > 0.89).all(), found


@pytest.mark.slow
@NOISE
def test_intervals_cover_at_their_level(noise):
    frame, laws = many(400, **noise)
    table = scaling_fit(frame, resamples=500).table
    found = [*np.mean(held(table, laws), axis=0), table["inside"].mean()]
    assert (np.abs(np.subtract(found, 0.955)) < 0.035).all(), found


def test_whether_residuals_are_relative_is_asked_of_the_table_of_metrics(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [(s, c, (0.1 + c**-0.5) * (1 + rng.normal(0, 0.05))) for s in range(4) for c in (1, 2, 4, 8, 16)]
    frame = pd.DataFrame(rows, columns=["seed", "train_tflops", "val_loss"])
    frame["val_loss_bin_0"] = frame["kid"] = frame["fid"] = frame["val_loss"]
    E = {name: scaling_fit(frame, name).table["E"][0] for name in ("val_loss", "val_loss_bin_0", "fid", "kid")}
    assert E["val_loss"] == E["val_loss_bin_0"] == E["fid"]
    assert E["kid"] != E["fid"], "what can be below 0 has no relative residuals"
    monkeypatch.setitem(METRICS, "fid", METRICS["kid"])
    assert scaling_fit(frame, "fid").table["E"][0] == E["kid"]


def test_the_order_of_rows_does_not_matter():
    frame = curves()
    shuffled = frame.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(scaling_fit(frame).table, scaling_fit(shuffled).table)


def test_units_do_not_matter():
    frame = curves()
    other = frame.assign(train_tflops=1000 * frame["train_tflops"], val_loss=10 * frame["val_loss"])
    one, two = scaling_fit(frame).table, scaling_fit(other).table
    for name in ("alpha", "alpha_low", "alpha_high", "error_percent"):
        assert two[name].tolist() == pytest.approx(one[name].tolist(), rel=1e-6)
    assert two["E_low"].tolist() == pytest.approx((10 * one["E_low"]).tolist(), rel=1e-6)
    assert two["A"].tolist() == pytest.approx((10 * one["A"] * 1000 ** one["alpha"]).tolist(), rel=1e-6)


def test_seeds_are_drawn_for_the_whole_curve():
    """What all budgets of a seed have in common moves E and A and leaves alpha alone."""
    common = scaling_fit(curves(of_seed=0.05, of_run=0.0003)).table
    apart = scaling_fit(curves(of_seed=0, of_run=0.03)).table
    width = [(table["alpha_high"] - table["alpha_low"]).max() for table in (common, apart)]
    assert width[0] < 0.1 * width[1]
    assert ((common["E_high"] - common["E_low"]) / common["E"] > 0.03).all()


@pytest.mark.parametrize(("metric", "E"), [("precision", 0.7), ("inception_score", 150.0)])
def test_metrics_where_higher_is_better_rise(metric, E):
    frame = curves(laws={"DiT": (E, -E / 2, 0.5)}, metric=metric)
    row = scaling_fit(frame, metric).table.iloc[0]
    assert row["E_low"] < E < row["E_high"]
    assert row["A_low"] < E / 2 < row["A_high"]
    assert row["alpha_low"] < 0.5 < row["alpha_high"]
    assert row["inside"]


def test_the_held_out_budget_says_how_far_off_its_prediction_is():
    frame = curves(of_seed=0.001, of_run=0.001)
    largest = frame["train_tflops"] == 32
    as_it_is = scaling_fit(frame).table
    worse = scaling_fit(frame.assign(val_loss=frame["val_loss"] * np.where(largest, 1.1, 1))).table
    assert as_it_is["inside"].all()
    assert (as_it_is["held_out"] == 32).all()
    assert (as_it_is["predicted_low"] < as_it_is["predicted"]).all()
    assert (as_it_is["predicted"] < as_it_is["predicted_high"]).all()
    assert worse["predicted"].tolist() == as_it_is["predicted"].tolist(), "the held-out value has no part in it"
    assert not worse["inside"].any()
    assert worse["error_percent"].tolist() == pytest.approx([-100 / 11] * 2, abs=1), "predicted lower than what came out"
    assert worse["error"].tolist() == pytest.approx((worse["predicted"] - worse["observed"]).tolist())
    assert scaling_fit(frame, held_out=False).table["predicted"].isna().all()


def test_predictions_hold_the_observed():
    inside = scaling_fit(many(60)[0], resamples=300).table["inside"]
    assert 0.91 < inside.mean() < 1


def test_a_prediction_takes_five_budgets():
    row = scaling_fit(curves(budgets=4)).table.iloc[0]
    assert row["problem"] == ""
    assert row["held_out_problem"] == "4 budgets, and a prediction of the largest needs at least 5"
    assert np.isnan(row["predicted"])
    assert "1 degree of freedom" in row["note"]


@pytest.mark.parametrize(
    ("means", "metric", "problem"),
    [
        ([0.9, 0.7, 0.6], "val_loss", "3 budgets, and a fit needs at least 4"),
        ([0.5], "val_loss", "1 budget, and a fit needs at least 4"),
        ([0.5, 0.5, 0.5, 0.5, 0.5], "val_loss", "no improvement with train_tflops is visible above the noise"),
        ([0.5, 0.52, 0.54, 0.56, 0.58], "val_loss", "no improvement"),
        ([0.5, 0.48, 0.46, 0.44, 0.42], "precision", "no improvement"),
        ([0.9, 0.5, 0.5, 0.5, 0.5], "val_loss", "α is at its upper bound 3: all improvement lies between the smallest budgets"),
        ([10.0, 20.0, 30.0, 40.0, 50.0], "inception_score", "α is at its lower bound 0.01: a logarithm of train_tflops fits"),
    ],
)
def test_data_that_bear_no_line_say_so(means, metric, problem):
    fit = scaling_fit(of_means(means, metric), metric)
    row = fit.table.iloc[0]
    assert row["problem"].startswith(problem)
    assert row[["E", "E_low", "A", "alpha", "alpha_high", "r2"]].isna().all()
    assert row["budgets"] == len(means)
    with pytest.raises(ToolkitError, match="family all has no curve to draw or compare: "):
        _ = fit.family("all").curves


@pytest.mark.parametrize(
    ("means", "metric", "bound"), [([0.9, 0.6, 0.39, 0.25, 0.155], "val_loss", 0), ([0.1, 0.4, 0.61, 0.75, 0.845], "precision", 1)]
)
def test_a_curve_whose_floor_is_not_seen_says_so(means, metric, bound):
    row = scaling_fit(of_means(means, metric), metric).table.iloc[0]
    assert row["problem"] == row["held_out_problem"] == ""
    assert row["E"] == bound
    assert row["error_percent"] == pytest.approx(0, abs=20)
    floor = f"E is at its bound {bound}: these budgets do not show where the curve levels off"
    assert f"{floor}, so beyond them the line is too optimistic" in row["note"]


def test_noise_alone_is_seldom_a_curve():
    frame, _ = many(60, laws={"DiT": (0.5, 0.0, 1.0)})
    problems = scaling_fit(frame, held_out=False, resamples=300).table["problem"]
    assert len(problems) == 60
    assert (problems == "").mean() < 0.05


def test_published_numbers_of_one_seed():
    frame = curves(seeds=1, of_seed=0, of_run=0.003, laws={"DiT": LAWS["DiT"]}).drop(columns=["seed", "family"])
    row = scaling_fit(frame).table.iloc[0]
    assert row["family"] == "all"
    assert row["seeds"] == 1
    assert row["E_low"] < 0.3 < row["E_high"]
    assert row["note"] == "one seed per budget: the intervals rest on the misfit only, with 3 degrees of freedom"


def test_missing_values_are_left_out():
    frame = curves()
    gone = frame.index[(frame["family"] == "DiT") & (frame["seed"] == 2) & (frame["train_tflops"] >= 16)]
    patchy = frame.assign(val_loss=frame["val_loss"].mask(frame.index.isin(gone)))
    table = scaling_fit(patchy).table
    assert table["note"].tolist() == ["2 missing values left out", ""]
    assert np.all(held(table))
    points = scaling_fit(patchy).family("DiT").points
    assert points["seeds"].tolist() == [6, 6, 6, 6, 5, 5]
    pd.testing.assert_frame_equal(table, scaling_fit(frame.drop(index=gone)).table.assign(note=table["note"]))
    again = pd.concat([frame.assign(val_loss=np.nan), frame])
    assert scaling_fit(again).table["E"].tolist() == scaling_fit(frame).table["E"].tolist(), "a seed that was trained again"
    empty = scaling_fit(frame.assign(val_loss=frame["val_loss"].mask(frame["family"] == "DiT"))).table
    assert empty["problem"].tolist() == ["0 budgets, and a fit needs at least 4", ""]


def test_a_budget_of_one_seed_has_the_noise_of_the_others():
    frame = curves(laws={"DiT": LAWS["DiT"]})
    once = frame[(frame["train_tflops"] < 32) | (frame["seed"] == 0)]
    all_seeds, one_seed = scaling_fit(frame).table.iloc[0], scaling_fit(once).table.iloc[0]
    assert one_seed["note"] == "one seed at 32: its spread is taken from the other budgets"
    width = [row["predicted_high"] - row["predicted_low"] for row in (all_seeds, one_seed)]
    assert 1.3 * width[0] < width[1] < 5 * width[0]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"metric": "elegance"}, "elegance"),
        ({}, {"metric": "fid"}, "the frame has no column 'fid'; known here: seed, train_tflops, val_loss, family"),
        ({}, {"compute": "gflops"}, "the frame has no column 'gflops'"),
        ({}, {"family": "variant"}, "the frame has no column 'variant'"),
        ({}, {"resamples": 10}, "10 resamples are too few for a 95 % interval; take at least 100"),
        ({"val_loss": np.nan}, {}, "no row of the frame has a value of val_loss"),
        ({"val_loss": np.inf}, {}, "a value of val_loss is infinite; leave it empty where training diverged"),
        ({"val_loss": "low"}, {}, "column 'val_loss' does not hold numbers"),
        ({"train_tflops": 0}, {}, "train_tflops of a row is 0.0; compute is a positive number"),
        ({"train_tflops": np.nan}, {}, "train_tflops of a row is nan; compute is a positive number"),
        ({"seed": np.nan}, {}, "a row with a value of val_loss has no seed; fill it in or drop the row"),
        ({"seed": 0}, {}, "family DiT has two values of val_loss at train_tflops 1 for seed 0; name the column that"),
    ],
)
def test_mistakes_are_told_in_a_sentence(change, arguments, message):
    with pytest.raises(ToolkitError) as caught:
        scaling_fit(curves().assign(**change), **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_family_is_asked_for_by_its_name():
    with pytest.raises(ToolkitError, match="no family 'SiT' in the fit of val_loss; there are: DiT, U-DiT"):
        scaling_fit(curves()).family("SiT")
