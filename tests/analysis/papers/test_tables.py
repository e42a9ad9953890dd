"""Tables and figures of the papers' published numbers, and the correlation that DiT prints."""

import doctest
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis.papers.plots
import analysis.papers.tables
from analysis.papers.plots import plot_fid_by_steps, plot_gflops_fid
from analysis.papers.tables import (
    SINGLE_RUN,
    correlation,
    fid_by_steps,
    fid_by_steps_fit,
    gflops_fid,
    paper_differences,
    paper_table,
)
from space import ToolkitError
from space.published import correlations, published_table, table_names

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", table_names())
def test_a_table_as_a_frame_has_the_printed_numbers(name):
    frame, rows = paper_table(name), published_table(name).rows
    assert frame["label"].tolist() == [row.label for row in rows]
    for column in ("gflops", "params_m", "steps_per_s", "train_steps_k", "cfg", "fid", "sfid", "is", "precision", "recall"):
        for value, row in zip(frame[column], rows, strict=True):
            text = row.scores.get(column, "") if column not in row.__dataclass_fields__ else getattr(row, column)
            assert math.isnan(value) if text == "" else value == float(text), column
    assert frame["source"].tolist() == [row.source for row in rows]
    assert (frame["n"] == 1).all()
    assert frame.attrs == {"title": published_table(name).title, "note": SINGLE_RUN}
    assert not {"sd", "ci_low", "ci_high", "p_value"} & set(frame)


def test_the_component_table_step_by_step():
    frame = paper_differences("udit_table9", baseline="DiT-UNet")
    assert frame["difference"].tolist() == [13.52, 0.0, -4.05, -6.52, -8.84, -14.18, -17.77]
    assert frame["step"].tolist()[1:] == [-13.52, -4.05, -2.47, -2.32, -5.34, -3.59]
    assert frame["step"][2:].sum() == pytest.approx(frame["difference"].iloc[-1])
    assert frame["gflops_ratio"].iloc[2] == pytest.approx(0.91 / 1.40)


def test_rows_without_the_metric_are_no_steps():
    assert "ordinary" not in " ".join(paper_differences("udit_table7", baseline="Pixel Shuffle (PS)")["label"])
    sfid = paper_differences("udit_table2", baseline="DiT-XL/2*", metric="sfid")
    assert len(sfid) == 8
    assert sfid["step"].notna().sum() == 7
    with pytest.raises(ToolkitError, match=r"U-DiT Table 2 prints no sfid for 'DiT-XL/2 \[28\]', so it cannot be the baseline"):
        paper_differences("udit_table2", baseline="DiT-XL/2 [28]", metric="sfid")
    with pytest.raises(ToolkitError, match="no metric 'kid'"):
        paper_differences("udit_table2", baseline="DiT-XL/2*", metric="kid")


def test_the_correlation_that_dit_prints():
    """Of log GFLOPs and FID on the twelve models of Table 4; no other form rounds to it."""
    twelve = gflops_fid().query("family == 'DiT'")
    assert len(twelve) == 12
    printed = correlations()["fid"]
    found = correlation(twelve, "gflops", "fid")
    assert found == pytest.approx(stats.pearsonr(np.log10(twelve["gflops"]), twelve["fid"]).statistic)
    assert f"{found:.2f}" == printed == "-0.93"
    others = {
        "neither": correlation(twelve, "gflops", "fid", log_x=False),
        "both": correlation(twelve, "gflops", "fid", log_y=True),
        "log_y": correlation(twelve, "gflops", "fid", log_x=False, log_y=True),
        "ranks": float(stats.spearmanr(twelve["gflops"], twelve["fid"]).statistic),
    }
    assert {name: round(value, 3) for name, value in others.items()} == {
        **{"neither": -0.725, "both": -0.936, "log_y": -0.876, "ranks": -0.916},
    }
    assert printed not in [f"{value:.2f}" for value in others.values()]


def test_what_a_correlation_needs():
    frame = pd.DataFrame({"gflops": [1.0, 2.0, 4.0, 8.0], "fid": [3.0, 2.0, 1.0, np.nan]})
    assert correlation(frame, "gflops", "fid") == pytest.approx(-1)
    with pytest.raises(ToolkitError, match="no column 'gflop'; did you mean 'gflops'?"):
        correlation(frame, "gflop", "fid")
    with pytest.raises(ToolkitError, match="needs three rows that have both, but there are 2"):
        correlation(frame[1:], "gflops", "fid")
    with pytest.raises(ToolkitError, match="column 'gflops' has values that are not positive"):
        correlation(frame.assign(gflops=[0.0, 1.0, 2.0, 3.0]), "gflops", "fid")


