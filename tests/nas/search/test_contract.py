"""The contract of every sampler with every way of judging, over scripted curves."""

from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from optuna.trial import TrialState

from nas.runs.ledger import Ledger
from nas.runs.records import Rejected, State
from nas.search import optuna_searcher
from nas.search.controller import Search
from nas.search.proposals import Proposals
from nas.search.searcher import Searcher
from nas.study.choices import Mode, SearcherKind
from nas.study.load import load_study
from space.costs.table import CostTable
from tests.conftest import TINY
from tests.nas.scripted import carry_out, facts, searched

SPACE = (
    "search.space={channels: [8, 16, 24, 32], heads: [1, 2], attention.position: [none, rope2d], feed_forward.kind: [mlp, conv],"
    " feed_forward.reparam: {when: {feed_forward.kind: conv}, choice: [false, true]}, feed_forward.ratio: {float: [1, 4]}}"
)
TINY_SHARE = (
    "search.space={channels: {int: [8, 64], step: 4}, heads: [1, 2, 4], depths: {each: {int: [1, 4]}},"
    " feed_forward.ratio: [1, 2, 3, 4], feed_forward.kind: [mlp, conv]}"
)
OBJECTIVES = ["[{metric: val_loss}]", "[{metric: val_loss}, {metric: gflops}]"]
THREE = "[{metric: gflops}, {metric: val_loss}, {metric: params_m, direction: maximize}]"
CASES = [
    *[(kind, mode, objectives) for kind in get_args(SearcherKind) for mode in get_args(Mode) for objectives in OBJECTIVES],
    *[(kind, mode, THREE) for kind, mode in [("random", "promote"), ("tpe", "stop"), ("nsga2", "promote"), ("gp", "stop")]],
]
OPTUNA = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


@pytest.fixture(scope="module", params=CASES)
def study(request):
    kind, mode, objectives = request.param
    if kind == "gp" and mode == "none":
        pytest.skip("slow to ask, and told the same as in the other modes")
    changes = [SPACE, "search.constraints={gflops: {max: 0.02}}", "search.trials=16", f"search.objectives={objectives}"]
    # Small enough that nsga2 gets beyond its first generation.
    sampler = f"search.sampler={{kind: {kind}{', population: 3' if kind == 'nsga2' else ''}}}"
    return load_study(TINY, [*changes, sampler, f"budget.mode={mode}"])


def test_a_search_ends_in_true_states_told_to_the_sampler(study, tmp_path):
    search = searched(study, tmp_path / "run", workers=3, failing=(4,))
    trials = list(search.run.trials.values())
    assert len(trials) == 16
    assert len({trial.spec.digest for trial in trials}) == 16
    assert not search.may_come
    states = {trial.state for trial in trials}
    assert states == {State.COMPLETE, State.FAILED} | ({State.PRUNED} if study.budget.mode != "none" else set())
    for trial in trials:
        assert not search.study.search_space.violations(trial.spec)
        assert [report.rung for report in trial.reports] == list(range(len(trial.reports)))
    told = iter(search.source.searcher.study().get_trials())
    single = len(study.search.objectives) == 1
    for trial in trials:
        for _ in trial.rejected:
            assert next(told).state is TrialState.FAIL, "samplers ignore it"
        seen = next(told)
        assert seen.state is OPTUNA[trial.state]
        losses = [report.val_loss for report in trial.reports]
        if trial.state is State.COMPLETE:
            costs = {"gflops": trial.cost.gflops, "params_m": trial.cost.params_m}
            assert seen.values == [{"val_loss": losses[-1], **costs}[objective.metric] for objective in study.search.objectives]
        assert list(seen.intermediate_values.values()) == (losses if single else [])
    assert next(told, None) is None


@pytest.mark.parametrize("stop_after", [3, 11])
def test_a_restart_proposes_and_decides_as_if_there_had_been_none(study, tmp_path, stop_after):
    searched(study, tmp_path / "whole")
    searched(study, tmp_path / "parts", stop_after=stop_after)
    searched(study, tmp_path / "parts")
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


@pytest.mark.parametrize("kind", get_args(SearcherKind))
def test_proposals_come_from_the_feasible_region_where_it_is_tiny(tiny_file, tmp_path, kind):
    """Less than one in a thousand of the space: turning down would take a thousand questions a trial."""
    narrow = [TINY_SHARE, "search.constraints={gflops: {min: 0.02, max: 0.02001}}"]
    study = load_study(tiny_file, [*narrow, "search.trials=4", f"search.sampler.kind={kind}"])
    assert 0 < study.census.share < 1e-3
    search = searched(study, tmp_path / "run")
    assert len(search.run.trials) == 4
    for trial in search.run.trials.values():
        assert not search.study.search_space.violations(trial.spec)
        assert len(trial.rejected) <= 1, "one question a trial, its answer moved into the feasible region"


