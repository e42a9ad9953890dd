"""Runs in Optuna's own storages, read back with Optuna."""

import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nas.runs.events import SCHEMA, Reported, RunBegan, TrialBegan, TrialEnded
from nas.runs.layout import LEDGER
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import Report, State
from nas.runs.run import read_run
from nas.search.optuna_export import export_run
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import searched

VARIED = [
    "search.space={channels: [8, 16], depths: {each: {int: [1, 2]}}, feed_forward.kind: [mlp, conv], "
    "feed_forward.ratio: {float: [1, 4], log: true}, "
    "feed_forward.reparam: {when: {feed_forward.kind: conv}, choice: [false, true]}}",
    "search.constraints={}",
    "search.trials=9",
]
TWO = "search.objectives=[{metric: val_loss}, {metric: gflops}]"
SECONDS = "search.objectives=[{metric: val_loss}, {metric: step_seconds}]"

ENDS = [State.COMPLETE, State.PRUNED, State.FAILED, State.COMPLETE, State.PRUNED, State.COMPLETE, State.FAILED, State.RUNNING]
RUNGS = [3, 1, 1, 3, 2, 3, 0, 2]


def write_run(folder, study, enqueued=()):
    """A ledger as a search writes it: trials 0 to 7 of the states and rungs above, then specs from outside the space, complete."""
    ledger, space = Ledger(folder), study.search_space
    rng = np.random.default_rng(7)
    ledger.append(RunBegan(schema_version=SCHEMA, study=study, data=study.header))
    drawn = [space.sample_params(rng) for _ in ENDS]
    for number, (params, spec) in enumerate(
        [*((params, space.spec(params)) for params in drawn), *((None, spec) for spec in enqueued)]
    ):
        about = {"params": params, "spec": spec, "digest": spec.digest, "rejected": ()}
        known = {"trial": number, "variant": number // 2, "seed": number % 2, "rungs": study.budget.rungs}
        ledger.append(TrialBegan(**known, **about))
    for number, (state, rungs) in enumerate(zip(ENDS + [State.COMPLETE] * len(enqueued), RUNGS + [3] * len(enqueued), strict=True)):
        for rung in range(rungs):
            report = Report(
                trial=number,
                rung=rung,
                step=10 * (rung + 1),
                images=40 * (rung + 1),
                macs=study.budget.milestones[rung],
                val_loss=float(rng.uniform(0.1, 1)),
                val_loss_bins=(0.0,),
                train_loss=0.0,
                seconds=1.0,
                images_per_s=20.0 + number,
                peak_memory_mib=100.0 - rung,
            )
            ledger.append(Reported(**report.model_dump()))
        if state is not State.RUNNING:
            reason = "diverged" if state is State.FAILED else ""
            ledger.append(TrialEnded(trial=number, state=state, reason=reason))
    ledger.close()
    return folder


@pytest.fixture
def folder(tiny_file, tmp_path):
    return write_run(tmp_path / "run", load_study(tiny_file, VARIED))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'optuna.db'}"


TOLD = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


@pytest.mark.parametrize("journal", [False, True])
def test_a_run_reads_back_as_it_was(folder, url, tmp_path, journal):
    path = str(tmp_path / "optuna.log")
    assert export_run(folder, path if journal else url) == 8
    storage = JournalStorage(JournalFileBackend(path)) if journal else url
    study = optuna.load_study(study_name="tiny", storage=storage)
    run = read_run(folder)
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE]
    assert study.metric_names == ["val_loss"]
    assert study.best_trial.number == run.best()[0].number
    assert study.best_value == run.best()[0].val_loss
    for shown, trial in zip(study.trials, run.trials.values(), strict=True):
        assert shown.number == trial.number
        assert shown.state is TOLD.get(trial.state, TrialState.RUNNING)
        assert shown.values == ([trial.val_loss] if trial.state is State.COMPLETE else None)
        assert shown.params == trial.params
        assert shown.intermediate_values == {report.rung + 1: report.val_loss for report in trial.reports}
        assert shown.user_attrs["digest"] == trial.spec.digest
        assert shown.user_attrs["seed"] == trial.seed
        assert shown.user_attrs["gflops"] == trial.cost.gflops
        assert shown.user_attrs["params_m"] == trial.cost.params_m
        if trial.reports:
            assert shown.user_attrs["train_tflops"] == trial.reports[-1].macs / 1e12
            assert shown.user_attrs["images_per_s"] == 20 + trial.number
            assert shown.user_attrs["peak_memory_mib"] == 100
        assert shown.user_attrs.get("reason") == ("diverged" if trial.state is State.FAILED else None)


