"""What rungs foretell: τ and its bounds by hand and by enumeration, the regret, censoring, replicates, and the figure."""

import doctest
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from analysis import load
from analysis.search import fidelity
from analysis.search import plots as fidelity_plots
from analysis.search.fidelity import rank_fidelity, rung_values, tau_bounds
from analysis.search.plots import plot_rank_fidelity
from nas.replay.curves import recorded
from nas.runs.ledger import Ledger
from nas.runs.records import State
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.stats import ranks
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.recorded import ALL_FULLY, VARIED, seeded_loss
from tests.nas.scripted import carry_out, report, searched

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 50)
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 2000)
    yield
    plt.close("all")


def tidy(values, **more):
    """A frame of values (architectures, rungs); NaN is left out, as a run has no report there."""
    rows = [
        {"trial": trial, "rung": rung + 1, "val_loss": value, **{name: column[trial] for name, column in more.items()}}
        for trial, own in enumerate(values)
        for rung, value in enumerate(own)
        if np.isfinite(value)
    ]
    return pd.DataFrame(rows)


NAN = float("nan")
BY_HAND = [
    # At rung 1, at rung 2, and at the end.
    [1.0, 1.0, 0.50],
    [2.0, 1.5, 0.30],
    [3.0, 1.2, 0.40],
    [4.0, 3.0, NAN],
    [0.5, NAN, NAN],
]


def test_a_table_worked_by_hand():
    table = rank_fidelity(tidy(BY_HAND), top=2).set_index("rung")
    assert table["architectures"].tolist() == [5, 4, 3]
    assert table["complete"].tolist() == [3, 3, 3]
    assert table["complete_share"].tolist() == [0.6, 0.75, 1.0]
    assert table["censored"].tolist() == [1, 1, 0]
    # Of the complete ones 0 1 2 the pairs (0, 1) and (0, 2) are turned round at rung 1, all three at rung 2.
    assert table["tau_within"].tolist() == pytest.approx([-1 / 3, -1, 1])
    # Rung 1: one unknown stands last, one first, so 3 + 3 + the pair between them are unknown: (-1 ± 7) / 10.
    # Rung 2: the unknown one stands last, so it agrees with all three or with none: (-3 ± 3) / 6.
    assert table["tau_least"].tolist() == pytest.approx([-8 / 10, -1, 1])
    assert table["tau_most"].tolist() == pytest.approx([6 / 10, 0, 1])
    # The best two of rung 1 are the one without a final value and 0, which ends 0.2 above the best; of rung 2 they are 0 and 2.
    assert table["top_regret"].tolist() == pytest.approx([0.2, 0.1, 0.0])
    assert table["top_known"].tolist() == [1, 2, 2]
    assert table[["within_low", "within_high", "tau_across", "regret_low", "regret_high", "train_tflops"]].isna().all(axis=None)


def test_a_rung_whose_best_were_all_pruned_has_no_regret():
    table = rank_fidelity(tidy(BY_HAND), top=1).set_index("rung")
    assert np.isnan(table["top_regret"][1])
    assert table["top_known"].tolist() == [0, 1, 1]


def tau_b(here, last):
    pairs = list(itertools.combinations(range(len(here)), 2))
    signs = [(np.sign(here[i] - here[j]), np.sign(last[i] - last[j])) for i, j in pairs]
    return sum(a * b for a, b in signs) / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


def test_tau_b_of_these_tests_is_scipys():
    here, last = np.random.default_rng(0).normal(size=(2, 7)).round()
    assert tau_b(here, last) == pytest.approx(kendalltau(here, last).statistic)


def enumerated(here, last):
    """All τ-b that unknown values could give: every order of theirs, in every place among the known ones."""
    known = np.unique(last[np.isfinite(last)])
    unknown = np.flatnonzero(np.isnan(last))
    edges = np.concatenate([[known[0] - 1], known, [known[-1] + 1]]) if len(known) else np.array([0.0, 1.0])
    found = []
    for places in itertools.product(range(len(edges) - 1), repeat=len(unknown)):
        for order in itertools.permutations(range(1, len(unknown) + 1)):
            filled = last.copy()
            for row, place, rank in zip(unknown, places, order, strict=True):
                low, high = edges[place], edges[place + 1]
                filled[row] = low + (high - low) * rank / (len(unknown) + 1)
            found.append(tau_b(here, filled))
    return min(found), max(found)


