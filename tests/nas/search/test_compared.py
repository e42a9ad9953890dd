"""What trials are compared at (equal steps or images) and by (objectives in any order), over scripted curves."""

from operator import le

import pytest

from analysis import load, ranking_table
from nas.replay.curves import recorded
from nas.replay.simulator import Arrival, Rules, replay_run
from nas.runs.records import State
from nas.runs.run import read_run
from nas.study.load import load_study
from space import ToolkitError
from tests.nas.scripted import VARIED, facts, loss_of, searched, status

STEPS = ["budget={steps: 12, rungs: 3}", "finish={steps: 30}"]
IMAGES = ["budget={images: 48, rungs: 3}", "finish={images: 120}"]


@pytest.mark.parametrize("mode", ["stop", "promote"])
@pytest.mark.parametrize("budget", [STEPS, IMAGES], ids=["steps", "images"])
def test_at_equal_steps_every_trial_is_judged_after_the_same_steps(tiny_file, tmp_path, budget, mode):
    study = load_study(tiny_file, [*VARIED, *budget, f"budget.mode={mode}"])
    run = searched(study, tmp_path / "run", workers=3).run
    spent = set()
    for trial in run.trials.values():
        step = trial.cost.step_macs(study.training.batch_size)
        assert [report.macs / step for report in trial.reports] == [3, 6, 12][: len(trial.reports)]
        spent.add(trial.reports[0].macs)
    assert len(spent) > 1, "at one rung, the compute differs"
    assert {trial.state for trial in run.trials.values()} == {State.COMPLETE, State.PRUNED}
    (plan,) = searched(study, tmp_path / "run").finish_plans()
    step = run.trials[plan.number].cost.step_macs(study.training.batch_size)
    assert [macs / step for macs in plan.milestones] == [15, 18, 21, 24, 27, 30]


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_search_at_equal_steps_survives_a_restart(tiny_file, tmp_path, stop_after):
    study = load_study(tiny_file, [*VARIED, *STEPS, "budget.mode=promote"])
    searched(study, tmp_path / "whole")
    searched(study, tmp_path / "parts", stop_after=stop_after)
    searched(study, tmp_path / "parts")
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


def test_a_budget_of_steps_grows_in_steps_alone(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, "budget={steps: 12, rungs: 3}", "finish=null"])
    searched(study, tmp_path / "run")
    for other in ("budget={max: 800 MFLOPs, rungs: 4}", "budget={images: 96, rungs: 4}", "budget={steps: 20, rungs: 4}"):
        with pytest.raises(ToolkitError, match=r"holds another study \(budget."):
            searched(load_study(tiny_file, [*VARIED, other, "finish=null"]), tmp_path / "run")
    after = searched(load_study(tiny_file, [*VARIED, "budget={steps: 24, rungs: 4}", "finish=null"]), tmp_path / "run").run
    for trial in after.in_state(State.COMPLETE):
        assert trial.reports[-1].macs == 24 * trial.cost.step_macs(study.training.batch_size)


ORDERS = [
    "[{metric: val_loss}, {metric: gflops}, {metric: params_m}]",
    "[{metric: gflops}, {metric: val_loss}, {metric: params_m}]",
    "[{metric: gflops}, {metric: params_m}, {metric: val_loss}]",
]


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_objectives_in_another_order_lead_to_the_same_search(tiny_file, tmp_path, mode):
    """With three objectives of which the score stands first, second or last; the sampler is one that does not listen."""
    changes = [*VARIED, "search.sampler.kind=random", "search.trials=14", f"budget.mode={mode}"]
    runs = []
    for number, objectives in enumerate(ORDERS):
        study = load_study(tiny_file, [*changes, f"search.objectives={objectives}"])
        search = searched(study, tmp_path / str(number) / "run", workers=2)
        assert study.metric == search.run.metric == "val_loss"
        values = {tuple(trial.values) for trial in search.source.searcher.study().get_trials() if trial.values}
        names = [objective.metric for objective in study.search.objectives]
        assert {tuple(sorted(zip(names, one, strict=True))) for one in values} == {
            tuple(sorted([("val_loss", t.val_loss), ("gflops", t.cost.gflops), ("params_m", t.cost.params_m)]))
            for t in search.run.in_state(State.COMPLETE)
        }
        runs.append(search.run)
    ended = [{trial.spec.digest: (trial.state, len(trial.reports)) for trial in run.trials.values()} for run in runs]
    assert ended[0] == ended[1] == ended[2]
    assert {state for state, _ in ended[0].values()} == {State.COMPLETE, State.PRUNED}
    assert len({run.best()[0].digest for run in runs}) == 1
    fronts = [[trial.digest for trial in run.front()] for run in runs]
    assert fronts[0] == fronts[1] == fronts[2]
    complete = runs[0].in_state(State.COMPLETE)
    points = [(trial.val_loss, trial.cost.gflops, trial.cost.params_m) for trial in complete]
    dominated = [any(all(map(le, a, b)) and a != b for a in points) for b in points]
    assert set(fronts[0]) == {trial.digest for trial, out in zip(complete, dominated, strict=True) if not out}
    assert runs[0].front()[0].number == runs[0].best()[0].number


