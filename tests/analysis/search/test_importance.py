"""Which parameters decide: found where one does, at each rung by those that came to it, and not where chance would do."""

import subprocess
import sys
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis.runs.data import load
from analysis.search import importance as module
from analysis.search.importance import exceeded_by_chance, param_importances
from analysis.search.plots import plot_param_importances
from nas.runs.records import State
from nas.runs.run import read_run
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import searched

mpl.use("Agg")

SPACE = (
    "channels: {int: [8, 32], step: 8}, heads: [1, 2], feed_forward.kind: [mlp, conv], feed_forward.ratio: [1, 1.5, 2, 2.5, 3, 4]"
)
CONDITIONAL = f"{SPACE}, feed_forward.reparam: {{when: {{feed_forward.kind: conv}}, choice: [false, true]}}"
KIND, REPARAM = "feed_forward.kind", "feed_forward.reparam"


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 12)
    monkeypatch.setattr(module, "SHUFFLES", 12)
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 2000)
    yield
    plt.close("all")


def noise(plan, rung):
    return np.random.default_rng([int(plan.spec.digest, 16) % 2**32, rung, plan.seed]).uniform(0, 0.1)


def by_kind(plan, rung):
    """Convolutions are better, from the first rung on."""
    return float(1 / (rung + 1) + (plan.spec.feed_forward.kind == "mlp") + noise(plan, rung))


def by_reparam(plan, rung):
    """Of convolutions those that are folded are better; among the others nothing matters."""
    folded = plan.spec.feed_forward.kind == "conv" and plan.spec.feed_forward.reparam
    return float(1 / (rung + 1) - folded + noise(plan, rung))


def at_the_end(plan, rung):
    """Heads decide early, the kind late."""
    return float(by_kind(plan, rung) if rung == 2 else 1 / (rung + 1) + (plan.spec.heads == 1) + noise(plan, rung))


@pytest.fixture
def make(tiny_file, tmp_path):
    """Runs with scripted losses; random proposals, so that the architectures are the same whatever the losses are.

    The seed is one with which the last rung is reached by the good kind alone.
    """

    def made(loss=by_kind, *settings, space=SPACE, trials=40):
        own = [f"search.space={{{space}}}", f"search.trials={trials}", "search.sampler={kind: random, seed: 3}"]
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        searched(load_study(tiny_file, [*own, "search.constraints={gflops: {max: 0.1}}", *settings]), folder, loss=loss)
        return folder

    return made


def importances(run, **how):
    return param_importances(load(run), **how)


def table_of(run, **how):
    return importances(run, **how).set_index("parameter")


def test_the_parameter_that_decides_is_found_and_the_others_are_not(make):
    table = table_of(make(by_kind, "budget.mode=none"), rung=3)
    assert table.index[0] == KIND
    assert table.loc[KIND, "importance"] > 0.7
    assert table.loc[KIND, "importance"] > table.loc[KIND, "chance"]
    others = table.drop(KIND)
    assert (others["importance"] < 0.2).all()
    assert (others["importance"] < others["chance"]).all()
    assert table["importance"].sum() == pytest.approx(1)
    assert (table["low"] <= table["importance"]).all()
    assert (table["importance"] <= table["high"]).all()
    assert (table["high"] > table["low"]).all()
    assert table[["trials", "censored"]].to_numpy().tolist() == [[40, 0]] * 4


def test_training_settings_are_marked_and_one_architecture_with_two_rates_counts_twice(make):
    def by_rate(plan, rung):
        return float(plan.training.get("training.learning_rate", 1e-3) + noise(plan, rung) / 100)

    rates = "heads: [1, 2], feed_forward.kind: [mlp, conv], training.learning_rate: {float: [1e-3, 1e-1], log: true}"
    table = table_of(make(by_rate, "budget.mode=none", space=rates), rung=3)
    assert table["nuisance"].to_dict() == {"training.learning_rate": True, "heads": False, KIND: False}
    assert table.index[0] == "training.learning_rate"
    assert table.loc["training.learning_rate", "importance"] > 0.7
    assert table["trials"].tolist() == [40] * 3, "of four architectures"
    labels = [label.get_text() for label in plot_param_importances(table.reset_index()).get_yticklabels()]
    assert [label for label in labels if "nuisance" in label] == ["training.learning_rate (nuisance)"]


