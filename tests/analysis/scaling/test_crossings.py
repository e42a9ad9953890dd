"""Where scaling curves cross, which is better where, and the figure of both."""

import doctest
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import analysis.scaling.crossings
import analysis.scaling.plots
from analysis.scaling.crossings import probability_better, scaling_crossover
from analysis.scaling.fit import scaling_fit
from analysis.scaling.plots import plot_scaling_fit, scaling_info
from space.errors import ToolkitError
from tests.analysis.scaling.test_fit import LAWS, curves, many, of_means
from tests.analysis.scaling.test_misfit import broken

MEET = 9.0
"""Of LAWS: 0.05 = 0.15·C^(−1/2)."""


@pytest.fixture(scope="module")
def fit():
    return scaling_fit(curves())


@pytest.fixture(scope="module")
def mixed():
    """A family that is fitted, one of three budgets and one that does not improve."""
    flat = of_means([0.5] * 6).assign(family="flat")
    short = curves(laws={"short": (0.3, 0.2, 0.5)}, budgets=3)
    return scaling_fit(pd.concat([curves(laws={"DiT": LAWS["DiT"]}), flat, short], ignore_index=True))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_doctests():
    for module in (analysis.scaling.crossings, analysis.scaling.plots):
        assert doctest.testmod(module).failed == 0


def test_known_curves_meet_where_they_do():
    found = scaling_crossover(scaling_fit(curves(of_seed=0, of_run=0)), "DiT", "U-DiT")
    assert found.compute == pytest.approx(MEET, rel=1e-3)
    assert found.better_after == "U-DiT"
    assert found.share_without == 0
    assert found.text.startswith("DiT and U-DiT cross at 9 train_tflops (95 % interval 9 to 9), beyond which U-DiT is better")


def test_the_interval_holds_the_true_crossing(fit):
    found = scaling_crossover(fit, "DiT", "U-DiT")
    assert 6 < found.low < MEET < found.high < 14
    turned = scaling_crossover(fit, "U-DiT", "DiT")
    assert (turned.compute, turned.low, turned.high) == pytest.approx((found.compute, found.low, found.high))
    assert turned.better_after == "U-DiT"


def test_intervals_of_crossings_cover():
    fit = scaling_fit(many(60)[0], held_out=False, resamples=300)
    found = [scaling_crossover(fit, f"DiT {draw}", f"U-DiT {draw}") for draw in range(60)]
    assert np.mean([one.low <= MEET <= one.high for one in found]) > 0.93
    assert np.median([one.high / one.low for one in found]) < 1.5


def test_metrics_where_higher_is_better_cross_too():
    rising = curves(laws={"DiT": (0.7, -0.3, 0.5), "U-DiT": (0.75, -0.45, 0.5)}, of_seed=0, of_run=0.001, metric="recall")
    found = scaling_crossover(scaling_fit(rising, "recall"), "DiT", "U-DiT")
    assert found.low < MEET < found.high
    assert found.better_after == "U-DiT"


def test_seeds_are_paired_across_families():
    """What the seeds have in common moves both curves alike; under other names it would not."""
    laws = {"DiT": (0.3, 0.3, 0.5), "U-DiT": (0.25, 0.4, 0.5)}
    frame = curves(laws=laws, of_seed=0.03, of_run=0.001)
    apart = frame.assign(seed=frame["seed"] + 100 * (frame["family"] == "DiT"))
    paired, unpaired = (scaling_crossover(scaling_fit(one), "DiT", "U-DiT") for one in (frame, apart))
    assert paired.compute == pytest.approx(unpaired.compute)
    assert math.log(unpaired.high / max(unpaired.low, 1)) > 3 * math.log(paired.high / paired.low)


def test_curves_that_do_not_meet_say_so():
    fit = scaling_fit(curves(laws={"DiT": (0.3, 0.3, 0.5), "U-DiT": (0.2, 0.3, 0.5)}))
    found = scaling_crossover(fit, "DiT", "U-DiT")
    assert np.isnan([found.compute, found.low, found.high]).all()
    assert found.better_after == "U-DiT"
    assert found.share_without == 1
    assert (
        found.text
        == "DiT and U-DiT do not cross between 1 and 128 train_tflops (beyond 32 an extrapolation), where U-DiT is better; "
        "nor do 100 % of the resamples"
    )


def test_equal_curves_do_not_cross():
    frame = curves(laws={"DiT": LAWS["DiT"]}, of_seed=0)
    found = scaling_crossover(scaling_fit(pd.concat([frame, frame.assign(family="twin")])), "DiT", "twin")
    assert math.isnan(found.compute)
    assert found.better_after == ""
    assert "where neither is better" in found.text


