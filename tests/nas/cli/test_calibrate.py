import copy

import pytest
import yaml
from click.testing import CliRunner

from nas.cli.app import main
from nas.execution import runner
from nas.runs.calibrations import CALIBRATION, read_calibration
from nas.runs.run import read_run
from nas.runs.winners import winners
from nas.study.calibration import OWN
from nas.study.load import load_study
from tests.conftest import TINY
from tests.nas.scripted import ScriptedExecutor

FEW = ("--architectures", 2, "--seeds", 2, "--protocol", "slow: training.learning_rate=1e-4")
SCRIPTED = ("--in-process", "--set", "finish=null", "--set", "evaluation.samples=null")


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Scripted(ScriptedExecutor):
    pass


@pytest.fixture
def scripted(monkeypatch):
    Scripted.put_in_place(monkeypatch)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrate") / "tiny.yaml"
    short = {"budget": {"max": "45 MFLOPs", "mode": "none"}, "search": {**TINY["search"], "trials": 2}}
    path.write_text(yaml.safe_dump({**copy.deepcopy(TINY), **short}, sort_keys=False))
    return path


def test_a_calibration_trains_tells_and_writes(study_file, tmp_path):
    folder = tmp_path / "c"
    result = nas("calibrate", study_file, *FEW, "--out", folder, "--in-process")
    assert result.exit_code == 0, result.output
    assert "2 of 2: slow; training.learning_rate=1e-4" in result.output
    assert "Calibration of tiny: val_loss at 2 architectures × 2 seeds" in result.output
    assert "the study's own protocol is kept" in result.output
    assert {path.name for path in folder.iterdir()} == {"as-given", "slow", CALIBRATION, "training.yaml"}
    found = read_calibration(folder)
    assert [(row.protocol, row.rung, row.failed) for row in found.rows] == [(OWN, 1, 0), ("slow", 1, 0)]
    assert all(row.figures.within_sd > 0 for row in found.rows)
    runs = {name: read_run(folder / name) for name in ("as-given", "slow")}
    assert {trial.seed for trial in runs["slow"].trials.values()} == {0, 1}
    one, two = (runs[name].trials[0].reports[0] for name in ("as-given", "slow"))
    assert one.step == two.step
    assert one.val_loss < two.val_loss, "at a tenth of the rate less is learnt"
    assert not any((folder / name / "export").exists() for name in runs)
    asked = nas("export", folder / "slow", "--select", "best")
    assert asked.exit_code == 0, asked.output
    assert len(list((folder / "slow" / "export").iterdir())) == 1


def test_no_run_of_a_calibration_exports_its_winner(study_file, tmp_path, monkeypatch):
    exported = []
    monkeypatch.setattr(runner, "_executor", lambda *_: Scripted())
    monkeypatch.setattr(runner, "_export_winners", lambda search, *_: exported.append(search.study.name))
    monkeypatch.setattr(Scripted, "loss", lambda _, plan, rung: 1 - plan.number % 2 + 1e-3 * plan.seed * (plan.number % 2))
    result = nas("calibrate", study_file, *FEW, "--seeds", 4, "--in-process", "--out", tmp_path / "c")
    assert result.exit_code == 0, result.output
    run = read_run(tmp_path / "c" / "as-given")
    assert winners(run), "a row is claimed to be better"
    assert not exported
    runner.run_study(run.study, tmp_path / "c" / "as-given", in_process=True)
    assert exported == [run.study.name], "as a run of its own it exports"


def test_the_same_command_trains_nothing_and_more_of_everything_tops_up(study_file, tmp_path, scripted):
    folder = tmp_path / "c"
    asked = ("calibrate", study_file, *FEW, "--out", folder, *SCRIPTED, "--reference", "120 MFLOPs")
    assert nas(*asked).exit_code == 0
    before = {path: path.read_bytes() for path in (folder / CALIBRATION, folder / "slow" / "ledger.jsonl")}
    assert read_calibration(folder).reference == 120_000_000
    assert {trial.seed for trial in read_run(folder / "reference").trials.values()} == {1000}
    bill = " ".join(nas(*asked, "--dry-run").output.split())
    assert "left nothing left to train; the rest is done" in bill
    assert nas(*asked).exit_code == 0
    assert before == {path: path.read_bytes() for path in before}
    more = (*asked, "--seeds", 3, "--architectures", 3, "--reference-seeds", 2)
    assert "left 930 MFLOPs left to train" in " ".join(nas(*more, "--dry-run").output.split())
    assert nas(*more).exit_code == 0
    found = read_calibration(folder)
    assert [(row.planned, row.figures.architectures, row.figures.seeds) for row in found.rows] == [(9, 3, 3), (9, 3, 3)]


