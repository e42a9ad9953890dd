"""Figures of ablations: what they say is what the tables say, and nothing is cut off."""

import doctest
from itertools import pairwise
from math import isnan, nan

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analysis.ablation import plots as comparison_plots
from analysis.ablation.attribution import factorial_effects, shapley
from analysis.ablation.comparison import compare, ladder
from analysis.ablation.plots import (
    compare_info,
    effects_info,
    ladder_info,
    plot_compare,
    plot_effects,
    plot_ladder,
    plot_shapley,
)
from space import ToolkitError
from tests.analysis.ablation.test_attribution import rungs, tidy

mpl.use("Agg")

LONG = "downsampled token attention with 4 parallel sub-grids, cosine similarity, 2D RoPE, flop-matched"


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    plt.close("all")


def losses(seeds=6, variants=5, name="variant"):
    """A tidy frame: the first variant is the baseline, 1 is better, 2 worse, and all others are like it but for noise."""
    rng = np.random.default_rng(4)
    levels = rng.normal(0.3, 0.05, seeds)
    effects = [0, -0.03, 0.02] + [0] * variants
    rows = [
        (f"{name} {variant}", seed, levels[seed] + effects[variant] + rng.normal(0, 0.004))
        for variant in range(variants)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "val_loss"])


def compared(frame):
    return compare(frame, frame["variant"].iloc[0])


def climbed(frame):
    return ladder(frame, list(dict.fromkeys(frame["variant"])))


def factorial(seeds=6, factors=("tokens", "cosine"), keep=lambda held: True):
    rng = np.random.default_rng(5)

    def game(level):
        return lambda held: level - 0.03 * ("tokens" in held) + 0.01 * ("cosine" in held) + rng.normal(0, 0.001)

    return tidy([game(level) for level in rng.normal(0.3, 0.05, seeds)], factors, keep)


def drawn(ax):
    """(place, value, marker, colour, filled) of the marks in an axes, from top to bottom."""
    marks = []
    for line in ax.lines:
        if line.get_marker() in ("o", "X", "s", "D") and not isnan(line.get_xdata()[0]):
            filled = line.get_markerfacecolor() == line.get_color()
            marks.append((line.get_ydata()[0], line.get_xdata()[0], line.get_marker(), line.get_color(), filled))
    return sorted(marks)


def intervals(ax):
    """(place, low, high) of the intervals in an axes."""
    bars = [bar for container in ax.containers if hasattr(container, "lines") for bar in container.lines[2]]
    return [(ends[0][1], ends[0][0], ends[1][0]) for bar in bars for ends in bar.get_segments()]


def labels(ax):
    return [tick.get_text() for tick in ax.get_yticklabels()]


def notes(ax):
    (right,) = ax.child_axes
    return [tick.get_text() for tick in right.get_yticklabels()]


def test_docstrings():
    assert doctest.testmod(comparison_plots).failed == 0


def test_the_forest_shows_the_table():
    table = compared(losses())
    # Nothing promises that an interval is as long to both sides.
    table.loc[1, "ci_low"] -= 0.01
    ax = plot_compare(table, metric="val_loss")
    shown = table.iloc[1:]
    assert labels(ax) == shown["variant"].tolist()
    assert [(place, value) for place, value, *_ in drawn(ax)] == list(enumerate(shown["difference"]))
    assert np.array(intervals(ax)) == pytest.approx(np.column_stack([np.arange(4), shown[["ci_low", "ci_high"]]]))
    assert table["verdict"].tolist() == ["baseline", "better", "worse", "no evidence", "no evidence"]
    assert [key.get_text() for key in ax.get_legend().get_texts()] == ["better", "worse", "no evidence"]
    assert ax.get_xlabel() == "val_loss minus that of variant 0, paired by seed (← lower is better)"
    bottom, top = ax.get_ylim()
    assert bottom > top, "the table's order runs from top to bottom"
    assert any(line.get_xdata() == [0, 0] for line in ax.lines), "a line at zero"
    low, high = table.loc[1, ["ci_low", "ci_high"]]
    assert notes(ax)[0] == f"{table.loc[1, 'difference']:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−")


def test_verdicts_can_be_told_apart_without_colour():
    marks = drawn(plot_compare(compared(losses())))
    assert len({(marker, filled) for _, _, marker, _, filled in marks[:3]}) == 3
    assert len({colour for _, _, _, colour, _ in marks[:3]}) == 3
    assert marks[2][2:] == marks[3][2:], "one verdict, one mark"