@pytest.mark.parametrize("ties", [False, True])
def test_bounds_are_the_extremes_of_all_that_could_be(ties):
    rng = np.random.default_rng(1 + ties)
    for _ in range(40):
        count, unknown = int(rng.integers(3, 7)), int(rng.integers(0, 4))
        here, last = rng.normal(size=(2, count))
        if ties:
            here, last = np.round(here), np.round(last)
        last[rng.permutation(count)[: min(unknown, count)]] = np.nan
        if np.ptp(here) == 0 or (np.isfinite(last).all() and np.ptp(last) == 0):
            assert np.isnan(tau_bounds(here, last)).all()
            continue
        assert tau_bounds(here, last) == pytest.approx(enumerated(here, last)), (here, last)


def test_bounds_hold_what_pruning_hid_and_the_survivors_alone_tell_too_little():
    rng = np.random.default_rng(0)
    over_all, over_survivors = [], []
    for _ in range(100):
        here = rng.normal(size=40)
        last = 0.8 * here + 0.6 * rng.normal(size=40)
        truth = kendalltau(here, last).statistic
        hidden = np.where(here < np.median(here), last, np.nan)
        least, most = tau_bounds(here, hidden)
        assert least <= truth <= most
        over_all.append(truth)
        over_survivors.append(tau_bounds(here[np.isfinite(hidden)], hidden[np.isfinite(hidden)])[0])
    assert np.mean(over_survivors) < np.mean(over_all) - 0.1


def test_nothing_pruned_leaves_nothing_unknown():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(12, 3)).round(1)
    table = rank_fidelity(tidy(values), level=0.8)
    wide = rank_fidelity(tidy(values))
    for rung in range(3):
        row = table.iloc[rung]
        assert row["tau_within"] == pytest.approx(kendalltau(values[:, rung], values[:, 2]).statistic)
        assert row["tau_least"] == row["tau_within"] == row["tau_most"]
    assert (table["complete_share"] == 1).all()
    assert (table["censored"] == 0).all()
    assert table[["within_low", "within_high", "regret_low", "regret_high"]].notna().all(axis=None)
    first, wider = table.iloc[0], wide.iloc[0]
    assert wider["within_low"] < first["within_low"] <= first["tau_within"] <= first["within_high"] < wider["within_high"]
    assert (wide["regret_high"] - wide["regret_low"]).sum() > (table["regret_high"] - table["regret_low"]).sum() > 0


def test_an_interval_needs_eight_complete_architectures():
    values = np.random.default_rng(4).normal(size=(20, 2))
    values[8:, 1] = np.nan
    assert rank_fidelity(tidy(values))[["within_low", "regret_low"]].notna().all(axis=None)
    values[7, 1] = np.nan
    assert rank_fidelity(tidy(values))[["within_low", "within_high", "regret_low", "regret_high"]].isna().all(axis=None)


@pytest.mark.slow
def test_intervals_of_tau_cover_it(monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 120)
    rng = np.random.default_rng(7)
    truth, hits = 2 / np.pi * np.arcsin(0.8), 0
    for _ in range(120):
        here = rng.normal(size=12)
        row = rank_fidelity(tidy(np.stack([here, 0.8 * here + 0.6 * rng.normal(size=12)], axis=1))).iloc[0]
        hits += row["within_low"] <= truth <= row["within_high"]
    # 95 % of 120 are 114, with a standard error of 2.4.
    assert 107 <= hits <= 120


def test_the_order_of_rows_does_not_matter():
    values = np.random.default_rng(5).normal(size=(14, 3)).round(1)
    values[9:, 2] = np.nan
    frame = tidy(values)
    pd.testing.assert_frame_equal(rank_fidelity(frame), rank_fidelity(frame.sample(frac=1, random_state=1)))


def test_more_may_be_better():
    frame = tidy(BY_HAND)
    turned = frame.assign(precision=-frame["val_loss"]).drop(columns="val_loss")
    pd.testing.assert_frame_equal(rank_fidelity(turned, "precision", top=2), rank_fidelity(frame, top=2))
    # A loss at some of the timesteps is a loss as well.
    of_bin = frame.rename(columns={"val_loss": "val_loss_bin_0"})
    pd.testing.assert_frame_equal(rank_fidelity(of_bin, "val_loss_bin_0", top=2), rank_fidelity(frame, top=2))