def test_an_interval_is_open_where_many_resamples_do_not_cross():
    """Nearly equal curves: some resamples meet beyond reach, or before the data."""
    fit = scaling_fit(curves(laws={"DiT": (0.3, 0.3, 0.5), "U-DiT": (0.299, 0.304, 0.5)}))
    found = scaling_crossover(fit, "DiT", "U-DiT")
    assert found.share_without > 0.1
    assert found.low == 0 or found.high == math.inf
    assert "and up" in found.text or "below the data" in found.text
    share = f"{100 * found.share_without:.0f} % of the resamples do not cross between 1 and 128 train_tflops"
    assert f"{share} (beyond 32 an extrapolation)" in found.text


def test_two_crossings_are_both_told():
    laws = {"slow": (0.2, 0.5, 0.3), "fast": (0.33, 0.46, 1.0)}
    compute = np.geomspace(1, 320, 5000)
    lead = (0.2 + 0.5 * compute**-0.3) - (0.33 + 0.46 * compute**-1.0)
    meet = compute[1:][np.diff(np.sign(lead)) != 0]
    assert (len(meet), lead[0] < 0, lead[-1] < 0) == (2, True, True)
    found = scaling_crossover(scaling_fit(curves(laws=laws, of_seed=0, of_run=0)), "slow", "fast")
    assert found.compute == pytest.approx(meet[1], rel=0.01)
    assert found.better_after == "slow"
    assert f"; they also cross at {meet[0]:.2g}" in found.text


def test_the_better_family_is_told_by_the_share_of_resamples(fit):
    early, late = probability_better(fit, "U-DiT", "DiT", at=3), probability_better(fit, "U-DiT", "DiT", at=100)
    assert early.probability == 0
    assert late.probability > 0.99
    assert probability_better(fit, "DiT", "U-DiT", at=3).probability == 1
    met = scaling_crossover(fit, "DiT", "U-DiT").compute
    assert 0.3 < probability_better(fit, "U-DiT", "DiT", at=met).probability < 0.7
    assert late.warning == early.warning == ""


def test_a_target_far_beyond_the_data_is_warned_of(fit):
    assert probability_better(fit, "U-DiT", "DiT", at=128).warning == ""
    far = probability_better(fit, "U-DiT", "DiT", at=160)
    assert far.warning == "160 train_tflops is 5 times beyond the largest budget that both have: holds if nothing changes beyond it"
    near = probability_better(fit, "U-DiT", "DiT", at=0.2)
    assert near.warning == "0.2 train_tflops is 5 times below the smallest budget that both have: holds if nothing changes below it"


def test_a_crossing_outside_the_budgets_is_called_an_extrapolation(fit):
    def crossing(E, budgets=6):
        laws = {"DiT": (0.3, 0.3, 0.5), "U-DiT": (E, 0.45, 0.5)}
        return scaling_crossover(
            scaling_fit(curves(laws=laws, budgets=budgets, of_seed=0, of_run=0), resamples=100), "DiT", "U-DiT"
        )

    found = crossing(E=0.3 - 0.15 * 81**-0.5)
    assert found.compute == pytest.approx(81, rel=1e-3)
    assert (
        "beyond which U-DiT is better; that is an extrapolation to 2.53 times the largest budget that both have, 32" in found.text
    )
    assert "holds if nothing changes beyond it" in found.text
    assert math.isnan(crossing(E=0.3 - 0.15 * 129**-0.5).compute), "4 times the largest budget is the end"
    assert "extrapolation" not in crossing(E=0.25).text
    assert "extrapolation" not in scaling_crossover(fit, "DiT", "U-DiT").text
    late = crossing(E=0.25, budgets=4)
    assert late.compute == pytest.approx(MEET, rel=1e-3)
    assert "an extrapolation to 1.13 times the largest budget that both have, 8" in late.text


def test_a_crossing_before_the_budgets_of_one_family_says_so():
    frame = curves(of_seed=0, of_run=0, budgets=8)
    both = scaling_fit(frame[(frame["family"] == "DiT") | (frame["train_tflops"] >= 16)])
    assert "is below the smallest budget that both have, 16" in scaling_crossover(both, "DiT", "U-DiT").text


def test_an_interval_that_reaches_beyond_the_budgets_says_so():
    fit = scaling_fit(curves(laws={"DiT": LAWS["DiT"], "U-DiT": (0.3 - 0.15 * 28**-0.5, 0.45, 0.5)}))
    found = scaling_crossover(fit, "DiT", "U-DiT")
    assert found.compute < 32 < found.high
    assert "the interval reaches beyond the largest budget that both have, 32, if nothing changes beyond it" in found.text


def test_a_law_in_doubt_is_warned_of():
    fit = scaling_fit(broken())
    for said in (probability_better(fit, "DiT", "U-DiT", at=64).warning, scaling_crossover(fit, "DiT", "U-DiT").text):
        for family in ("DiT", "U-DiT"):
            assert f"{family}: the law misses the budgets by more than the seeds' noise (lack of fit, p < 0.001)" in said
    assert "; 320 train_tflops is 10 times beyond the largest budget" in probability_better(fit, "DiT", "U-DiT", at=320).warning


