"""The published tables against the text of their CSV files, cell by cell, and the look-ups that studies make."""

import csv
import doctest
import subprocess
import sys
from importlib.resources import files

import pytest

import space.published.rows
import space.published.tables
from space.errors import ToolkitError
from space.published import Protocol, correlations, published, published_table, table_names

CSV = {file.name: file.read_text(encoding="utf-8") for file in files("space.published").iterdir() if file.name.endswith(".csv")}
CORRELATIONS = "dit_figure_correlations_gflops_vs_metric.csv"


def lines_of(name):
    """The CSV rows of a table, found by its name's first letters."""
    found = [text for stem, text in CSV.items() if stem.startswith(f"{name}_")]
    assert len(found) == 1, name
    return list(csv.DictReader(found[0].splitlines()))


def texts_of(row):
    """Everything a row says but its note, as text."""
    return {*row.label.split(", "), row.printed, row.gflops, row.params_m, *row.scores.values(), row.train_steps_k, row.cfg} | {
        *(str(row.resolution), row.steps_per_s, row.block, row.source, str(row.protocol.batch_size))
    }


def test_every_file_is_a_table():
    assert set(CSV) - {CORRELATIONS} == {stem for stem in CSV for name in table_names() if stem.startswith(f"{name}_")}
    assert len(table_names()) == len(CSV) - 1


@pytest.mark.parametrize("name", table_names())
def test_every_cell_of_the_file_is_in_its_row(name):
    lines = lines_of(name)
    rows = published_table(name).rows
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert None not in line, "a line has more cells than the header"
        for column, cell in line.items():
            if column in ("fid", "sfid", "is", "precision", "recall"):
                assert row.scores.get(column, "") == cell
            elif column.startswith("fid"):  # FID under the names of DiT's tables and of the figures
                assert row.scores["fid"] == cell
            elif column.endswith("_pct"):
                assert row.scores.get(column.removesuffix("_pct"), "") == (f"0.{cell.replace('.', '')}" if cell else "")
            elif column == "cumulative":
                assert ("added to the row before" in row.note) == (cell == "yes")
            else:
                assert cell in texts_of(row) or cell in row.note, column
        assert row.source.startswith("digitised") == row.digitised
        assert row.source


@pytest.mark.parametrize("name", table_names())
def test_a_row_is_found_by_its_label_and_has_numbers(name):
    found = published_table(name)
    assert len(set(found.labels)) == len(found.rows)
    assert found.labels == tuple(row.label for row in found.rows)
    for row in found.rows:
        assert found.row(row.label) is row
        assert row.label.startswith(row.printed)
        for number in (row.gflops, row.params_m, row.steps_per_s, row.train_steps_k, row.cfg, *row.scores.values()):
            assert number == "" or float(number) > 0
        assert all(float(row.scores.get(metric, "0.5")) < 1 for metric in ("precision", "recall"))


def test_numbers_read_off_the_papers():
    """Typed from the papers, not from the files."""
    last = published_table("udit_table9").row("U-DiT-T (+Re-param.)")
    assert (last.gflops, last.scores) == (
        "0.95",
        {"fid": "75.71", "sfid": "16.27", "is": "18.59", "precision": "0.336", "recall": "0.512"},
    )
    assert published_table("udit_table2").row("DiT-XL/2 [28]").scores == {"fid": "19.47"}
    assert published_table("udit_table4").row("U-DiT-L").cfg == "1.5"
    assert published_table("udit_table5").row("U-DiT-L, 1000K").scores["fid"] == "7.54"
    assert published_table("udit_table6").row("U-DiT-B").resolution == 512
    assert published_table("udit_table8").row("U-DiT-B").params_m == "204.43"
    assert published_table("udit_table11").row("U-DiT-B (Vanilla)").steps_per_s == "3.14"
    assert published_table("dit_table4").row("DiT-XL/2, 256 px, 7000K, adaLN-Zero").scores == {"fid": "9.62"}
    assert correlations() == {"fid": "-0.93", "sfid": "-0.86", "is": "0.90", "precision": "0.93", "recall": "0.86"}


