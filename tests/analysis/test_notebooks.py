"""The notebooks: committed with outputs of real runs, and still running."""

import json
from pathlib import Path

import pytest

import analysis
from nas.runs.layout import LEDGER
from nas.runs.run import read_run

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(analysis.__file__).parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUNS = sorted((FOLDER / "data").glob(f"*/{LEDGER}"))


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_runs():
    assert [path.stem for path in NOTEBOOKS] == ["ablation", "search"]
    assert len(RUNS) == 6
    assert sum(path.stat().st_size for path in RUNS) < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    counts = [cell.execution_count for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1)), "run from top to bottom"
    kinds = [output["output_type"] for cell in code_cells(book) for output in cell.outputs]
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for cell in code_cells(book) for output in cell.outputs) >= 3
    assert path.stat().st_size < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(path, as_version=4)
    for cell in code_cells(book):
        cell.outputs = []
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.outputs for cell in code_cells(book)[1:])


@pytest.mark.parametrize("ledger", RUNS, ids=lambda path: path.parent.name)
def test_the_runs_are_whole_and_name_no_place(ledger):
    run = read_run(ledger.parent)
    assert all(trial.state.value in ("COMPLETE", "PRUNED") for trial in run.trials.values())
    for line in ledger.read_text().splitlines():
        assert json.loads(line)["event"]
    assert "/home/" not in ledger.read_text()
    assert run.data.source == "fashion-mnist-10k"