def test_points_of_the_gflops_figure():
    printed, all_points = gflops_fid(), gflops_fid(digitised=True)
    assert not printed["digitised"].any()
    assert all_points["digitised"].sum() == 18
    assert set(all_points["family"]) == set(printed["family"]) == {"DiT", "U-DiT", "SiT", "SiT-LLaMA"}
    assert printed[printed["family"] == "SiT-LLaMA"]["fid"].tolist() == [53.90, 29.53, 14.32, 12.20]
    measured = all_points[all_points["digitised"] & (all_points["family"] != "DiT")]
    for _, point in measured.iterrows():  # U-DiT's and the SiT families' points are the printed ones within the measurement
        family = printed[printed["family"] == point["family"]]
        assert (family["fid"] - point["fid"]).abs().min() <= 0.3


def test_curves_over_steps():
    points = fid_by_steps()
    assert not points.duplicated(["model", "train_steps_k"]).any()
    b = points[points["model"] == "U-DiT-B"]
    assert b["train_steps_k"].tolist() == [200, 400, 600, 800, 1000]
    assert not b["digitised"].any()
    xl = points[points["model"] == "DiT-XL/2"].set_index("train_steps_k")
    assert xl["fid"].to_dict() == {200: 30.0, 400: 19.47, 600: 17.9, 800: 15.9, 2352: 10.67, 7000: 9.62}
    assert xl["digitised"].to_dict() == {200: True, 400: False, 600: True, 800: True, 2352: False, 7000: False}
    assert set(points[points["digitised"]]["source"].str[:9]) == {"digitised"}
    # Branch by branch U-DiT-B's forward costs 26.55 GFLOPs (recomputed from the authors' code), and a step about three forwards.
    assert b["train_tflops"].iloc[0] == pytest.approx(3 * 26.555e9 * 256 * 200_000 / 1e12, rel=1e-3)
    assert xl["train_tflops"][400] == pytest.approx(3 * 118.68e9 * 256 * 400_000 / 1e12, rel=2e-3)


def test_the_fit_goes_through_the_printed_numbers():
    fit = fid_by_steps_fit().table.set_index("family")
    points = fid_by_steps()
    for model in ("U-DiT-B", "U-DiT-L"):
        row, mine = fit.loc[model], points[points["model"] == model]
        assert row["problem"] == ""
        assert (row["budgets"], row["seeds"]) == (5, 1)
        assert "one seed" in row["note"]
        fitted = row["E"] + row["A"] * mine["train_tflops"] ** -row["alpha"]
        assert np.abs(fitted / mine["fid"] - 1).max() < 0.01
        assert row["observed"] == mine["fid"].iloc[-1]
        assert abs(row["error_percent"]) < 1.5
    assert fit.loc[["DiT-B/2", "DiT-L/2", "DiT-XL/2"], "problem"].str.contains("a fit needs at least 4").all()
    assert fid_by_steps_fit(digitised=True).table.set_index("family").loc["DiT-XL/2", "budgets"] == 6


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_gflops_figure_draws_every_point():
    ax = plot_gflops_fid()
    drawn = sum(len(collection.get_offsets()) for collection in ax.collections)
    assert drawn == len(gflops_fid(digitised=True)) == 41
    assert "DiT (correlation with log GFLOPs −0.930, printed −0.93)" in texts(ax)
    assert "measured from U-DiT's Figure 1 (±0.3 FID)" in texts(ax)
    hollow = [c for c in ax.collections if not len(c.get_facecolors())]
    assert sum(len(c.get_offsets()) for c in hollow) == 18


def test_a_figure_without_digitised_points_says_nothing_of_them():
    _, given = plt.subplots()
    ax = plot_gflops_fid(given, digitised=False)
    assert ax is given
    assert sum(len(collection.get_offsets()) for collection in ax.collections) == 23
    assert not [text for text in texts(ax) if "measured" in text]


def test_the_steps_figure_draws_every_point():
    ax = plot_fid_by_steps()
    assert sum(len(collection.get_offsets()) for collection in ax.collections) == len(fid_by_steps())
    hollow = [c for c in ax.collections if len(c.get_facecolors()) and (c.get_facecolors() == 1).all()]
    assert sum(len(c.get_offsets()) for c in hollow) == 9
    assert [text for text in texts(ax) if text.startswith("U-DiT-L")] == ["U-DiT-L (85 GFLOPs), fit 6.3 + A·C^(−1.23)"]
    curve = next(line for line in ax.lines if line.get_color() == "#cb181d").get_xydata()
    for steps, fid in ((200, 15.26), (1000, 7.54)):
        assert np.interp(steps, *curve.T) == pytest.approx(fid, rel=0.02)


@pytest.mark.parametrize("module", [analysis.papers.tables, analysis.papers.plots])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