def test_each_rung_is_judged_by_its_own_values(make):
    tables = importances(make(at_the_end, "budget.mode=none"))
    first = tables.groupby("rung", sort=False)["parameter"].first()
    assert first.to_dict() == {1: "heads", 2: "heads", 3: KIND}
    assert tables.groupby("rung")["importance"].apply(lambda one: one.is_monotonic_decreasing).all()
    assert tables.groupby("rung")["train_tflops"].first().is_monotonic_increasing


def test_pruned_trials_count_at_the_rungs_that_they_reached_and_nowhere_above(make):
    pruned, whole = make(by_kind), make(by_kind, "budget.mode=none")
    trials = read_run(pruned).trials.values()
    assert {State.COMPLETE, State.PRUNED} <= {trial.state for trial in trials}
    table = importances(pruned)
    reached = [sum(len(trial.reports) > rung for trial in trials) for rung in range(3)]
    assert reached[2] < reached[1] < reached[0] == 40
    assert table.groupby("rung")["trials"].first().tolist() == reached
    assert table.groupby("rung")["censored"].first().tolist() == [40 - one for one in reached]
    # At the first rung everyone stands, so it is as if nothing had been pruned.
    numbers = ["importance", "low", "high", "trials"]
    first, same = table[table["rung"] == 1].set_index("parameter")[numbers], table_of(whole, rung=1)[numbers]
    assert first.equals(same)
    # The survivors of the last one are all of the good kind: it has nothing left to decide.
    assert first.loc[KIND, "importance"] > 0.7
    survivors = [trial.spec.feed_forward.kind for trial in trials if trial.state is State.COMPLETE]
    assert set(survivors) == {"conv"}
    assert reached[2] >= module.LEAST
    assert table[table["rung"] == 3].set_index("parameter").loc[KIND, "importance"] < 0.05


def test_chance_is_corrected_for_all_parameters_and_rungs_of_the_table(make):
    folder = make(by_kind, "budget.mode=none")
    whole, first = importances(folder), table_of(folder, rung=1)
    assert whole.attrs["shuffles"] == 12
    of_first = whole[whole["rung"] == 1].set_index("parameter")
    assert (of_first["importance"] == first["importance"]).all()
    assert (of_first["chance"] >= first["chance"]).all()
    assert (whole["chance"] > 0).all()


def test_any_of_many_exceeds_its_bound_in_one_table_of_twenty():
    # Importances that matter nothing are about chi-squared, of as many degrees as a parameter has values, less one.
    rng, degrees, scales = np.random.default_rng(4), np.repeat([1, 1, 2, 5, 40], 3), np.tile([1e-6, 1.0, 50.0], 5)
    above = np.zeros(len(degrees))
    tables, some, uncorrected = 1500, 0, 0
    for _ in range(tables):
        shuffled = rng.chisquare(degrees, size=(100, len(degrees))) * scales
        table = rng.chisquare(degrees) * scales
        found = table > exceeded_by_chance(shuffled)
        above, some = above + found, some + found.any()
        uncorrected += (table > np.percentile(shuffled, 95, axis=0)).any()
    # 5 of 101 greatest values are above the bound: 74 of 1,500 tables, with a standard error of 8.4.
    assert 48 < some < 100
    assert uncorrected > 600, "which is what the correction is for"
    assert above.max() < 4 * above.mean(), "no parameter takes all of the false alarms"


def test_what_cannot_vary_or_is_not_there_has_no_say():
    shuffled = np.random.default_rng(5).chisquare(2, size=(60, 3))
    more = np.column_stack([shuffled, np.full(60, 0.25), np.zeros(60), np.full(60, np.nan)])
    bounds = exceeded_by_chance(more)
    assert bounds[:3].tolist() == exceeded_by_chance(shuffled).tolist()
    assert bounds[3:5].tolist() == pytest.approx([0.25, 0])
    assert np.isnan(bounds[5])


def test_a_rung_with_few_trials_has_no_importances(make):
    folder = make(by_kind, trials=16)
    table = importances(folder)
    few = table["trials"] < module.LEAST
    assert 0 < few.sum() < len(table)
    assert table.loc[few, ["importance", "low", "high", "chance"]].isna().all(axis=None)
    assert table.loc[~few, ["importance", "low", "high", "chance"]].notna().all(axis=None)
    with pytest.raises(ToolkitError, match=r"run tiny has \d trials of its space at rung 3, and importance needs at least 8"):
        importances(folder, rung=3)