def test_replicates_are_averaged_where_all_of_them_have_come():
    values = [[1.0, 1.0], [3.0, 2.0], [5.0, 4.0], [7.0, NAN]]
    frame = tidy(values, variant=["a", "a", "b", "b"], seed=[0, 1, 0, 1])
    wide = rung_values(frame, "val_loss")
    assert wide.loc["a"].tolist() == [2.0, 1.5]
    assert wide.loc["b"].tolist()[0] == 6.0
    assert np.isnan(wide.loc["b"].tolist()[1]), "a mean over other seeds than before is no fair comparison"
    table = rank_fidelity(frame)
    # At the end only one architecture has both seeds.
    assert table["replicated"].tolist() == [2, 1]
    assert table["architectures"].tolist() == [2, 1]
    assert table["censored"].tolist() == [1, 0]


def test_a_second_seed_of_some_shows_what_two_trainings_share():
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(2, 20, 2))
    frame = pd.concat(
        [
            tidy(first, variant=[f"v{n}" for n in range(20)], seed=[0] * 20),
            tidy(second[:9], variant=[f"v{n}" for n in range(9)], seed=[7] * 9),
        ]
    )
    table = rank_fidelity(frame)
    assert table["replicated"].tolist() == [9, 9]
    assert table["tau_across"].iloc[-1] == pytest.approx(kendalltau(first[:9, 1], second[:9, 1]).statistic)
    crossed = [kendalltau(first[:9, 0], second[:9, 1]).statistic, kendalltau(second[:9, 0], first[:9, 1]).statistic]
    assert table["tau_across"].iloc[0] == pytest.approx(np.mean(crossed))
    assert table[["across_low", "across_high"]].notna().all(axis=None)
    # Without the names of the seeds, the trainings of an architecture are told apart by their order.
    unnamed = frame.assign(trial=frame["trial"] + 100 * (frame["seed"] == 7)).drop(columns="seed")
    pd.testing.assert_frame_equal(rank_fidelity(unnamed), table)
    alone = rank_fidelity(frame[frame["seed"] == 0])
    assert alone[["tau_across", "across_low", "across_high"]].isna().all(axis=None)
    assert alone["replicated"].tolist() == [0, 0]


# Runs.


def test_a_run_in_which_nothing_is_pruned_gives_what_a_replay_says(tiny_file, tmp_path):
    study = load_study(tiny_file, [*ALL_FULLY, "search.replicates=2"])
    ledger = Ledger(tmp_path / "run")
    search = Search(study, ledger)
    carry_out(search, failing=(5,), loss=seeded_loss)
    for plan in search.finish_plans():
        for rung in range(plan.reported, plan.reported + len(plan.milestones)):
            search.report(report(plan, rung, loss=1e-6))
    ledger.close()
    record, run = recorded(read_run(tmp_path / "run")), load(tmp_path / "run")
    table = rank_fidelity(run)
    assert run.trials["finish_val_loss"].notna().any()
    assert rank_fidelity(run.reports)["rung"].tolist() == [1, 2, 3, 4, 5], "reports alone, with those of the finish among them"
    assert table["train_tflops"].tolist() == pytest.approx(run.rungs_tflops)
    complete = table["complete"].unique().tolist()
    assert complete == [len(record.curves)] == [11]
    # The replicate that failed at once leaves an architecture without a mean, so it is not there at all.
    assert table["architectures"].tolist() == [11] * 5
    assert table["tau_within"].tolist() == pytest.approx([one.tau for one in record.agreements])
    assert table["within_low"].tolist() == [one.low for one in record.agreements]
    assert table["within_high"].tolist() == [one.high for one in record.agreements]
    assert table["tau_across"].tolist() == [one.tau for one in record.agreements_across_seeds]
    assert table["across_high"].tolist() == [one.high for one in record.agreements_across_seeds]
    assert table["replicated"].tolist() == [11] * 5
    tau, _ = plot_rank_fidelity(table)
    assert tau.get_legend_handles_labels()[1] == [
        "within seeds, complete ones",
        "across seeds",
        "noise ceiling: two full trainings",
    ]
    assert tau.get_lines()[1].get_ydata().tolist() == table["tau_across"].tolist()
    assert tau.get_lines()[2].get_ydata()[0] == table["tau_across"].iloc[-1]
    for top in (1, 3):
        regrets = rank_fidelity(run, top=top)["top_regret"].tolist()
        assert regrets == pytest.approx([record.top_regret(rung, top) for rung in range(5)])