FID = ["search.objectives=[{metric: gflops}, {metric: fid}]", "evaluation.fid={samples: 1280, at: every}"]


def fid_of(plan, rung):
    """The reverse order of the losses."""
    return {"fid": 100 - 10 * loss_of(plan, rung), "kid": 0.1}


def test_a_search_by_fid_ranks_prunes_and_tells_by_fid(tiny_file, tmp_path):
    study = load_study(tiny_file, [*VARIED, *FID, "search.objectives=[{metric: fid}]", "search.sampler.kind=random"])
    search = searched(study, tmp_path / "run", scores=fid_of)
    run = search.run
    assert run.metric == "fid"
    complete = run.in_state(State.COMPLETE)
    best = min(complete, key=lambda trial: trial.search_reports[-1].scores["fid"])
    assert run.best()[0].number == best.number
    assert best.val_loss == max(trial.val_loss for trial in complete), "by the loss it would be the worst"
    lines = status(tmp_path / "run")
    assert lines[2] == f"best fid {best.search_reports[-1].scores['fid']:.2f} (trial {best.number})"
    assert lines[4].endswith("went on  best fid  median fid")
    seen = [trial.values for trial in search.source.searcher.study().get_trials() if trial.values]
    assert sorted(seen) == sorted([trial.search_reports[-1].scores["fid"]] for trial in complete)
    # The finish is scored once it is exported.
    (plan,) = search.finish_plans()
    assert plan.number == best.number
    assert not study.scored_at(study.budget.rungs)
    table = ranking_table(load(run))
    assert table.columns[:4].tolist() == ["trial", "state", "fid", "last"]
    assert table["fid"].dropna().is_monotonic_increasing
    pruned = run.in_state(State.PRUNED)[0]
    assert table.set_index("trial")["last"][pruned.number] == pruned.reports[-1].scores["fid"]


def test_a_score_that_is_not_measured_stops_the_search_in_a_sentence(tiny_file, tmp_path):
    kid = "search.objectives=[{metric: kid}, {metric: gflops}]"
    study = load_study(tiny_file, [*VARIED, *FID, kid])
    with pytest.raises(ToolkitError, match="has no kid, by which the search compares: it was scored with val_loss, fid; name"):
        searched(study, tmp_path / "run", scores=lambda plan, rung: {"fid": 1.0})


def test_scores_with_other_settings_are_another_search(tiny_file, tmp_path):
    searched(load_study(tiny_file, [*VARIED, *FID]), tmp_path / "run", scores=fid_of)
    more = load_study(tiny_file, [*VARIED, *FID, "evaluation.fid={samples: 2000, at: every}"])
    with pytest.raises(ToolkitError, match=r"holds another study \(evaluation.fid.samples: 1280 → 2000"):
        searched(more, tmp_path / "run", scores=fid_of)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluation.fid={samples: 1279, at: every}"], "has fid, but 1,279 samples are too few to order models by fid"),
        (
            ["evaluation.fid={samples: 1280}"],
            "by which trials are compared at every rung, but evaluation.fid.at is last; write",
        ),
        (
            ["search.objectives=[{metric: fid_infinity}]", "evaluation.fid={samples: 255, at: every}"],
            "has fid_infinity, which needs at least 256 samples of clothes's features; raise evaluation.fid.samples from 255",
        ),
        (["search.objectives=[{metric: val_loss}]"], "evaluation.fid.at: every is for ablations and searches by fid or kid"),
    ],
)
def test_a_metric_of_samples_takes_samples_enough_at_every_rung(tiny_file, changes, message):
    with pytest.raises(ToolkitError, match=message):
        load_study(tiny_file, [*FID, *changes])
    load_study(tiny_file, [*FID, "evaluation.fid={samples: 1280}", "budget.rungs=1"])
    load_study(tiny_file, [*FID, "evaluation.fid={samples: 130, at: every}", "search.objectives=[{metric: kid}]"])


@pytest.mark.parametrize("objectives", ["[{metric: fid}]", "[{metric: params_m}, {metric: fid}, {metric: gflops}]"])
def test_a_replay_of_a_search_by_fid_decides_as_the_search_did(tiny_file, tmp_path, objectives):
    changes = [*VARIED, *FID, f"search.objectives={objectives}", "search.sampler.kind=random", "search.trials=12"]
    searched(load_study(tiny_file, [*changes, "budget.mode=none"]), tmp_path / "full", scores=fid_of)
    pruned = searched(load_study(tiny_file, changes), tmp_path / "stop", scores=fid_of).run
    record = recorded(read_run(tmp_path / "full"))
    (outcome,) = replay_run(record, Rules("stop"), Arrival("recorded")).outcomes
    assert list(outcome.reached) == [len(trial.reports) for trial in pruned.trials.values()]
    assert outcome.regret == pytest.approx(pruned.best()[0].search_reports[-1].scores["fid"] - record.best)
