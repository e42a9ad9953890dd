import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from nas.cli.app import main
from nas.reporting.progress import Progress
from nas.reporting.text import compute
from nas.runs.ledger import read_events
from nas.search.state import read_state
from nas.training.trainer import DivergedError
from nas.training.trial import Trial
from tests.nas.ablations import VARIANTS, ablation
from tests.nas.scripted import searched


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny study, by the command line."""
    import yaml

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    result = nas("run", folder / "tiny.yaml", "--out", folder / "run", "--in-process")
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_run_prints_ranking_front_and_files(finished):
    folder, output = finished
    for line in ("Ranking", "Front of val_loss against GFLOPs", "COMPLETE"):
        assert line in output
    said = "differs from the study's u-dit-toy in"
    assert output.count(said) == 2, "in the ranking and in the front"
    assert said in nas("table", folder / "run").output
    for name in ("front.png", "curves.png", "ledger.jsonl"):
        assert (folder / "run" / name).stat().st_size > 0
    assert output.count("trial 0 at rung 1 of 3") == 1, "plain lines when the output is not a terminal"


def test_a_dry_run_of_a_begun_run_has_the_hours_of_its_own_throughput(finished):
    folder, _ = finished
    result = nas("run", folder / "tiny.yaml", "--out", folder / "run", "--dry-run", "--set", "search.trials=8")
    assert result.exit_code == 0, result.output
    assert "1 at once (as in the run so far)" in " ".join(result.output.split())


def test_status_and_table(finished):
    folder, _ = finished
    status = nas("status", folder / "run").output
    assert "4 of 4 trials" in status
    (rung,) = [line.split() for line in status.splitlines() if line.split()[:1] == ["1"]]
    assert rung[1:3] == ["5e-05", "4"], "training TFLOPs, and how many reported"
    table = nas("table", folder / "run").output.splitlines()
    assert table[0].startswith("| trial | state | val_loss |")
    assert len(table) == 6
    assert nas("table", folder / "run", "--format", "latex").output.startswith("\\begin{tabular}")
    assert nas("table", folder / "run", "--format", "csv").output.startswith("trial,state,val_loss,")


def test_export_and_sample(finished, tmp_path):
    folder, _ = finished
    exported = nas("export", folder / "run", "--select", "pareto:2", "--out", tmp_path / "models").output.split()
    assert exported
    result = nas("sample", exported[0], "--classes", "3,9", "--per-class", 2, "--steps", 2, "--out", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "grid.png").exists()
    assert nas("sample", exported[0], "--classes", "3,12").exit_code == 2
    assert nas("sample", exported[0], "--classes", "shoes").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.yaml"], "nas: missing.yaml: no such file"),
        (["table", "nowhere"], "nas: nowhere is not a run directory"),
        (["cost", "u-dit-m"], "nas: no preset 'u-dit-m'"),
        (["sample", "nowhere"], "nas: nowhere is not a model folder"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(arguments, message):
    result = nas(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith(message)
    assert result.output.count("\n") == 1


def test_select_mistakes(finished):
    folder, _ = finished
    assert "no trial 17; the run has 0 to 3" in nas("export", folder / "run", "--select", "17").output
    assert "write best, pareto:K or a trial's number" in nas("export", folder / "run", "--select", "worst").output


def test_another_study_in_the_directory_changes_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.name != "lock"}
    result = nas("run", folder / "tiny.yaml", "--out", folder / "run", "--in-process", "--set", "training.batch_size=3")
    assert result.exit_code == 2
    assert "training.batch_size: 4 → 3" in result.output
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.name != "lock"}


def test_a_run_with_failed_trials_exits_with_1(tiny_file, tmp_path, monkeypatch):
    def diverge(self):
        raise DivergedError("diverged: the training loss is nan by step 50")

    monkeypatch.setattr(Trial, "advance", diverge)
    result = nas("run", tiny_file, "--out", tmp_path / "run", "--in-process")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert "FAILED: diverged: the training loss is" in result.output
    assert "run directory" in result.output
    assert "4 failed" in nas("status", tmp_path / "run").output


def test_a_study_that_cannot_train_at_all_stops_at_the_smoke_step(tiny_file, tmp_path):
    result = nas("run", tiny_file, "--out", tmp_path / "run", "--in-process", "--set", "training.learning_rate=1.0e+30")
    assert result.exit_code == 2
    assert "smoke step: the cheapest architecture" in result.output
    assert "lower training.learning_rate" in result.output
    assert not (tmp_path / "run").exists()


def test_a_run_in_which_all_fail_gives_up_and_says_why(tiny_file, tmp_path, monkeypatch):
    def break_(self):
        raise OSError("the data are gone")

    monkeypatch.setattr(Trial, "advance", break_)
    result = nas("run", tiny_file, "--out", tmp_path / "run", "--in-process", "--set", "search.trials=8")
    assert result.exit_code == 2
    assert "5 trials have failed and none has reported, the last one with: the data are gone; mend that" in result.output
    assert "5 failed" in nas("status", tmp_path / "run").output


def test_a_dry_run_prints_the_estimate_and_writes_nothing(tiny_file, tmp_path):
    result = nas("run", tiny_file, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0
    assert "feasible     100.0% of the space" in result.output
    assert "at most 900 MFLOPs" in result.output
    assert not (tmp_path / "run").exists()
    rated = nas("run", tiny_file, "--out", tmp_path / "run", "--dry-run", "--rate", "1 MFLOP/s").output
    assert "hours        about " in rated
    assert "(as given by --rate)" in rated.replace("\n" + " " * 13, " ")
    assert "is not a speed above 0 such as" in nas("run", tiny_file, "--dry-run", "--rate", "40 bananas").output
    assert "--rate is for --dry-run" in nas("run", tiny_file, "--out", tmp_path / "run", "--rate", "1 TFLOP/s").output


def test_a_dry_run_of_a_run_that_exists_bills_what_is_left_and_refuses_what_the_run_would(tiny, tiny_file, tmp_path):
    folder = tmp_path / "run"
    searched(tiny, folder)
    ledger = (folder / "ledger.jsonl").read_bytes()
    # The search is done; the finish is left.
    left = Progress.of(read_state(folder).run, read_events(folder)).remaining_macs
    assert 0 < left <= 100_000_000
    assert f"left         about {compute(left)} of training" in nas("run", tiny_file, "--out", folder, "--dry-run").output
    more = nas("run", tiny_file, "--out", folder, "--dry-run", "--set", "finish.budget=500 MFLOPs").output
    assert f"left         about {compute(left + 200_000_000)} of training" in more
    refused = nas("run", tiny_file, "--out", folder, "--dry-run", "--set", "training.batch_size=8")
    assert refused.exit_code == 2
    assert "holds another study (training.batch_size: 4 → 8)" in refused.output
    assert (folder / "ledger.jsonl").read_bytes() == ledger


def test_the_bill_of_an_ablation_that_grows_says_which_trainings_are_new(tmp_path):
    def new(*changes, **block):
        ablation(tmp_path, **block)
        output = nas("run", tmp_path / "ablation.yaml", "--out", folder, "--dry-run", *changes).output
        return " ".join(output.split("\nnew ")[1].split("\nleft ")[0].split())

    folder = tmp_path / "run"
    searched(ablation(tmp_path, variants=VARIANTS[:2]), folder)
    done, both = ", beside " + str(folder), VARIANTS[:2]
    assert new(variants=both) == "nothing: every planned training has begun" + done
    assert new(variants=both, seeds=5) == "6 of 15 trainings: seeds 3 to 4 of every row" + done
    assert new() == "3 of 12 trainings: seeds 0 to 2 of '+ conv'" + done
    assert new(seeds=4) == "7 of 16 trainings: seed 3 of 'plain', '+ cosine', '+ RoPE'; seeds 0 to 3 of '+ conv'" + done
    assert "\nnew " not in nas("run", tmp_path / "ablation.yaml", "--out", tmp_path / "other", "--dry-run").output


def test_validate(tiny_file):
    assert "fine" in nas("validate", tiny_file).output
    assert nas("validate", tiny_file, "missing.yaml").exit_code == 2


def test_validate_tells_of_an_ablation_with_too_few_samples_for_its_metric(tmp_path):
    def told(samples):
        ablation(tmp_path, f"evaluation.fid.samples={samples}", metric="fid")
        path = tmp_path / "ablation.yaml"
        path.write_text(path.read_text().replace("evaluation:", f"evaluation:\n  fid: {{samples: {samples}}}", 1))
        return nas("validate", path).output

    assert "4 rows\n  ablation.metric: 1,279 samples are too few to order models by fid (at least 1,280)" in told(1279)
    assert "too few" not in told(1280)


def test_values_that_are_never_feasible_are_told_before_a_run(tiny_file):
    space = ["--set", "search.space={channels: [8, 320, 640], heads: [1, 2], attention.similarity: [dot, cosine]}"]
    told = "channels 320, 640: no feasible architecture found in 100,000 draws"
    assert told in nas("run", tiny_file, "--dry-run", *space).output
    tiny_file.write_text(tiny_file.read_text().replace("    heads:", "    channels: [8, 320, 640]\n    heads:", 1))
    assert told in nas("validate", tiny_file).output


def test_validate_tells_all_mistakes_of_all_files(tiny_file, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(tiny_file.read_text().replace("batch_size: 4", "batch_sise: 4").replace("- mlp", "- mpl"))
    told = nas("validate", bad, "missing.yaml", tiny_file)
    assert told.exit_code == 2
    for words in ("unknown key 'training.batch_sise'", "'mpl' is not one of", "missing.yaml: no such file", f"{tiny_file}: fine"):
        assert words in told.output


def test_cost_of_presets_and_files(tmp_path):
    assert "gflops 6.0435" in nas("cost", "u-dit-s").output
    spec = tmp_path / "spec.yaml"
    spec.write_text("channels: 96\nheads: 4\ndepths: [2, 5, 8, 5, 2]\n")
    assert json.loads(nas("cost", spec, "--json").output)["params"] == 52_045_240
    spec.write_text("channels: 96\nheads: 5\ndepths: [2, 5, 8, 5, 2]\n")
    assert "5 heads do not fit" in nas("cost", spec).output
    assert "u-dit-t+reparam" in nas("presets").output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluation.val_loss.images=2000", "evaluation.val_loss.images is 2000, but only 1000 images are held out"),
        ("resources.gpu=99", "resources.gpu is 99, but no node has more than"),
        ("search.constraints={gflops: {min: 2}}", "the nearest has gflops"),
    ],
)
def test_what_cannot_be_run_writes_nothing(tiny_file, tmp_path, change, message, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = nas("run", tiny_file, "--out", tmp_path / "run", "--set", change)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "nan"], "guidance: input should be a finite number"),
        (["--out", "nowhere/grid.png"], "nowhere is no folder"),
        (["--out", "grid.xyz"], "give a name that ends in .png"),
    ],
)
def test_sample_mistakes_are_told_before_sampling(finished, arguments, message):
    folder, _ = finished
    (model,) = (folder / "run" / "export").iterdir()
    result = nas("sample", model, *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    "arguments", [["--help"], ["cost", "u-dit-b"], ["presets"], ["validate", "studies/quickstart_search.yaml"]]
)
def test_light_commands_import_neither_torch_nor_ray(arguments):
    code = f"""