def test_a_pruned_run_counts_everyone_where_they_stood(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path / "run", failing=(3,))
    run, trials = load(tmp_path / "run"), read_run(tmp_path / "run").trials.values()
    table = rank_fidelity(run)
    reached = [sum(len(trial.reports) > rung for trial in trials) for rung in range(5)]
    assert table["architectures"].tolist() == reached
    complete = sum(trial.state is State.COMPLETE for trial in trials)
    assert table["complete"].tolist() == [complete] * 5
    assert table["complete_share"].tolist() == pytest.approx([complete / one for one in reached])
    pruned = [sum(trial.state is State.PRUNED and len(trial.reports) == rung + 1 for trial in trials) for rung in range(5)]
    assert table["censored"].tolist() == pruned
    assert sum(pruned) + complete == len(trials) - 1, "one failed before its first report"
    assert (table["tau_least"] <= table["tau_within"]).all()
    assert (table["tau_within"] <= table["tau_most"]).all()
    assert (table["tau_most"] - table["tau_least"]).is_monotonic_decreasing, "the fewer are unknown, the closer the bounds"


def test_a_run_where_nothing_has_come_to_the_end_yet_is_refused(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path / "run", stop_after=3)
    with pytest.raises(ToolkitError, match=r"no architecture has a val_loss at the last rung \(5\)"):
        rank_fidelity(load(tmp_path / "run"))
    ledger = Ledger(tmp_path / "empty")
    Search(load_study(tiny_file, VARIED), ledger)
    ledger.close()
    with pytest.raises(ToolkitError, match=r"no architecture has a val_loss at the last rung \(5\)"):
        rank_fidelity(load(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("change", "how", "sentence"),
    [
        (lambda frame: frame, {"metric": "fid"}, "no column 'fid'; known here: trial, rung, val_loss"),
        (lambda frame: frame.drop(columns="rung"), {}, "no column 'rung'"),
        (lambda frame: frame.drop(columns="trial"), {}, "do not name their trials; add a column trial"),
        (lambda frame: pd.concat([frame, frame.tail(1)]), {}, "two rows for 3, replicate 0, at rung 2"),
        (lambda frame: frame.assign(val_loss="low"), {}, "column 'val_loss' does not hold numbers"),
        (lambda frame: frame.assign(quality=1.0), {"metric": "quality"}, "whether less of 'quality' is better is not known"),
        (lambda frame: frame, {"top": 0}, "top is 0"),
        (lambda frame: frame, {"level": 1.0}, "level is 1, which is not a share"),
        (lambda frame: frame.assign(val_loss=NAN), {}, "no architecture has a val_loss at the last rung"),
    ],
)
def test_mistakes_are_told_in_a_sentence(change, how, sentence):
    with pytest.raises(ToolkitError, match=sentence):
        rank_fidelity(change(tidy([*BY_HAND[:3], [4.0, 3.0, NAN]])), **how)


# The figure and the examples.


def test_the_figure_shows_every_rung(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path / "run")
    table = rank_fidelity(load(tmp_path / "run"))
    tau, regret = plot_rank_fidelity(table)
    drawn = tau.get_lines()[0]
    assert drawn.get_xdata().tolist() == pytest.approx(table["train_tflops"].tolist())
    assert drawn.get_ydata().tolist() == pytest.approx(table["tau_within"].tolist())
    assert regret.get_lines()[0].get_ydata().tolist() == pytest.approx(table["top_regret"].tolist())
    assert tau.get_xscale() == regret.get_xscale() == "log"
    counts = [f"{row.complete} of {row.architectures}" for row in table.itertuples()]
    assert [text.get_text() for text in tau.texts] == counts
    labels = tau.get_legend_handles_labels()[1]
    assert labels[0] == "bounds over all"
    tau.figure.canvas.draw()


def test_the_figure_does_with_what_there_is():
    table = rank_fidelity(tidy(BY_HAND), top=2)
    mine = plt.subplots(1, 2)[1]
    axes = plot_rank_fidelity(table, tuple(mine))
    assert axes == tuple(mine)
    assert axes[0].get_xlabel() == "rung"
    few = "within seeds, complete ones, too few for intervals\n(no replicates: a training's luck counts as fidelity)"
    assert few in axes[0].get_legend_handles_labels()[1]
    whole = plot_rank_fidelity(rank_fidelity(tidy(np.random.default_rng(0).normal(size=(9, 2)))))
    assert whole[0].get_legend_handles_labels()[1] == [few.replace(", too few for intervals", "")]
    with pytest.raises(ToolkitError, match="no column tau_least; give what rank_fidelity returned"):
        plot_rank_fidelity(table.drop(columns="tau_least"))


@pytest.mark.parametrize("module", [fidelity, fidelity_plots])
def test_the_examples_run(module):
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 2) == (0, True)
