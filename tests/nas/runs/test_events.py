"""Events and their lines: what is refused, and how; ledgers of schema 2."""

import json
import math
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

import analysis
from nas.cli.app import main
from nas.runs.events import KINDS, parse_event
from nas.runs.layout import LEDGER
from nas.runs.ledger import Ledger, read_events
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.search.state import read_state
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import VARIED, plain, searched

RECORDED = sorted((Path(analysis.__file__).parent / "notebooks" / "data").glob(f"*/{LEDGER}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("events") / "run"
    searched(load_study(TINY, [*VARIED, "budget.mode=promote"]), folder, workers=3, failing=(4,))
    return folder


def test_every_event_reads_back_as_it_was(folder):
    events = list(read_events(folder))
    header = events[0].data
    assert {event.event for event in events} >= {"run", "trial", "report", "promote", "end"}
    for event in events:
        assert type(event) is KINDS[event.event]
        again = parse_event(json.dumps(event.plain()).encode(), "x:1", header)
        assert again.plain() == event.plain()


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("report", {"val_loss": None}, "val_loss: input should be a valid number, not None"),
        ("report", {"val_loss": ...}, "'val_loss' is missing"),
        ("report", {"val_loss": math.nan}, "val_loss: input should be a finite number, not nan"),
        ("report", {"scores": {"fid": math.inf}}, "scores.fid: input should be a finite number, not inf"),
        ("report", {"val_loss": "0.5"}, "val_loss: input should be a valid number, not '0.5'"),
        ("report", {"step": 1.5}, "step: input should be a valid integer"),
        ("report", {"losss": 1}, "unknown key 'losss'"),
        ("report", {"trial": 99}, "the event 'report' does not follow from the lines before it"),
        ("report", {"rung": 7}, "the event 'report' does not follow from the lines before it"),
        ("trial", {"spec.skip": "adds"}, "spec.skip: 'adds' is not one of 'concat' or 'add'; did you mean 'add'?"),
        ("trial", {"spec.channels": "many"}, "spec.channels: input should be a valid integer"),
        ("trial", {"spec.attention": 3}, "spec.attention"),
        ("end", {"state": "PRUNE"}, "state: input should be 'RUNNING', 'COMPLETE', 'PRUNED' or 'FAILED'"),
        ("end", {"event": "ended"}, "is damaged"),
        ("run", {"schema": 4}, "has schema 4, but this version reads 3 and 2"),
        ("run", {"study.budget.rungs": "two"}, "the run's study is not valid here"),
        ("run", {"data": ...}, "the run's study is not valid here"),
    ],
)
def test_a_line_that_is_no_valid_event_is_refused_with_file_line_and_key(folder, tmp_path, kind, change, sentence):
    events = plain(folder)
    line = next(number for number, event in enumerate(events) if event["event"] == kind)
    for path, value in change.items():
        *outer, last = path.split(".")
        inner = events[line]
        for key in outer:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    (tmp_path / LEDGER).write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(ToolkitError) as refused:
        read_state(tmp_path)
    text = str(refused.value)
    assert sentence in text
    assert (f"{LEDGER}:{line + 1}" in text) or "has schema" in text
    assert "\n" not in text


def damaged(lines, rng):
    """A ledger with one line changed at random, which stays JSON in most cases."""
    lines = list(lines)
    number = rng.randrange(len(lines))
    event = json.loads(lines[number])
    inner, keys = event, []
    while isinstance(inner, dict) and inner:
        keys.append(rng.choice(sorted(inner)))
        if not isinstance(inner[keys[-1]], dict) or rng.random() < 0.3:
            break
        inner = inner[keys[-1]]
    if isinstance(inner, dict) and keys:
        what = rng.choice([None, -1, 10**9, 1e300, "x", "", [], {}, True, ...])
        if what is ...:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = what
    text = json.dumps(event)
    if rng.random() < 0.2:
        text = text[: rng.randrange(len(text))]
    lines[number] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damage_of_a_ledger_ends_in_a_traceback(folder, tmp_path, count):
    rng, runner = random.Random(count), CliRunner()
    lines = (folder / LEDGER).read_text().splitlines()
    for number in range(count):
        (tmp_path / LEDGER).write_text(damaged(lines, rng))
        others = [("export", "--select", "0", "--out", str(tmp_path / "exported")), ("replay",)] if number % 10 == 0 else []
        for command, *arguments in (("status",), ("table",), *others):
            done = runner.invoke(main, [command, str(tmp_path), *arguments])
            assert done.exit_code in (0, 2), (done.exception, (tmp_path / LEDGER).read_text())
            assert done.exit_code == 0 or len(done.output.strip().splitlines()) == 1, done.output


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_runs_are_read_in_todays_words(path):
    run = read_run(path.parent)
    assert run.trials
    assert all(trial.spec.stem in ("conv", "linear") for trial in run.trials.values())
    assert run.study.budget.reduction_factor >= 2
    for event in read_events(path.parent):
        assert "ends" not in event.plain().get("spec", {})


def test_a_recorded_search_over_a_renamed_field_is_read_in_todays_words(tmp_path):
    path = next(path for path in RECORDED if path.parent.name == "quickstart-search")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    study = events[0]["study"]
    study["model"]["set"]["ends"] = "linear"
    study["search"]["space"]["ends"] = {"choice": ["linear", "conv"]}
    begun = [event for event in events if event["event"] == "trial"]
    for event in begun:
        event["params"]["ends"] = "conv"
        event["rejected"] = [{"params": {"ends": "linear"}, "violations": {}}]
    (tmp_path / LEDGER).write_text("".join(json.dumps(event) + "\n" for event in events))
    run = read_run(tmp_path)
    assert run.study.model.set["stem"] == "linear"
    assert "stem" in run.study.search.space
    assert all(trial.params["stem"] == "conv" for trial in run.trials.values())
    assert all(trial.rejected[0].params == {"stem": "linear"} for trial in run.trials.values())


def test_a_run_of_schema_2_is_resumed(tmp_path):
    root = Path(analysis.__file__).parent
    (tmp_path / LEDGER).write_bytes((root / "notebooks" / "data" / "quickstart-search" / LEDGER).read_bytes())
    recorded = read_run(tmp_path)
    begun = len(recorded.trials)
    study = load_study(recorded.study.model_dump(mode="json"), [f"search.trials={begun + 2}"])
    ledger = Ledger(tmp_path)
    assert Search(study, ledger).next_plan().number == begun
    ledger.close()
    assert len(read_run(tmp_path).trials) == begun + 1
