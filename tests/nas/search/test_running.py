"""What a search does when workers are lost, memory runs out, everything fails, and when other runs have the results already."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState

from nas.runs.ledger import Ledger
from nas.runs.records import Failure, State
from nas.search.controller import MOST_FAILURES, MOST_LOSSES, Search
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import VARIED, carry_out, facts, report, searched, status


@pytest.fixture
def study(tiny_file):
    return load_study(tiny_file, VARIED)


def fresh(study, folder):
    return Search(study, Ledger(folder))


def test_a_lost_trial_is_handed_out_again_from_where_it_stood(study, tmp_path):
    search = fresh(study, tmp_path / "run")
    plan = search.next_plan()
    search.report(report(plan, 0))
    search.lost(plan.number, "node gone")
    again = search.next_plan()
    assert (again.number, again.reported, again.milestones) == (plan.number, 1, plan.milestones[1:])
    assert search.run.trials[0].state is State.RUNNING


def test_a_trial_whose_worker_dies_again_and_again_is_failed(study, tmp_path):
    search = fresh(study, tmp_path / "run")
    for _ in range(MOST_LOSSES - 1):
        plan = search.next_plan()
        search.lost(plan.number, "node gone")
    assert search.next_plan().number == 0
    search.lost(0, "node gone")
    assert search.run.trials[0].state is State.FAILED
    assert "died 3 times in a row: node gone" in search.run.trials[0].reason


def test_a_report_makes_up_for_lost_workers(study, tmp_path):
    search = fresh(study, tmp_path / "run")
    plan = search.next_plan()
    for rung in range(3):
        for _ in range(MOST_LOSSES - 1):
            search.lost(0, "node gone")
            assert search.next_plan().number == 0
        search.report(report(plan, rung))
    assert search.run.trials[0].state is State.COMPLETE


def test_losses_are_counted_across_restarts(study, tmp_path):
    for _ in range(MOST_LOSSES):
        ledger = Ledger(tmp_path / "run")
        search = Search(study, ledger)
        search.lost(search.next_plan().number, "node gone")
        ledger.close()
    assert search.run.trials[0].state is State.FAILED


def test_out_of_memory_is_tried_once_more_alone(study, tmp_path):
    search = fresh(study, tmp_path / "run")
    plan = search.next_plan()
    assert not plan.alone
    full = Failure(trial=plan.number, reason="out of memory", out_of_memory=True)
    search.fail(full)
    again = search.next_plan()
    assert (again.number, again.alone) == (plan.number, True)
    search.fail(full)
    assert search.run.trials[0].state is State.FAILED


def test_an_objective_that_is_not_finite_fails_its_trial(tiny_file, tmp_path):
    objectives = "search.objectives=[{metric: val_loss}, {metric: step_seconds}]"
    search = fresh(load_study(tiny_file, [*VARIED, objectives]), tmp_path / "run")
    plan = search.next_plan()
    assert not search.report(report(plan, 0).model_copy(update={"images_per_s": 0.0}))
    assert search.run.trials[0].state is State.FAILED
    assert search.run.trials[0].reason == "an objective is not finite at step 1"
    with pytest.raises(ValueError, match="finite"):
        report(plan, 0, float("nan"))


def test_a_search_gives_up_when_all_of_the_first_trials_fail(study, tmp_path):
    searched(study, tmp_path / "run", failing=range(100))
    search = fresh(study, tmp_path / "run2")
    carry_out(search, failing=range(100))
    assert len(search.run.trials) == MOST_FAILURES
    assert search.gave_up == "5 trials have failed and none has reported, the last one with: broken"
    assert not search.may_come
    ledger = Ledger(tmp_path / "run")
    again = Search(study, ledger)
    carry_out(again)
    assert len(again.run.trials) == 8, "once the cause is mended, the rest is trained"


def test_some_failures_are_no_reason_to_give_up(study, tmp_path):
    search = searched(study, tmp_path / "run", failing=[1, 2, 3, 4, 5, 6])
    assert search.gave_up is None
    assert len(search.run.trials) == 8


def test_the_enqueued_are_tried_first_also_from_outside_the_space(tiny_file, tmp_path):
    changes = [*VARIED, "search.enqueue=[{}, {feed_forward.ratio: 1}, {channels: 24, heads: 2}, {}]"]
    study = load_study(tiny_file, changes)
    trials = searched(study, tmp_path / "run").run.trials
    assert trials[0].spec == study.base
    assert trials[1].spec.feed_forward.ratio == 1
    assert trials[1].params is None, "no ratio is searched, so the space does not hold it"
    assert trials[2].params == {"channels": 24, "heads": 2, "feed_forward.kind": study.base.feed_forward.kind}
    assert len({trial.spec.digest for trial in trials.values()}) == 8
    assert trials[3].params is not None


def test_the_sampler_hears_of_a_baseline_in_a_space_that_varies_stage_by_stage(tiny_file, tmp_path):
    varied = "search.space={heads: {each: [1, 2]}, feed_forward.kind: {each: [mlp, conv]}, feed_forward.ratio: [1, 2]}"
    search = searched(load_study(tiny_file, [varied, "search.enqueue=[{}, {heads: [1, 1, 1, 1, 1]}]"]), tmp_path / "run")
    for number, heads in enumerate((2, 1)):
        assert search.run.trials[number].params["heads.3"] == heads
        assert number in search.source.searcher


def test_more_can_be_enqueued_when_a_run_goes_on(study, tiny_file, tmp_path):
    searched(study, tmp_path / "run")
    more = load_study(tiny_file, [*VARIED, "search.trials=10", "search.enqueue=[{feed_forward.ratio: 1}]"])
    trials = searched(more, tmp_path / "run").run.trials
    assert trials[8].spec.feed_forward.ratio == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{channels: 400}", "search: enqueue.0 has gflops .*, outside the constraints"),
        ("{channels: 7}", "search: .*"),
        ("{num_classes: 3}", "search: enqueue.0 sets num_classes, which the data decide"),
        ("{chanels: 8}", "no spec has 'chanels'"),
    ],
)
def test_an_impossible_entry_is_refused(tiny_file, entry, message):
    with pytest.raises(ToolkitError, match=message):
        load_study(tiny_file, [*VARIED, f"search.enqueue=[{entry}]"])


def test_replicates_share_an_architecture_and_differ_in_seed(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "search.replicates=2", "training.seed=7"])
    search = searched(study, tmp_path / "run", workers=3)
    trials = search.run.trials
    assert len(trials) == 8
    for number, trial in trials.items():
        assert trial.variant == number // 2
        assert trial.seed == 7 + number % 2
        assert trial.spec == trials[number - number % 2].spec
    for variant in range(4):
        assert len({trials[2 * variant + r].state for r in range(2)}) == 1, "judged together"
    (best,) = search.run.best()
    assert best.number % 2 == 0
    with pytest.raises(ToolkitError, match="no multiple of replicates"):
        load_study(tiny_file, [*VARIED, "search.replicates=3"])


@pytest.mark.parametrize("mode", ["stop", "promote"])
@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_replicates_survive_a_restart(tiny_file, tmp_path, mode, stop_after):
    study = load_study(tiny_file, [*VARIED, "search.replicates=2", f"budget.mode={mode}"])
    searched(study, tmp_path / "whole")
    searched(study, tmp_path / "parts", stop_after=stop_after)
    searched(study, tmp_path / "parts")
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


@pytest.mark.parametrize("mode", ["stop", "promote", "none"])
def test_a_raised_budget_trains_on_what_was_complete(tiny_file, tmp_path, mode):
    changes = [*VARIED, f"budget.mode={mode}", "finish=null"]
    before = searched(load_study(tiny_file, changes), tmp_path / "run").run
    complete = before.in_state(State.COMPLETE)
    raised = load_study(tiny_file, [*changes, "budget={max: 400 MFLOPs, rungs: 4}", f"budget.mode={mode}"])
    first = facts(tmp_path / "run")
    after = searched(raised, tmp_path / "run").run
    events = facts(tmp_path / "run")[len(first) :]
    assert {event["trial"] for event in events if event["event"] == "report"} <= {trial.number for trial in complete}
    assert all(event["rung"] == 3 for event in events if event["event"] == "report")
    share = len(complete) if mode == "none" else max(1, len(complete) // 2)
    assert len(after.in_state(State.COMPLETE)) == share
    assert not after.in_state(State.RUNNING)
    again = facts(tmp_path / "run")
    searched(raised, tmp_path / "run")
    assert facts(tmp_path / "run") == again


def test_a_budget_with_other_rungs_is_refused(study, tiny_file, tmp_path):
    searched(study, tmp_path / "run")
    with pytest.raises(ToolkitError, match=r"holds another study \(budget.max"):
        fresh(load_study(tiny_file, [*VARIED, "budget.max=240 MFLOPs"]), tmp_path / "run")


def test_a_budget_is_not_raised_past_a_finish(tiny, tiny_file, tmp_path):
    search = searched(tiny, tmp_path / "run")
    ledger = Ledger(tmp_path / "run")
    search = Search(tiny, ledger)
    (plan,) = search.finish_plans()
    search.report(report(plan, 3))
    ledger.close()
    with pytest.raises(ToolkitError, match="budget cannot be raised after trial"):
        fresh(load_study(tiny_file, ["budget={max: 400 MFLOPs, rungs: 4}", "finish.budget=800 MFLOPs"]), tmp_path / "run")


def test_seconds_a_step_can_be_an_objective(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "search.objectives=[{metric: val_loss}, {metric: step_seconds}]"])
    search = searched(study, tmp_path / "run")
    complete = search.run.in_state(State.COMPLETE)
    assert complete
    (values,) = {t.values[1] for t in search.source.searcher.study().get_trials() if t.values}
    assert values == study.training.batch_size, "scripted reports train one image a second"


def test_a_clock_that_jumps_changes_nothing(study, tmp_path, monkeypatch):
    searched(study, tmp_path / "steady" / "run")
    hours = iter([5, -9000, 3, 0, -1, 8000] * 1000)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 1, tzinfo=tz) + timedelta(hours=next(hours))

    monkeypatch.setattr("nas.runs.ledger.datetime", Jumping)
    searched(study, tmp_path / "jumping" / "run", stop_after=5)
    searched(study, tmp_path / "jumping" / "run")
    assert facts(tmp_path / "jumping" / "run") == facts(tmp_path / "steady" / "run")
    assert status(tmp_path / "jumping" / "run") == status(tmp_path / "steady" / "run")


def test_a_search_that_gave_up_decides_nothing(tiny_file, tmp_path):
    """What waits at a rung is not stopped because a machine is broken."""
    study = load_study(tiny_file, [*VARIED, "budget.mode=promote", "search.trials=16"])
    searched(study, tmp_path / "run", workers=4, stop_after=6)
    before = facts(tmp_path / "run")
    ledger = Ledger(tmp_path / "run")
    broken = Search(study, ledger)
    carry_out(broken, failing=range(100))
    ledger.close()
    assert broken.gave_up
    assert not broken.may_come
    assert {event["event"] for event in facts(tmp_path / "run")[len(before) :]} <= {"trial", "promote", "end"}
    assert not broken.run.in_state(State.PRUNED)
    mended = searched(study, tmp_path / "run")
    assert len(mended.run.trials) == 16
    assert mended.run.in_state(State.COMPLETE)


def test_a_spent_space_ends_a_promoting_search_and_can_be_added_to(tiny_file, tmp_path):
    changes = ["search.trials=50", "budget.mode=promote"]
    search = searched(load_study(tiny_file, changes), tmp_path / "run")
    assert len(search.run.trials) == 8
    assert not search.run.in_state(State.RUNNING)
    more = searched(load_study(tiny_file, [*changes, "search.enqueue=[{feed_forward.ratio: 1}]"]), tmp_path / "run")
    assert len(more.run.trials) == 9
    assert not more.may_come


def test_the_rest_of_a_rung_is_stopped_only_when_the_best_have_got_further(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "search.trials=4", "budget.mode=promote", "budget.rungs=2"])
    search = fresh(study, tmp_path / "run")
    plans = [search.next_plan() for _ in range(4)]
    for plan, value in zip(plans, [1.0, 2.0, 3.0, 4.0], strict=True):
        goes_on = search.report(report(plan, 0, value))
    assert not goes_on
    first, second = search.next_plan(), search.next_plan()
    assert {first.number, second.number} == {0, 1}
    assert not search.run.in_state(State.PRUNED), "the first two may still fail"
    search.fail(Failure(trial=0, reason="broken"))
    search.fail(Failure(trial=1, reason="broken"))
    assert search.next_plan().number == 2
    search.report(report(plans[2], 1, 3.0))
    assert [search.run.trials[number].state for number in (2, 3)] == [State.COMPLETE, State.PRUNED]


def test_fewer_replicates_are_no_winner(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "search.replicates=2", "budget.mode=none", "finish=null"])
    search = fresh(study, tmp_path / "run")
    carry_out(search, failing=[1], loss=lambda plan, rung: 0.001 if plan.number == 0 else 1.0)
    assert search.run.trials[0].state is State.COMPLETE
    assert search.run.best()[0].variant != 0, "the lucky seed of an architecture whose other one diverged"
    told = [trial.state for trial in search.source.searcher.study().get_trials() if trial.state.is_finished()]
    assert told.count(TrialState.FAIL) >= 1


def test_nsga2_goes_on_after_a_raised_budget(tiny_file, tmp_path):
    sampler = "search.sampler={kind: nsga2, population: 3}"
    changes = [*VARIED, "search.trials=12", sampler, "finish=null"]
    searched(load_study(tiny_file, changes), tmp_path / "run")
    raised = load_study(tiny_file, [*changes, "search.trials=16", "budget={max: 400 MFLOPs, rungs: 4}"])
    assert len(searched(raised, tmp_path / "run").run.trials) == 16


def test_a_crash_before_an_end_does_not_mix_budgets(tiny_file, tmp_path):
    changes = [*VARIED, "budget.mode=none", "search.trials=1", "finish=null"]
    searched(load_study(tiny_file, changes), tmp_path / "run")
    lines = (tmp_path / "run" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    assert b"COMPLETE" in lines[-1]
    (tmp_path / "run" / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    raised = load_study(tiny_file, [*changes, "budget={max: 400 MFLOPs, rungs: 4, mode: none}"])
    (trial,) = searched(raised, tmp_path / "run").run.trials.values()
    assert (trial.state, len(trial.reports)) == (State.COMPLETE, 4)


def test_a_first_rung_under_one_step_of_an_enqueued_architecture_is_refused(tiny_file):
    study = load_study(tiny_file, ["search.enqueue=[{channels: 32}]", "search.constraints={}", "budget.max=100 MFLOPs"])
    with pytest.raises(ToolkitError, match="the first rung, .* is less than one step of the dearest"):
        study.check_runs()


def test_a_report_that_is_not_the_next_is_left_out(study, tmp_path):
    """A worker on a node that was cut off comes back after its trial was handed out again."""
    search = fresh(study, tmp_path / "run")
    plan = search.next_plan()
    search.report(report(plan, 0))
    before = facts(tmp_path / "run")
    assert not search.report(report(plan, 0))
    assert not search.report(report(plan, 2))
    assert facts(tmp_path / "run") == before
    search.fail(Failure(trial=0, reason="broken"))
    before = facts(tmp_path / "run")
    assert not search.report(report(plan, 1))
    search.fail(Failure(trial=0, reason="broken again"))
    search.lost(0, "node gone")
    assert facts(tmp_path / "run") == before