def test_distributions_are_those_of_the_space(folder, url):
    export_run(folder, url)
    study = optuna.load_study(study_name="tiny", storage=url)
    assert {trial.params["feed_forward.kind"] for trial in study.trials} == {"mlp", "conv"}
    for trial in study.trials:
        assert trial.distributions["channels"] == optuna.distributions.CategoricalDistribution([8, 16])
        assert trial.distributions["depths.0"] == optuna.distributions.IntDistribution(1, 2)
        assert trial.distributions["feed_forward.ratio"] == optuna.distributions.FloatDistribution(1, 4, log=True)
        assert ("feed_forward.reparam" in trial.distributions) == (trial.params["feed_forward.kind"] == "conv")
    # What a sampler makes of it: another process could go on from here.
    study.ask({"channels": optuna.distributions.CategoricalDistribution([8, 16])})


@pytest.fixture
def in_tokyo(monkeypatch):
    """A machine whose clock is nine hours ahead of the ledger's UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def test_times_are_the_ledgers(folder, url, in_tokyo):
    # The ledger's own times lie within one second; these are an hour apart.
    start = datetime(2026, 1, 1, tzinfo=UTC)
    events = [
        event.model_copy(update={"time": (start + hour * timedelta(hours=1)).isoformat()})
        for hour, event in enumerate(read_events(folder))
    ]
    (folder / LEDGER).write_text("".join(json.dumps(event.plain()) + "\n" for event in events))
    export_run(folder, url)
    study = optuna.load_study(study_name="tiny", storage=url)
    at = {(event.event, getattr(event, "trial", None)): datetime.fromisoformat(event.time).timestamp() for event in events}
    for trial in study.trials:
        # Without saying so, Optuna's times are local.
        assert trial.datetime_start.timestamp() == at["trial", trial.number]
        if trial.state.is_finished():
            assert trial.datetime_complete.timestamp() == at["end", trial.number]
        else:
            assert trial.datetime_complete is None
    assert all(later.datetime_start > earlier.datetime_start for earlier, later in pairwise(study.trials))


@pytest.mark.parametrize("objectives", [TWO, SECONDS])
def test_two_objectives_have_values_and_a_front(tiny_file, tmp_path, url, objectives):
    write_run(tmp_path / "run", load_study(tiny_file, [*VARIED, objectives]))
    export_run(tmp_path / "run", url)
    study = optuna.load_study(study_name="tiny", storage=url)
    run = read_run(tmp_path / "run")
    assert len(study.directions) == 2
    for shown, trial in zip(study.trials, run.trials.values(), strict=True):
        second = trial.cost.gflops if objectives == TWO else 4 / (20 + trial.number)
        assert shown.values == ([trial.val_loss, second] if trial.state is State.COMPLETE else None)
        assert shown.intermediate_values == {}
        assert shown.user_attrs.get("val_loss at rungs", []) == [report.val_loss for report in trial.reports]
    if objectives == TWO:
        assert {trial.number for trial in study.best_trials} == {trial.number for trial in run.front()}


@pytest.mark.parametrize("mode", ["stop", "promote"])
@pytest.mark.parametrize("replicates", [1, 2])
def test_a_search_as_it_really_was(tiny_file, tmp_path, url, mode, replicates):
    """Killed in the middle, then brought to its end."""
    varied = [*VARIED, "search.trials=12", f"search.replicates={replicates}", f"budget.mode={mode}"]
    study = load_study(tiny_file, varied)
    for stop_after in (10, None):
        searched(study, tmp_path / "run", workers=2, failing=(3,), stop_after=stop_after)
        run = read_run(tmp_path / "run")
        assert export_run(tmp_path / "run", url) == len(run.trials)
        shown = optuna.load_study(study_name="tiny", storage=url)
        states = Counter(trial.state for trial in shown.trials)
        assert states == Counter(TOLD.get(trial.state, TrialState.RUNNING) for trial in run.trials.values())
        assert {trial.user_attrs["variant"] for trial in shown.trials} == {trial.variant for trial in run.trials.values()}
        if stop_after:
            assert states[TrialState.RUNNING]
    assert not states[TrialState.RUNNING]
    assert shown.trials[3].user_attrs["reason"] == "broken"
    if replicates == 1:
        assert shown.best_trial.number == run.best()[0].number


def test_exporting_again_replaces(folder, url, tmp_path):
    export_run(folder, url)
    folder.rename(tmp_path / "moved")
    ledger = Ledger(tmp_path / "moved")
    ledger.append(TrialEnded(trial=7, state=State.PRUNED))
    ledger.close()
    assert export_run(tmp_path / "moved", url) == 8
    assert optuna.get_all_study_names(url) == ["tiny"]
    study = optuna.load_study(study_name="tiny", storage=url)
    assert len(study.trials) == 8
    assert study.trials[7].state is TrialState.PRUNED


def test_no_other_study_is_touched(folder, tiny_file, tmp_path, url):
    mine = optuna.create_study(study_name="tiny", storage=url)
    mine.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ToolkitError, match=r"holds a study 'tiny' that was not exported from this run; .*--name"):
        export_run(folder, url)
    assert export_run(folder, url, "mine-2") == 8
    other = write_run(tmp_path / "other", load_study(tiny_file, [*VARIED, "training.seed=1"]))
    with pytest.raises(ToolkitError, match="'mine-2' that was not exported from this run"):
        export_run(other, url, "mine-2")
    assert [trial.value for trial in optuna.load_study(study_name="tiny", storage=url).trials] == [1.0]
    assert len(optuna.load_study(study_name="mine-2", storage=url).trials) == 8


def test_what_lies_outside_the_space_is_shown_by_its_attributes(tiny_file, tmp_path, url):
    study = load_study(tiny_file, VARIED)
    write_run(tmp_path / "run", study, [study.base.replace({"channels": 24, "depths": [3, 1, 1, 1, 1]})])
    assert export_run(tmp_path / "run", url) == 9
    given = optuna.load_study(study_name="tiny", storage=url).trials[8]
    assert given.state is TrialState.COMPLETE
    assert given.params == {}
    assert given.user_attrs["channels"] == 24
    assert given.user_attrs["depths"] == "[3, 1, 1, 1, 1]"
    assert "channels" not in optuna.load_study(study_name="tiny", storage=url).trials[0].user_attrs


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("run.db", "cannot open the storage run.db .*write sqlite:///FILE.db"),
        ("sqlite:////no/such/folder/run.db", "unable to open database file"),
        ("nosuch://somebody:secret@there/x", "cannot open the storage nosuch://…@there/x"),
        ("/no/such/folder/run.log", "cannot open the storage /no/such/folder/run.log .*No such file"),
    ],
)
def test_an_unusable_storage_is_one_sentence(folder, storage, said):
    with pytest.raises(ToolkitError, match=said) as caught:
        export_run(folder, storage)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_log_that_is_no_journal_stays_as_it_is(folder, tmp_path):
    log = tmp_path / "training.log"
    log.write_text("step 1 loss 0.5\n")
    with pytest.raises(ToolkitError, match=r"cannot open the storage .*training\.log"):
        export_run(folder, str(log))
    assert log.read_text() == "step 1 loss 0.5\n"


def test_a_storage_that_cannot_be_written_is_one_sentence(folder, url, tmp_path):
    optuna.create_study(study_name="other", storage=url)
    read_only = f"sqlite:///file:{tmp_path / 'optuna.db'}?mode=ro&uri=true"
    with pytest.raises(ToolkitError, match="could not write to the storage .*readonly"):
        export_run(folder, read_only)
    assert optuna.get_all_study_names(url) == ["other"]


def test_no_run_is_one_sentence(tmp_path, url):
    with pytest.raises(ToolkitError, match="is not a run directory"):
        export_run(tmp_path, url)