import sys
from nas.cli.app import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", [name for name in ("torch", "ray", "optuna", "pandas") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "heavy: []"


def test_what_fails_in_concluding_a_run_is_told_and_the_run_is_done(finished, monkeypatch):
    folder, _ = finished

    def broken(*_):
        raise ValueError("no such font")

    monkeypatch.setattr("analysis.runs.plots.plot_front", broken)
    monkeypatch.setattr("analysis.runs.tables.ranking_table", broken)
    result = nas("run", folder / "tiny.yaml", "--out", folder / "run", "--in-process")
    assert result.exit_code == 0, result.output
    assert "ranking          not made: ValueError: no such font" in result.output
    assert "front.png        not made: ValueError: no such font" in result.output
    assert "curves           " in result.output
    assert "exported winner  " in result.output


def test_samples_that_cannot_be_drawn_leave_the_run_done_and_are_drawn_by_the_same_command(tiny_file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    command = ("run", tiny_file, "--out", tmp_path / "run", "--in-process", "--set", "search.trials=1")
    with monkeypatch.context() as patch:
        patch.setattr("nas.training.export.write_samples", full)
        result = nas(*command)
    assert result.exit_code == 0, result.output
    assert "samples          none: [Errno 28] No space left on device" in result.output
    assert not list((tmp_path / "run").rglob("samples.png"))
    assert nas(*command).exit_code == 0
    assert len(list((tmp_path / "run").rglob("samples.png"))) == 1


@pytest.mark.parametrize("backend", ["module://a_notebook.backend", "a_backend_of_the_future"])
def test_a_backend_of_a_notebook_that_is_not_here_is_not_asked(backend):
    code = """
from click.testing import CliRunner
from nas.cli.app import main
@main.command("draw")
def draw():
    from analysis.figures import new_axes
    new_axes()
main(["draw"])
"""
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_terminal_gets_what_it_can_print(encoding):
    code = """
import click
from nas.cli.app import main
from space.errors import ToolkitError
@main.command("speak")
def speak():
    from rich.console import Console
    Console().print("0.5 ± 0.1 ≠ 1 × 2 …")
    click.echo("training.batch_size: 4 → 3, 漢, \\udcff")
    raise ToolkitError("a ≠ b")
main(["speak"])
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr
    # Click writes UTF-8 where Python takes the terminal's encoding for ASCII, which it seldom is.
    first, second = done.stdout.splitlines()
    expected = {"ascii": "0.5 +- 0.1 != 1 x 2 ...", "latin-1": "0.5 ± 0.1 != 1 × 2 ...", "utf-8": "0.5 ± 0.1 ≠ 1 × 2 …"}
    assert first.decode(encoding) == expected[encoding]
    if encoding == "latin-1":
        assert second.decode(encoding) == "training.batch_size: 4 -> 3, \\u6f22, \\udcff"
        assert done.stderr == b"nas: a != b\n"