def test_the_better_side_is_named_and_never_guessed():
    table = compared(losses())
    assert compare_info(table, "precision").axis.endswith("paired by seed (higher is better →)")
    assert compare_info(table, "gflops").axis == "gflops minus that of variant 0, paired by seed"
    assert compare_info(table).axis == "val_loss minus that of variant 0, paired by seed (← lower is better)"
    table.attrs.clear()
    assert compare_info(table).axis == "metric minus that of variant 0, paired by seed"
    table.attrs["metric"] = "fid"
    assert compare_info(table).axis.startswith("fid minus")
    assert "lower is better" in ladder_info(climbed(losses()), "fid").axis


def test_lost_seeds_are_said():
    frame = losses()
    frame.loc[(frame["variant"] == "variant 2") & (frame["seed"] == 1), "val_loss"] = nan
    frame.loc[frame["variant"] == "variant 3", "val_loss"] = nan
    ax = plot_compare(compared(frame))
    assert [note.split("  ")[-1] for note in notes(ax)] == ["(6 pairs)", "(5 pairs)", "no pair", "(6 pairs)"]
    assert [place for place, *_ in drawn(ax)] == [0, 1, 3], "nothing is drawn where nothing was measured"
    assert len(intervals(ax)) == 3


def test_a_ladder_stands_at_its_means():
    table = climbed(losses())
    ax = plot_ladder(table)
    assert [value for _, value, *_ in drawn(ax)] == pytest.approx(table["mean"].tolist())
    assert labels(ax) == table["variant"].tolist()
    ends = table[["step_low", "step_high"]].sub(table["step"], axis=0).add(table["mean"], axis=0)
    assert np.array(intervals(ax)) == pytest.approx(np.column_stack([np.arange(1, 5), ends.iloc[1:]]))
    assert notes(ax)[0] == ""
    assert notes(ax)[1].startswith(f"{table.loc[1, 'step']:+.4f}".replace("-", "−"))
    assert [key.get_text() for key in ax.get_legend().get_texts()] == ["better", "worse", "no evidence"]


def test_a_lost_seed_does_not_turn_a_step_round():
    frame = losses(seeds=3, variants=3)
    # Without its worst seed the mean of the worse variant is far below that of the rung before.
    frame["val_loss"] += frame["seed"] * 1.0
    frame.loc[(frame["variant"] == "variant 2") & (frame["seed"] == 2), "val_loss"] = nan
    table = climbed(frame)
    assert table.loc[2, "mean"] < table.loc[1, "mean"] - 0.3
    assert table.loc[2, "step"] > 0.03
    rows = ladder_info(table).rows
    assert rows[2].value - rows[1].value == pytest.approx(table.loc[2, "step"])
    assert [row.note.split("  ")[-1] for row in rows[1:]] == ["(3 pairs)", "(2 pairs)"]


def test_a_lost_rung_does_not_break_the_ladder():
    frame = losses()
    frame.loc[frame["variant"] == "variant 2", "val_loss"] = nan
    frame.loc[(frame["variant"] == "variant 3") & (frame["seed"] == 0), "val_loss"] = nan
    table = climbed(frame)
    rows = ladder_info(table).rows
    assert isnan(rows[2].value)
    assert rows[2].note == rows[3].note == "no pair"
    assert rows[3].value == pytest.approx(table.loc[0, "mean"] + table.loc[3, "difference"])
    assert rows[4].value == pytest.approx(rows[3].value + table.loc[4, "step"])
    assert [place for place, *_ in drawn(plot_ladder(table))] == [0, 1, 3, 4]
    # The first rung lost: nothing to stand on but the means themselves.
    frame = losses()
    frame.loc[frame["variant"] == "variant 0", "val_loss"] = nan
    table = climbed(frame)
    rows = ladder_info(table).rows
    assert [row.value for row in rows[1:]] == pytest.approx(table["mean"].tolist()[1:])


