"""`nas replay`, and replays of thousands of trials."""

import json
import time

import pytest
from click.testing import CliRunner

from nas.cli.replay import replay_command as command
from nas.replay.curves import recorded
from nas.replay.simulator import Arrival, Rules, replay_run
from nas.runs.records import State
from nas.runs.run import read_run
from nas.study.load import load_study
from tests.nas.recorded import ALL_FULLY, VARIED, noisy, seeded_loss
from tests.nas.scripted import facts, searched


def test_thousands_of_trials_take_seconds(tiny_file):
    study = load_study(tiny_file, [*ALL_FULLY, "search.constraints={}"])
    record = noisy(study, 2000, 0.5)
    for mode in ("stop", "promote"):
        start = time.process_time()
        found = replay_run(record, Rules(mode), Arrival(workers=8, repeats=1))
        assert time.process_time() - start < 15
        assert found.share.mean < 0.4


@pytest.fixture
def full(study, tmp_path):
    searched(study, tmp_path / "full")
    return tmp_path / "full"


def called(*words, code=0):
    found = CliRunner().invoke(command, list(map(str, words)))
    assert found.exit_code == code, found.output
    return found.output


def test_the_command_prints_what_a_replay_found(full):
    text = called(
        full, "--scheduler", "promote", "--reduction-factor", 4, "--grace-rungs", 1, "--workers", 2, "--repeats", 3, "--top", 2
    )
    record = recorded(read_run(full))
    found = replay_run(record, Rules("promote", 4, grace_rungs=1), Arrival(workers=2, repeats=3), top=2)
    assert "tiny: 24 architectures, recorded at 5 rungs of reduction 2" in text
    assert "24 trials tried in random order on 2 workers; mean ± sd of 3 orders" in text
    assert "promote, reduction 4, 3 rungs, grace 1, 1 bracket" in text
    assert f"{found.share.mean:.1%}".rstrip("%") in text
    lines = text.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.lstrip().startswith("rung ")) :]
    assert "top-2 regret" in table[0]
    assert table[4] == ""
    assert f"{found.rungs[0].agreement.tau:.3f}" in table[1]
    assert "tau within seeds" in table[0]
    assert "across" not in table[0]
    assert "so a training's luck counts as fidelity." in table[5]
    assert "record 8 architectures or more with search.replicates=2" in table[6]
    assert all(len(line) <= 132 for line in lines)


def test_the_commands_json_holds_the_same(full):
    data = json.loads(called(full, "--sampler", "recorded", "--json"))
    found = replay_run(recorded(read_run(full)), Rules(), Arrival("recorded"))
    (shown,) = data["replays"]
    assert shown["macs"] == {"mean": found.macs.mean, "sd": None}
    assert (shown["mode"], shown["reduction_factor"], shown["repeats"]) == ("stop", 2, 1)
    assert [rung["agreement"]["tau"] for rung in shown["rungs"]] == [rung.agreement.tau for rung in found.rungs]
    assert (data["recorded"], data["left_out"], data["sampler"]) == (24, 0, "recorded")


def test_compute_is_told_in_a_unit_that_fits(full):
    spent = replay_run(recorded(read_run(full)), Rules(), Arrival("recorded")).macs.mean
    assert spent < 1e12
    one, all_of_it = called(full, "--sampler", "recorded"), called(full, "--compare", "--repeats", 1)
    assert f"compute spent   {spent / 1e9:.4g} GFLOPs," in one
    assert "PFLOPs" not in one + all_of_it
    assert "  GFLOPs  " in all_of_it


def test_rungs_of_steps_are_told_in_steps_and_what_is_spent_in_compute(tiny_file, tmp_path):
    changes = [*VARIED, "budget={steps: 48, rungs: 5, mode: none}", "finish=null"]
    searched(load_study(tiny_file, changes), tmp_path / "run", loss=seeded_loss)
    one, compared = (called(tmp_path / "run", "--repeats", 2, *how) for how in ([], ["--compare"]))
    for text in (one, compared):
        rows = text[text.index("rung  steps") :].splitlines()[1:]
        assert [row.split()[:2] for row in rows[:5]] == [["1", "3"], ["2", "6"], ["3", "12"], ["4", "24"], ["5", "48"]]
    (shown,) = json.loads(called(tmp_path / "run", "--sampler", "recorded", "--json"))["replays"]
    costs = [trial.reports[0].macs for trial in read_run(tmp_path / "run").trials.values()]
    assert len(set(costs)) > 1
    assert (shown["rungs"][0]["mark"], shown["rungs"][0]["macs"]) == (3, round(sum(costs) / len(costs)))


def test_replicates_show_the_noise_ceiling(tiny_file, tmp_path):
    searched(load_study(tiny_file, [*ALL_FULLY, "search.replicates=2", "search.trials=24"]), tmp_path / "run", loss=seeded_loss)
    record = recorded(read_run(tmp_path / "run"))
    ceiling = record.agreements_across_seeds[-1]
    for how in ([], ["--compare"]):
        text = called(tmp_path / "run", "--repeats", 2, *how)
        head, *rows = text[text.index("rung  training TFLOPs") :].splitlines()
        assert head.index("tau within seeds") < head.index("tau across seeds") < head.index("top-3 regret")
        assert rows[4].split()[-5:-1] == [f"{ceiling.tau:.3f}", f"{ceiling.low:.3f}", "to", f"{ceiling.high:.3f}"]
        assert "at the last rung it is the noise" in text
        assert "search.replicates=2" not in text
    (shown,) = json.loads(called(tmp_path / "run", "--repeats", 2, "--json"))["replays"]
    assert shown["rungs"][4]["across_seeds"]["tau"] == ceiling.tau


def test_compare_shows_all_candidates_and_marks_those_not_beaten(full):
    rows = [line.split() for line in called(full, "--compare", "--repeats", 3).splitlines()]
    shown = [row for row in rows if row and {"stop", "promote", "none"} & set(row)]
    assert len(shown) == 9
    data = json.loads(called(full, "--compare", "--repeats", 3, "--json"))["replays"]
    places = [(one["macs"]["mean"], one["regret"]["mean"]) for one in data]
    for row, own in zip(shown, places, strict=True):
        beaten = any(o[0] <= own[0] and o[1] <= own[1] and o != own for o in places)
        assert (row[0] == "*") == (not beaten)


def test_the_commands_mistakes_are_one_sentence(full, tiny_file, tmp_path):
    assert "--compare goes through --scheduler, --reduction-factor, --grace-rungs by itself; leave --grace-rungs out" in called(
        full, "--compare", "--grace-rungs", 1, code=2
    )
    assert "is not a run directory" in called(tmp_path / "none", code=2)
    searched(load_study(tiny_file, [*VARIED, "search.trials=5"]), tmp_path / "few")
    text = called(tmp_path / "few", code=2)
    assert text.count("\n") == 1
    assert "a replay takes at least 8" in text


def test_a_pruned_runs_rest_is_shown_for_what_it_is(tiny_file, tmp_path):
    searched(load_study(tiny_file, [*VARIED, "search.trials=60", "budget.rungs=2"]), tmp_path / "run")
    pruned = len(read_run(tmp_path / "run").in_state(State.PRUNED))
    text = called(tmp_path / "run", "--repeats", 1)
    assert f"left out: {pruned} trials without reports at every rung" in text
    assert f"{pruned} of them had been pruned" in text


def test_reading_curves_changes_nothing(full):
    before = facts(full)
    replay_run(recorded(read_run(full)), Rules(), Arrival(repeats=1))
    assert facts(full) == before