def test_an_interrupted_calibration_goes_on_to_the_same_report(study_file, tmp_path, scripted):
    asked = ("calibrate", study_file, *FEW, *SCRIPTED, "--set", "budget={max: 100 MFLOPs, rungs: 2}", "--out")
    assert nas(*asked, tmp_path / "whole").exit_code == 0
    Scripted.left = 11
    stopped = nas(*asked, tmp_path / "parts")
    assert stopped.exit_code == 75, stopped.output
    assert not (tmp_path / "parts" / CALIBRATION).exists()
    Scripted.left = None
    assert nas(*asked, tmp_path / "parts").exit_code == 0
    for name in (CALIBRATION, "training.yaml"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_it_writes_is_a_part_of_a_study(study_file, tmp_path, scripted):
    assert nas("calibrate", study_file, *FEW, *SCRIPTED, "--out", tmp_path / "c").exit_code == 0
    study = yaml.safe_load(study_file.read_text())
    del study["training"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"extends": "c/training.yaml", **study}))
    assert load_study(tmp_path / "study.yaml") == load_study(study_file)


def test_a_search_beside_it_tells_what_it_found(study_file, tmp_path, scripted):
    alone = nas("run", study_file, "--out", tmp_path / "alone", *SCRIPTED).output
    assert "smoke: no calibration of this protocol is known" in alone
    assert not any(line.startswith("spread") for line in alone.splitlines())
    assert nas("calibrate", study_file, *FEW, *SCRIPTED, "--out", tmp_path / "tiny-calibration").exit_code == 0
    result = nas("run", study_file, "--out", tmp_path / "run", *SCRIPTED)
    told = [line for line in result.output.splitlines() if "(calibration tiny-calibration)" in line]
    assert len(told) == 2, result.output
    assert told[0].startswith("smoke: at one seed, ")
    assert told[1].startswith("spread           at one seed, ")


def test_replicates_go_before_a_calibration(study_file, tmp_path, scripted):
    assert nas("calibrate", study_file, *FEW, *SCRIPTED, "--out", tmp_path / "tiny-calibration").exit_code == 0
    replicated = ("--set", "search.trials=4", "--set", "search.replicates=2")
    result = nas("run", study_file, "--out", tmp_path / "run", *SCRIPTED, *replicated)
    (told,) = [line for line in result.output.splitlines() if line.startswith("spread")]
    assert "between 2 complete architectures; " in told
    assert "over 2 seeds" in told


def test_the_default_bill_counts_seven_protocols_and_writes_nothing(study_file, tmp_path):
    result = nas("calibrate", study_file, "--out", tmp_path / "c", "--dry-run", "--rate", "1 GFLOP/s")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "training 126 trainings, 5.67 GFLOPs" in text
    assert "about 6 s of training" in text
    for name in ("as given", "half the rate", "twice the rate", "warm-up", "decay", "no EMA", "twice the batch"):
        assert name in text
    assert "left out the study has" not in text
    assert not (tmp_path / "c").exists()


def test_what_does_not_fit_is_left_out_and_said(study_file, tmp_path):
    narrow = ("--set", "budget.max=25 MFLOPs", "--set", "search.space.heads=[1]")
    result = nas("calibrate", study_file, "--out", tmp_path / "c", "--dry-run", "--architectures", 5, *narrow)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "left out the study has 4 architectures, fewer than the 5 asked for" in text
    assert "left out protocol 'twice the batch': budget: the first rung" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "fast"], "nas: --protocol 'fast': write NAME: KEY=VALUE"),
        (["--protocol", "x: training.learning_rate=-1"], "nas: protocol 'x': training.learning_rate: input should be greater"),
        (["--protocol", "As given: training.clip_norm=1"], "nas: two protocols are called"),
        (["--reference", "1 MFLOPs"], "nas: --reference 1 MFLOPs is not above the study's budget"),
        (["--reference", "much"], "nas: protocol 'reference': budget.max: "),
        (["--rate", "1 GFLOP/s"], "nas: --rate is for --dry-run"),
        (["--set", "data.held_out=0.001"], "nas: evaluation.val_loss.images is 16, but only"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(study_file, tmp_path, arguments, message):
    result = nas("calibrate", study_file, "--out", tmp_path / "c", "--in-process", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith(message)
    assert result.output.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_another_study_in_the_folder_is_refused(study_file, tmp_path, scripted):
    asked = ("calibrate", study_file, *FEW, *SCRIPTED, "--out", tmp_path / "c")
    assert nas(*asked).exit_code == 0
    before = (tmp_path / "c" / CALIBRATION).read_bytes()
    result = nas(*asked, "--set", "training.clip_norm=1")
    assert result.exit_code == 2
    assert "training.clip_norm" in result.output
    assert (tmp_path / "c" / CALIBRATION).read_bytes() == before
