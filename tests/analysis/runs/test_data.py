"""`analysis.load`: one object for every function that reads a run, and one sentence for anything else."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

import analysis
from nas.runs.run import Run, read_run
from nas.study.load import load_study
from space.errors import RunError, ToolkitError
from tests.nas.ablations import ablation, effects
from tests.nas.scripted import VARIED, searched

mpl.use("Agg")

ON_ANY_RUN = {
    "ranking_table": analysis.ranking_table,
    "front_info": analysis.front_info,
    "plot_front": analysis.plot_front,
    "curves_info": analysis.curves_info,
    "plot_curves": analysis.plot_curves,
    "rank_fidelity": analysis.rank_fidelity,
}
ON_ONE_KIND = {"param_importances": analysis.param_importances, "ablation_tables": analysis.ablation_tables}


@pytest.fixture
def folder(tiny_file, tmp_path):
    searched(load_study(tiny_file, VARIED), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def ablated(tmp_path):
    study = ablation(tmp_path)
    return searched(study, tmp_path / "ablation", loss=effects(study)).run


def test_a_path_a_string_and_a_run_in_memory_give_the_same(folder):
    from_path, from_string, from_memory = (analysis.load(run) for run in (folder, str(folder), read_run(folder)))
    assert isinstance(from_memory.run, Run)
    for data in (from_path, from_string, from_memory):
        assert isinstance(data, analysis.RunData)
        assert data.study is data.run.study
        assert data.name == data.study.name
        assert len(data.trials) == len(data.run.trials) == 8
        pd.testing.assert_frame_equal(data.reports, from_path.reports)
    assert from_path.trials is from_path.trials, "made once"


@pytest.mark.parametrize("name", ON_ANY_RUN)
def test_every_function_takes_what_load_returns(name, folder, ablated):
    for run in (folder, ablated):
        assert ON_ANY_RUN[name](analysis.load(run)) is not None


def test_a_search_has_importances_and_an_ablation_has_tables(tiny_file, tmp_path, ablated):
    searched(load_study(tiny_file, [*VARIED, "budget.mode=none"]), tmp_path / "run")
    importances = analysis.param_importances(analysis.load(tmp_path / "run"), rung=1)
    assert set(importances["parameter"]) == {"channels", "heads", "feed_forward.kind"}
    data = analysis.load(ablated)
    assert analysis.ablation_tables(data)[0].title.startswith("tiny")
    assert analysis.compare(data.ablation.rows(""), baseline="plain")["variant"].tolist()[0] == "plain"


def test_what_a_run_is_not_is_said_in_a_sentence(folder, ablated):
    with pytest.raises(RunError, match="tiny is a search, which has no variants to compare"):
        _ = analysis.load(folder).ablation
    with pytest.raises(RunError, match="tiny is a search, which has no variants to compare"):
        analysis.ablation_tables(analysis.load(folder))
    with pytest.raises(RunError, match="tiny is an ablation, which searches no parameters"):
        analysis.param_importances(analysis.load(ablated))


@pytest.mark.parametrize("name", [*ON_ANY_RUN, *ON_ONE_KIND])
def test_another_argument_is_refused_in_a_sentence(name, folder):
    function = (ON_ANY_RUN | ON_ONE_KIND)[name]
    for wrong in (folder, str(folder), read_run(folder), None):
        with pytest.raises(ToolkitError, match=rf"takes a loaded run, but got {type(wrong).__name__}; pass analysis.load\(run\)"):
            function(wrong)


def test_a_frame_is_taken_by_rank_fidelity_alone(folder):
    reports = analysis.load(folder).reports
    assert len(analysis.rank_fidelity(reports)) == reports["rung"].max() == 3
    with pytest.raises(ToolkitError, match=r"takes a loaded run, but got DataFrame; pass analysis.load\(run\)"):
        analysis.ranking_table(reports)


@pytest.mark.parametrize(
    "function",
    [
        lambda data: analysis.compare(data, baseline="plain"),
        lambda data: analysis.ladder(data, order=["plain", "+ conv"]),
        lambda data: analysis.gain_at_equal_cost(data, baseline="plain"),
        lambda data: analysis.shapley(data, factors=["has.+ conv"]),
        lambda data: analysis.factorial_effects(data, factors=["has.+ conv"]),
        analysis.scaling_fit,
        lambda data: analysis.correlation(data, "gflops", "fid"),
    ],
)
def test_functions_on_frames_ask_for_a_frame(function, ablated):
    with pytest.raises(ToolkitError, match="takes a pandas DataFrame, but got RunData; pass a tidy frame"):
        function(analysis.load(ablated))


@pytest.mark.parametrize("plot", [analysis.plot_rank_fidelity, analysis.plot_param_importances, analysis.plot_compare])
def test_figures_of_tables_ask_for_the_table(plot, folder):
    with pytest.raises(ToolkitError, match=r"got RunData instead of a table; give what \w+ returned"):
        plot(analysis.load(folder))


@pytest.mark.parametrize("wrong", [3, None, pd.DataFrame()])
def test_load_refuses_what_is_no_run(wrong):
    with pytest.raises(ToolkitError, match=f"takes a run directory or a Run, but got {type(wrong).__name__}"):
        analysis.load(wrong)


def test_load_refuses_a_folder_or_a_run_without_a_study(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        analysis.load(tmp_path)
    with pytest.raises(RunError, match="the run has no study yet"):
        analysis.load(Run())


def test_the_public_names_are_listed_and_load_lazily():
    code = (
        "import sys, analysis\n"
        "assert dir(analysis) == sorted(analysis.__all__), dir(analysis)\n"
        "print([m for m in ('pandas', 'matplotlib', 'torch', 'ray', 'optuna') if m in sys.modules])\n"
        "for name in dir(analysis): getattr(analysis, name)\n"
        "print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])\n"
    )
    root = Path(analysis.__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert printed.split("\n")[:2] == ["[]", "[]"]
    assert {"load", "RunData", "plot_front", "ranking_table", "compare", "scaling_fit"} <= set(dir(analysis))
    assert not {"load_run", "load_ablation", "RunFrames"} & set(dir(analysis))
    with pytest.raises(AttributeError, match="No analysis attribute load_run"):
        _ = analysis.load_run