def test_what_families_miss_alike_cancels_in_a_comparison():
    """Both curves are uncertain by more than they differ, and yet it is clear which is better."""
    fit = scaling_fit(broken(laws={"DiT": (0.3, 0.3, 0.5), "U-DiT": (0.29, 0.3, 0.5)}))
    low, high = np.percentile(fit.family("DiT").curves[1].at(64)[:, 0], [2.5, 97.5])
    assert high - low > 0.012
    assert probability_better(fit, "U-DiT", "DiT", at=64).probability > 0.95


def test_families_that_break_apart_are_not_sure_which_is_better():
    """DiT breaks, so the lead that its law has at twice the budgets is lost."""
    laws = {"DiT": (0.27, 0.3, 0.5), "U-DiT": (0.29, 0.3, 0.5)}
    as_law, apart = curves(laws=laws, of_seed=0.002, of_run=0.002), broken(laws=laws)
    frame = pd.concat([apart[apart["family"] == "DiT"], as_law[as_law["family"] == "U-DiT"]])
    assert probability_better(scaling_fit(as_law), "DiT", "U-DiT", at=64).probability == 1
    assert probability_better(scaling_fit(frame), "DiT", "U-DiT", at=64).probability < 0.5


def test_mistakes_are_told_in_a_sentence(fit, mixed):
    with pytest.raises(ToolkitError, match="no family 'SiT' in the fit of val_loss; there are: DiT, U-DiT"):
        scaling_crossover(fit, "SiT", "DiT")
    with pytest.raises(ToolkitError, match="family DiT cannot be compared with itself; name two families"):
        scaling_crossover(fit, "DiT", "DiT")
    with pytest.raises(ToolkitError, match="train_tflops to compare at is -1; compute is a positive number"):
        probability_better(fit, "U-DiT", "DiT", at=-1)
    with pytest.raises(ToolkitError, match="family short has no curve to draw or compare: 3 budgets, and a fit needs at least 4"):
        scaling_crossover(mixed, "DiT", "short")
    with pytest.raises(ToolkitError, match="family flat has no curve to draw or compare: no improvement"):
        probability_better(mixed, "flat", "DiT", at=3)


def test_what_is_drawn(fit):
    info = scaling_info(fit)
    line = info.lines[info.lines["family"] == "DiT"]
    assert (line["compute"].min(), line["compute"].max()) == pytest.approx((1, 128))
    assert line.loc[line["beyond"], "compute"].min() > 32
    assert line.loc[~line["beyond"], "compute"].max() == pytest.approx(32)
    assert ((line["low"] <= line["value"]) & (line["value"] <= line["high"])).all()
    assert info.points.groupby("family")["compute"].apply(list)["DiT"] == [1, 2, 4, 8, 16, 32]
    own = curves()
    first = own[(own["family"] == "DiT") & (own["train_tflops"] == 1)]["val_loss"]
    assert info.points.iloc[0][["mean", "sd"]].tolist() == pytest.approx([first.mean(), first.std()])
    assert info.predictions["family"].tolist() == ["DiT", "U-DiT"]
    assert [one.compute for one in info.crossings] == [scaling_crossover(fit, "DiT", "U-DiT").compute]


def test_refused_families_are_points_with_the_reason(mixed):
    info = scaling_info(mixed)
    assert set(info.lines["family"]) == {"DiT"}
    assert set(info.points["family"]) == {"DiT", "flat", "short"}
    assert info.crossings == ()
    ax = plot_scaling_fit(mixed)
    legend = [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]
    assert "short: no line, 3 budgets, and a fit needs at least 4" in legend
    assert "flat: no line, no improvement with train_tflops is visible above the noise" in legend
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 1


def test_the_figure_tells_the_lack_of_fit(fit):
    assert re.search(r"lack of fit p = 0\.\d+$", scaling_info(fit).labels["DiT"])
    info = scaling_info(scaling_fit(broken()))
    assert "(lack of fit, p < 0.001)" in info.labels["DiT"].replace("\n", " ")
    at_budgets = info.points.merge(info.lines, on="family")
    near = at_budgets[np.isclose(at_budgets["compute_x"], at_budgets["compute_y"])]
    assert len(near) >= 4, "the ends of both lines"
    assert near["value"].tolist() == pytest.approx(near["mean"].tolist(), rel=0.01), "the line follows the budgets"


def test_only_refused_families_can_be_drawn():
    ax = plot_scaling_fit(scaling_fit(of_means([0.9, 0.7, 0.6])))
    assert not any(line.get_linestyle() == "--" for line in ax.lines)
    assert scaling_info(scaling_fit(of_means([0.5]))).lines.empty


def test_the_figure_is_drawn_where_one_asks(fit):
    _, ax = plt.subplots()
    assert plot_scaling_fit(fit, ax) is ax
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "training TFLOPs (multiply-accumulates / 1e12)"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[2:] == ["largest budget, predicted from the others", "curves cross, arrows where the interval is open"]
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 2
    solid, dashed = ax.lines[1].get_xdata(), ax.lines[2].get_xdata()
    assert solid[-1] == pytest.approx(dashed[0]), "the dashes begin where the line ends"