def test_one_feasible_in_100_000_is_found(tiny_file, tmp_path):
    tiny = [TINY_SHARE.replace("[1, 4]}}", "[1, 12]}}"), "search.constraints={gflops: {min: 0.02, max: 0.020002}}"]
    study = load_study(tiny_file, [*tiny, "search.trials=3", "budget.max=4 GFLOPs", "finish=null"])
    points = study.search_space.points(np.random.default_rng(5), 3_000_000)
    share = (study.search_space.violation(CostTable(points)) == 0).mean()
    assert 5e-6 < share < 2e-5
    study.check_runs()
    search = searched(study, tmp_path / "run")
    assert len({trial.spec.digest for trial in search.run.trials.values()}) == 3
    for trial in search.run.trials.values():
        assert 0.02 <= trial.cost.gflops <= 0.020002


def test_a_sampler_learns_in_the_tiny_feasible_region(tiny_file, tmp_path, monkeypatch):
    """What is moved keeps the sampler's direction: it comes back to where losses were low."""
    # Fewer points to move a proposal to, at a tenth of the time: it is moved farther, and keeps less of its direction.
    monkeypatch.setattr(optuna_searcher, "MOST_DRAWS", 20_000)
    narrow = [TINY_SHARE, "search.constraints={gflops: {min: 0.02, max: 0.0203}}"]

    def loss(plan, rung):
        return plan.spec.channels / 64 + (plan.spec.heads != 1)

    def mean_of_late(kind):
        late = []
        for seed in range(3):
            sampler = f"search.sampler={{kind: {kind}, seed: {seed}}}"
            study = load_study(tiny_file, [*narrow, "search.trials=32", sampler, "budget.rungs=1"])
            assert study.census.share < 0.01
            search = Search(study, Ledger(tmp_path / f"{kind}-{seed}"))
            carry_out(search, loss=loss)
            # It has ten architectures to learn from, and some proposals to use that.
            late += [trial.val_loss for trial in search.run.trials.values() if trial.number >= 16]
        return np.mean(late)

    assert mean_of_late("tpe") < 0.6 * mean_of_late("random")


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_the_first_proposals_are_spread_over_a_narrow_feasible_part_whatever_their_losses(tiny_file, kind):
    """Ten trained architectures, not ten refused ones, are what a sampler begins with."""
    changes = [TINY_SHARE, "search.constraints={gflops: {min: 0.02, max: 0.0206}}", "search.trials=12"]
    study = load_study(tiny_file, [*changes, f"search.sampler.kind={kind}"])
    assert study.census.share < 0.02
    space, rng = study.search_space, np.random.default_rng(0)
    proposals = Proposals(study)
    suggested = []
    for number in range(12):
        suggestion = proposals.searcher.suggest(number, proposals._rejects)
        assert number >= 10 or not suggestion.rejected
        suggested.append(suggestion.params)
        proposals.searcher.tell(number, State.COMPLETE, [float(rng.uniform())], [])
    uniform = [params for params, _ in zip(space.feasible(np.random.default_rng(1)), range(6), strict=False)]
    assert apart(space, suggested[6:]) > 0.7 * apart(space, uniform)


def apart(space, points):
    """The mean share of parameters in which two of the points differ."""
    return np.mean([[one[name] != other[name] for name in one] for one, other in combinations(points, 2)])


def test_what_was_refused_teaches_nothing(study, tmp_path):
    """Ledgers hold refusals, of earlier versions many a trial: samplers see what was trained."""
    searchers = [Proposals(study).searcher for _ in range(2)]
    refused = Rejected(params={"channels": 32}, violations={"gflops": 1.0})
    for searcher, before in zip(searchers, ((refused,), ()), strict=True):
        searcher.replay(0, {"channels": 8}, before, {})
        searcher.tell(0, State.COMPLETE, [1.0] * len(study.search.objectives), [])
    told, without = (searcher.study().get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)) for searcher in searchers)
    assert [trial.params for trial in told] == [trial.params for trial in without] == [{"channels": 8}]


@pytest.mark.parametrize("name", ["suggest", "replay", "tell", "tell_waiting", "resume", "forget_attrs", "__contains__"])
def test_a_searcher_that_forgets_a_method_cannot_be_made(name):
    methods = {one: lambda self, *_: None for one in Searcher.__abstractmethods__}
    type("Whole", (Searcher,), methods)()
    del methods[name]
    with pytest.raises(TypeError, match=name):
        type("Forgetful", (Searcher,), methods)()
