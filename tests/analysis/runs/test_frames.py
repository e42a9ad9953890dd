"""Frames, tables and figures from a scripted ledger: complete, pruned, failed and running trials."""

from io import StringIO

import matplotlib as mpl
import numpy as np
import pytest
from rich.console import Console

from analysis import curves_info, front_info, load, plot_curves, plot_front, ranking_table, render
from analysis.runs.tables import architecture_texts, cells
from nas.cli.conclude import print_text
from nas.runs.ledger import Ledger
from nas.search.controller import Search
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import VARIED, searched
from tests.nas.search.test_controller import carry_out, study  # noqa: F401

mpl.use("Agg")


@pytest.fixture
def run(study, tmp_path):  # noqa: F811
    ledger = Ledger(tmp_path / "run")
    carry_out(Search(study, ledger), workers=3, failing=(2,), stop_after=20)
    ledger.close()
    return load(tmp_path / "run")


def test_only_complete_trials_have_a_final_value(run):
    states = set(run.trials["state"])
    assert {"COMPLETE", "PRUNED", "FAILED"} <= states
    assert (run.trials["val_loss"].notna() == (run.trials["state"] == "COMPLETE")).all()
    pruned = run.trials[run.trials["state"] == "PRUNED"]
    assert pruned["last_val_loss"].notna().all()
    assert run.trials.set_index("trial").loc[2, "reason"] == "broken"
    assert {"param.channels", "param.heads", "gflops", "params_m", "peak_memory_mib", "images_per_s"} <= set(run.trials.columns)


def test_one_row_a_report(run):
    assert len(run.reports) == 20
    assert set(run.reports["phase"]) == {"search"}
    assert run.reports.groupby("trial")["rung"].apply(list).map(lambda r: r == list(range(1, len(r) + 1))).all()


def test_front_is_what_nothing_beats(run):
    info = front_info(run)
    values = info.points[["gflops", "val_loss"]].to_numpy()
    for value, on_front in zip(values, info.points["on_front"], strict=True):
        beaten = (np.all(values <= value, axis=1) & np.any(values < value, axis=1)).any()
        assert on_front == (not beaten)
    assert info.left_out == (run.trials["state"] != "COMPLETE").sum()


def test_ranking_puts_complete_trials_first_by_loss(run):
    table = ranking_table(run)
    complete = table[table["state"] == "COMPLETE"]
    assert complete.index.tolist() == list(range(len(complete)))
    assert complete["val_loss"].is_monotonic_increasing
    assert table[table["state"] == "PRUNED"]["val_loss"].isna().all()


def test_tables_as_text(run):
    table = ranking_table(run)
    markdown = render(table, "md").splitlines()
    assert len(markdown) == len(table) + 2
    assert len({line.count("|") for line in markdown}) == 1
    assert "nan" not in "\n".join(markdown)
    assert "\\toprule" in render(table, "latex")
    assert render(table, "csv").count("\n") == len(table) + 1
    with pytest.raises(ToolkitError, match="no table format 'html'; known: md, latex, csv"):
        render(table, "html")


def test_figures_show_every_point(run):
    info = front_info(run)
    axes = plot_front(run)
    assert sum(len(c.get_offsets()) for c in axes.collections) == len(info.points)
    axes = plot_curves(run)
    assert len(curves_info(run)) == len(run.reports)
    drawn = [line for line in axes.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
    assert len(drawn) >= run.reports["trial"].nunique()


def test_a_front_of_three_objectives_has_the_third_as_its_colour(tiny_file, tmp_path):
    objectives = "search.objectives=[{metric: params_m}, {metric: val_loss}, {metric: step_seconds}]"
    changes = [*VARIED, "search.trials=12", objectives, "budget={steps: 12, rungs: 3}", "finish=null"]
    data = load(searched(load_study(tiny_file, changes), tmp_path / "run").run)
    info = front_info(data)
    assert info.axes == ("val_loss", "params_m", "step_seconds")
    assert info.points["step_seconds"].unique().tolist() == [4.0], "scripted reports train one image a second"
    on_front = info.points[info.points["on_front"]]
    assert set(on_front["trial"]) == {trial.number for trial in data.run.front()}
    axes = plot_front(data)
    assert sum(len(c.get_offsets()) for c in axes.collections) == len(info.points)
    assert axes.get_xlabel() == "million parameters (folded)"
    assert axes.get_ylabel() == "validation loss after 12 steps"
    assert "complete trials at equal steps" in axes.get_title()
    curves = plot_curves(data)
    assert curves.get_xlabel() == "training steps"
    assert [line.get_xdata()[0] for line in curves.lines if line.get_linestyle() == ":"] == [3, 6, 12]


def test_an_empty_run_still_gives_frames(study, tmp_path):  # noqa: F811
    ledger = Ledger(tmp_path / "empty")
    Search(study, ledger)
    ledger.close()
    empty = load(tmp_path / "empty")
    assert len(empty.trials) == 0
    assert front_info(empty).points.empty
    assert curves_info(empty).empty
    assert len(ranking_table(empty)) == 0
    assert render(ranking_table(empty), "md").count("\n") == 2
    plot_front(empty)
    plot_curves(empty)
    with pytest.raises(ToolkitError, match="is not a run directory"):
        load(tmp_path)


def test_tables_say_what_the_architectures_are(run):
    texts = architecture_texts(run)
    assert texts.name == "differs from the study's u-dit-toy in"
    assert sorted(texts.index) == run.trials["trial"].tolist()
    ranked = ranking_table(run).set_index("trial")
    assert ranked[texts.name].to_dict() == texts.to_dict()
    base, own = run.study.base, run.run.trials
    assert len(set(texts)) == len({trial.digest for trial in own.values()})
    for number, text in texts.items():
        heads = own[number].spec.heads
        assert (f"heads {heads}" in text) == (heads != base.heads)


def test_differences_as_text(run):
    base = run.study.base
    changes = {
        "depths.encoder-2": 3,
        "depths.decoder-1": 2,
        "attention.tokens": "all",
        "feed_forward.ratio": 4.0,
        "null_class": False,
    }
    for trial, spec in zip(run.run.trials.values(), (base, base.replace(changes)), strict=False):
        trial.spec = spec
    first, second, *_ = architecture_texts(run)
    assert first == "nothing"
    assert second == "depths encoder-2 3, decoder-1 2; attention.tokens all; feed_forward.ratio 4; null_class false"


@pytest.mark.parametrize("width", [100, 160])
def test_a_printed_ranking_keeps_to_its_width_and_breaks_no_number(run, width):
    changes = {f"depths.{index}": 3 for index in range(5)} | {"attention.downsampler": "pixel-shuffle", "feed_forward.kind": "mlp"}
    for trial in run.run.trials.values():
        trial.spec = run.study.base.replace(changes)
    ranked = ranking_table(run)
    console = Console(width=width, file=StringIO())
    print_text(console, cells(ranked.drop(columns=["train GFLOPs", "images/s", "memory (MiB)"])), "Ranking")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for loss in ranked["val_loss"].dropna():
        assert f"{loss:.4f}" in text
    assert text.count("pixel-shuffle") == text.count("COMPLETE") + text.count("PRUNED") + text.count("FAILED") + text.count(
        "RUNNING"
    )