def test_what_a_condition_decides_is_not_credited_to_what_hangs_on_it(make):
    table = table_of(make(by_kind, "budget.mode=none", space=CONDITIONAL), rung=3)
    assert table.index[0] == KIND
    assert table.loc[REPARAM, "importance"] <= table.loc[REPARAM, "chance"]
    assert table.loc[REPARAM, "importance"] < 0.1


def test_a_parameter_that_is_not_always_active_is_found_when_it_decides(make):
    table = table_of(make(by_reparam, "budget.mode=none", space=CONDITIONAL), rung=3, best=0.25)
    assert table.loc[REPARAM, "importance"] > table.loc[REPARAM, "chance"]
    assert table.loc[[KIND, REPARAM], "importance"].sum() > 0.7


def test_replicates_count_as_one_and_values_may_be_lists(make):
    space = f"{SPACE}, depths: [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1]]"
    folder = make(by_kind, "budget.mode=none", "search.replicates=2", space=space)
    table = importances(folder, rung=1)
    assert table["parameter"].iloc[0] == KIND
    assert "depths" in set(table["parameter"])
    assert set(table["trials"]) == {20}
    assert len(read_run(folder).trials) == 40


def test_architectures_from_outside_the_space_are_left_out(make):
    table = importances(make(by_kind, "budget.mode=none", "search.enqueue=[{channels: 40, heads: 5}]", trials=20), rung=1)
    assert set(table["trials"]) == {19}


def test_more_may_be_better_and_equal_values_tell_nothing(make):
    run = read_run(make(by_kind, "budget.mode=none"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importances(run, metric="images_per_s", rung=3)["importance"].isna().all(), "scripted reports are all as fast"
    for trial in run.trials.values():
        trial.reports = [one.model_copy(update={"images_per_s": 1 / one.val_loss}) for one in trial.reports]
    turned, own = importances(run, metric="images_per_s", rung=3), importances(run, rung=3)
    assert turned.equals(own)


def test_the_same_every_time_and_for_a_folder_or_what_was_read(make):
    folder = make(by_kind)
    assert importances(folder, rung=1).equals(importances(read_run(folder), rung=1))


def test_an_ablation_has_no_parameters(make):
    run = read_run(make(by_kind, trials=8))
    run._study = run.study.model_copy(update={"search": None})
    with pytest.raises(ToolkitError, match="run tiny is an ablation, which searches no parameters"):
        importances(run)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"evaluator": "fanova"}, "no evaluator 'fanova'; take ped-anova, which needs no other packages"),
        ({"rung": 4}, "run tiny has no rung 4; it has 1 to 3"),
        ({"metric": "fid"}, "no column 'fid'"),
        ({"best": 1.0}, "best is 1, which is not a share"),
        ({}, "run tiny has at most 6 trials of its space at a rung, and importance needs at least 8"),
    ],
)
def test_mistakes_are_told_in_a_sentence(make, how, sentence):
    folder = make(by_kind, trials=6)
    with pytest.raises(ToolkitError, match=sentence):
        importances(folder, **how)


def test_the_figure_marks_what_lies_above_chance(make):
    table = importances(make(by_kind))
    ax = plot_param_importances(table)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == KIND
    assert sorted(names) == sorted(table["parameter"].unique())
    drawn = table[table["importance"].notna()]
    points = [c for c in ax.collections if len(c.get_facecolor()) == len(names) and len(c.get_offsets()) == len(names)]
    assert len(points) == drawn["rung"].nunique()
    filled = sum((one.get_facecolor()[:, :3] < 1).any(axis=1).sum() for one in points)
    assert filled == (drawn["importance"] > drawn["chance"]).sum() > 0
    assert ax.get_legend().get_texts()[0].get_text().startswith("rung 1, ")
    ax.figure.canvas.draw()
    with pytest.raises(ToolkitError, match="no column chance; give what param_importances returned"):
        plot_param_importances(table.drop(columns="chance"))
    with pytest.raises(ToolkitError, match="no importances to draw"):
        plot_param_importances(table.assign(importance=np.nan))


def test_optuna_is_imported_only_when_importance_is_asked_for():
    modules = "import sys, analysis.search.importance, analysis.search.fidelity"
    code = f"{modules}\nprint([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