def test_labels_are_as_printed_where_that_is_enough():
    changed = {name: [row.label for row in published_table(name).rows if row.label != row.printed] for name in table_names()}
    assert {name for name, labels in changed.items() if labels} == {"udit_table5", "udit_figure1", "udit_figure2", "dit_table4"}
    assert published_table("udit_table5").labels[:2] == ("DiT-XL/2", "U-DiT-B, 200K")


def test_only_the_figures_are_digitised():
    assert {name for name in table_names() if any(row.digitised for row in published_table(name).rows)} == {
        "udit_figure1",
        "udit_figure2",
    }
    assert all(row.digitised for name in ("udit_figure1", "udit_figure2") for row in published_table(name).rows)


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(ToolkitError, match="no published table 'udit_tabel9'; did you mean 'udit_table9'?"):
        published_table("udit_tabel9")
    with pytest.raises(
        ToolkitError, match=r"U-DiT Table 9 \(udit_table9\) has no row 'U-DiT-T \(\+RoPE\)'; did you mean '.*RoPE2D"
    ):
        published_table("udit_table9").row("U-DiT-T (+RoPE)")
    with pytest.raises(ToolkitError, match="U-DiT Table 5 prints 'U-DiT-B' in 5 rows; name one of them: 'U-DiT-B, 200K', "):
        published_table("udit_table5").row("U-DiT-B")


PAPER = Protocol("ImageNet 256×256", 256, 400_000, 50_000, 250, 1.0)


@pytest.mark.parametrize("name", ["udit_table1", "udit_table2", "udit_table7", "udit_table9", "udit_table10", "udit_table11"])
def test_the_papers_common_protocol(name):
    assert published_table(name).protocol == PAPER
    assert {row.protocol for row in published_table(name).rows} == {PAPER}


def test_protocols_that_are_not_the_common_one():
    assert PAPER.differences(published_table("udit_table4").protocol) == ("guidance",)
    assert PAPER.differences(published_table("udit_table6").protocol) == ("data",)
    assert published_table("udit_table4").protocol.guidance == 1.5
    assert published_table("udit_table6").protocol.data == "ImageNet 512×512"
    assert published_table("udit_table5").protocol.train_steps is None, "its rows differ"
    assert PAPER.differences(published_table("udit_table5").row("U-DiT-B, 600K").protocol) == ("train_steps",)
    assert published_table("udit_table8").protocol.train_steps is None, "nothing is trained"
    sit = published_table("udit_figure1").row("SiT-LLAMA, 6.1 GFLOPs")
    assert (sit.protocol.sampling_steps, sit.protocol.train_steps) == (None, 400_000)


def test_differences_of_protocols():
    small = Protocol("fashion-mnist-10k", 64, 4_000, 2_000, 50, None)
    assert (
        PAPER.differences(small) == small.differences(PAPER) == ("data", "batch_size", "train_steps", "samples", "sampling_steps")
    )
    assert PAPER.differences(PAPER) == ()


def test_rows_of_presets_are_rows_of_the_tables():
    titles = {published_table(name).title: published_table(name) for name in table_names()}
    for found in published():
        alike = [row for row in titles[found.table].rows if row.printed == found.row and row.resolution == found.resolution]
        assert found.gflops in {row.gflops for row in alike}
        assert found.scores in [row.scores for row in alike]
    assert len(published()) == 57
    assert [row.scores["fid"] for row in published("dit-xl/2") if row.table == "DiT Table 4"] == ["19.47", "13.78", "11.93"]


def test_import_needs_no_frames():
    code = "import sys, space.published; space.published.published_table('udit_table9')\n"
    code += "print([m for m in ('pandas', 'matplotlib', 'torch') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("module", [space.published.rows, space.published.tables])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