def test_shapley_bars_by_size_and_ladders_in_order():
    table = shapley(factorial(), ["cosine", "tokens"])
    assert table["component"].tolist() == ["cosine", "tokens"]
    ax = plot_shapley(table)
    assert labels(ax) == ["tokens", "cosine"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(table["value"].tolist()[::-1])
    assert np.array(intervals(ax)) == pytest.approx(
        np.array([(0, *table.loc[1, ["ci_low", "ci_high"]]), (1, *table.loc[0, ["ci_low", "ci_high"]])])
    )
    for note, row in zip(notes(ax), (1, 0), strict=True):
        share, low, high = (f"{table.loc[row, name]:.0%}".replace("-", "−") for name in ("share", "share_low", "share_high"))
        assert note.endswith(f"   {share} [{low}, {high}]")
    assert ax.get_title() == "Shapley values, averaged over all orders"
    assert f"all together −{-table['value'].sum():.3g} (← lower is better)" in ax.get_xlabel()
    table = shapley(factorial(keep=rungs("cosine", "tokens")), ["tokens", "cosine"])
    ax = plot_shapley(table)
    assert labels(ax) == ["cosine", "tokens"]
    assert "in this order" in ax.get_title()


def test_effects_have_verdicts_by_the_rule_of_compare():
    table = factorial_effects(factorial(), ["tokens", "cosine"])
    assert table["p_holm"].min() > 0.05, "the sign-flip test cannot tell with six seeds and three effects"
    rows = effects_info(table).rows
    assert [(row.label, row.verdict) for row in rows] == [
        ("tokens", "better"),
        ("cosine", "worse"),
        ("tokens × cosine", "no evidence"),
    ]
    assert [row.verdict for row in effects_info(table, "is").rows] == ["worse", "better", "no evidence"]
    assert [row.verdict for row in effects_info(table, "gflops").rows] == ["evidence", "evidence", "no evidence"]
    ax = plot_effects(table)
    assert [value for _, value, *_ in drawn(ax)] == table["value"].tolist()
    assert ax.get_xlabel() == "effect on val_loss, paired by seed (← lower is better)"


def test_single_seeds_have_marks_without_intervals():
    one = losses(seeds=1)
    effects = factorial_effects(factorial(1), ["tokens", "cosine"])
    for ax in (plot_compare(compared(one)), plot_ladder(climbed(one)), plot_effects(effects)):
        assert intervals(ax) == []
        assert {(marker, filled) for _, _, marker, _, filled in drawn(ax)} == {("D", False)}
        assert [key.get_text() for key in ax.get_legend().get_texts()] == ["one seed: no test"]
        assert all("[" not in note for note in notes(ax))
    ax = plot_shapley(shapley(factorial(1), ["tokens", "cosine"]))
    assert len(ax.patches) == 2
    assert intervals(ax) == []
    assert all("%" not in note for note in notes(ax))
    assert "no shares: without the spread of at least two seeds the total may be zero" in ax.get_xlabel().replace("\n", " ")


@pytest.mark.parametrize("variants", [2, 20])
@pytest.mark.parametrize("name", ["v", LONG])
def test_nothing_is_cut_off_or_overlaps(variants, name):
    frame = losses(seeds=3, variants=variants, name=name)
    factors = [f"{name[:40]} {place}" for place in range(1 if variants == 2 else 5)]
    full = factorial(2, factors)
    for ax in (
        plot_compare(compared(frame), metric="val_loss"),
        plot_ladder(climbed(frame), metric="val_loss"),
        plot_shapley(shapley(full, factors)),
        plot_effects(factorial_effects(full, factors)),
    ):
        figure = ax.figure
        figure.canvas.draw()
        box, whole = ax.get_tightbbox(), figure.bbox
        assert box.x0 >= whole.x0 - 1
        assert box.x1 <= whole.x1 + 1
        assert box.y0 >= whole.y0 - 1
        assert box.y1 <= whole.y1 + 1
        assert ax.get_window_extent().width > 0.3 * whole.width, "the data have room"
        for texts in (ax.get_yticklabels(), ax.child_axes[0].get_yticklabels()):
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))


def test_figures_go_where_they_are_told_and_tables_stay_as_they_are():
    _, axes = plt.subplots(2, 2)
    made = {
        plot_compare: compared(losses()),
        plot_ladder: climbed(losses()),
        plot_shapley: shapley(factorial(), ["tokens", "cosine"]),
        plot_effects: factorial_effects(factorial(), ["tokens", "cosine"]),
    }
    for (plot, table), ax in zip(made.items(), axes.flat, strict=True):
        before = table.copy(deep=True)
        assert plot(table, ax) is ax
        pd.testing.assert_frame_equal(table, before)
    assert len(plt.get_fignums()) == 1


def test_a_wrong_table_is_refused():
    table = compared(losses())
    with pytest.raises(ToolkitError, match="the table has no column step, step_low, .*; give what ladder returned"):
        plot_ladder(table)
    with pytest.raises(ToolkitError, match="no column effect, value, .* factorial_effects returned"):
        plot_effects(table)
    with pytest.raises(ToolkitError, match="no column component, .* shapley returned"):
        plot_shapley(table)
    with pytest.raises(ToolkitError, match="0 rows with the verdict baseline; give what compare returned"):
        plot_compare(table.iloc[1:])
