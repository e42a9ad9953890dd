"""`confirm` of a study and `nas confirm`, from the search to the sentence; scripted losses with the luck of a seed."""

import copy
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from analysis import confirmation_table, load, plot_confirmation
from analysis.runs.tables import architecture_texts
from nas.cli.app import main
from nas.execution import runner
from nas.execution.ending import UnfinishedError
from nas.execution.runner import run_study
from nas.runs.confirmations import conclusion
from nas.runs.layout import CONFIRMATION, LEDGER
from nas.runs.run import read_run
from nas.runs.winners import winners
from nas.study.load import load_study
from space import ToolkitError
from space.costs.cost import cost
from tests.conftest import TINY
from tests.nas.scripted import ScriptedExecutor, carry_out, facts, status

IN_PROCESS = ("--in-process",)


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lucky(plan, rung):
    """A loss of the architecture, the luck of the seed that all share, and luck of its own."""
    own = np.random.default_rng(int(plan.spec.digest, 16) % 2**32).uniform(0, 0.4)
    shared = np.random.default_rng(plan.seed + 10**6).normal(0, 0.1)
    luck = np.random.default_rng([plan.seed, int(plan.spec.digest, 16) % 2**32]).normal(0, 0.02)
    return float(1 + own + shared + luck + 1 / (rung + 1))


class Scripted(ScriptedExecutor):
    loss = staticmethod(lucky)


@pytest.fixture
def scripted(monkeypatch):
    Scripted.put_in_place(monkeypatch)


@pytest.fixture
def study_file(tmp_path):
    return write(tmp_path / "tiny.yaml")


def write(path, **changes):
    study = copy.deepcopy(TINY) | {"confirm": {"best": 2, "seeds": 4}}
    study["search"] |= {"trials": 8, "space": {"heads": [1, 2], "channels": [8, 12], "feed_forward.kind": ["mlp", "conv"]}}
    study["budget"]["rungs"] = 2
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path


def both(folder):
    return facts(folder), facts(folder / CONFIRMATION)


def test_a_search_is_confirmed_before_its_best_is_finished(study_file, tmp_path, scripted, monkeypatch):
    exported = []
    monkeypatch.setattr(runner, "_export_winners", lambda search, *_: exported.append((search.study.name, winners(search.run))))
    result = nas("run", study_file, "--out", tmp_path / "run", *IN_PROCESS)
    assert result.exit_code == 0, result.output
    run, fresh = read_run(tmp_path / "run"), read_run(tmp_path / "run" / CONFIRMATION)
    # Asked before the confirmation, when there is none to export, and after it; the confirmation's own run exports none.
    assert [(name, len(trials)) for name, trials in exported] == [("tiny", 0), ("tiny", 1)]
    assert exported[1][1][0].number == run.confirmed.chosen
    kinds = [event["event"] for event in facts(tmp_path / "run")]
    assert kinds.index("candidates") < kinds.index("confirmed")
    finishing = [i for i, event in enumerate(facts(tmp_path / "run")) if event["event"] == "report" and event["rung"] > 1]
    assert finishing
    assert min(finishing) > kinds.index("confirmed")
    assert {fact["trial"] for fact in facts(tmp_path / "run") if fact["event"] == "report" and fact["rung"] > 1} == {
        run.confirmed.chosen
    }
    baseline = run.study.base.digest
    assert list(run.candidates) == [trial.number for trial in run.best(9) if trial.digest != baseline][:2]
    against, *rows = fresh.study.rows
    assert [row.spec.digest for row in rows] == [run.trials[number].digest for number in run.candidates]
    dearest = max(run.trials[number].cost.gflops for number in run.candidates)
    assert dearest > 1.01 * cost(run.study.base).gflops, "so the hand-made model is widened to it"
    assert cost(against.spec).gflops == pytest.approx(dearest, rel=0.01)
    assert against.variant.startswith("u-dit-toy at 0.00")
    assert {trial.seed for trial in fresh.trials.values()} == {2000, 2001, 2002, 2003}
    assert fresh.study.evaluation.val_loss.skip == run.study.evaluation.val_loss.images
    assert conclusion(run) in result.output.splitlines()
    assert conclusion(run) in status(tmp_path / "run")


def test_the_table_and_the_figure_show_what_chose_beside_what_decides(study_file, tmp_path, scripted):
    assert nas("run", study_file, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    data = load(tmp_path / "run")
    result, table = data.run.confirmed.result, confirmation_table(data)
    assert list(table["architecture"]) == [result.baseline, *(f"trial {one.trial}" for one in result.candidates)]
    assert list(table["searched"])[1:] == [f"{one.searched:.4f}" for one in result.candidates]
    texts = architecture_texts(data)
    assert list(table[texts.name])[1:] == [texts[one.trial] for one in result.candidates]
    printed = nas("table", tmp_path / "run").output
    assert conclusion(data.run) in printed
    assert all(f"| {text} |" in printed for text in table["searched"] if text)
    assert "fresh seeds" not in nas("table", tmp_path / "run", "--format", "csv").output
    searched, fresh = plot_confirmation(data)
    drawn = [line.get_ydata()[0] for line in searched.lines]
    assert set(drawn) == {standing.mean for standing in data.run.standings()}
    points = [container.lines[0].get_ydata()[0] for container in fresh.containers]
    assert points == pytest.approx([result.mean + one.difference for one in result.candidates])
    unconfirmed = write(tmp_path / "plain.yaml", confirm=None)
    assert nas("run", unconfirmed, "--out", tmp_path / "plain", *IN_PROCESS).exit_code == 0
    with pytest.raises(ToolkitError, match="has no confirmation"):
        plot_confirmation(load(tmp_path / "plain"))
    with pytest.raises(ToolkitError, match="has no confirmation yet"):
        confirmation_table(load(tmp_path / "plain"))


def test_the_fresh_values_alone_decide(study_file, tmp_path, scripted):
    assert nas("run", study_file, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    run, fresh = read_run(tmp_path / "run"), read_run(tmp_path / "run" / CONFIRMATION)
    by_digest = {}
    for trial in fresh.trials.values():
        by_digest.setdefault(trial.digest, {})[trial.seed] = trial.reports[-1].val_loss
    base = by_digest[fresh.study.rows[0].spec.digest]
    for one in run.confirmed.result.candidates:
        own = by_digest[run.trials[one.trial].digest]
        assert one.pairs == 4
        assert one.mean == pytest.approx(np.mean(list(own.values())))
        assert one.difference == pytest.approx(np.mean([own[seed] - base[seed] for seed in own]))
        assert one.low < one.difference < one.high
        assert one.searched == run.trials[one.trial].search_reports[-1].val_loss


def test_an_interruption_anywhere_changes_nothing(study_file, tmp_path, scripted, monkeypatch):
    study = load_study(study_file)
    run_study(study, tmp_path / "whole", in_process=True)
    whole = both(tmp_path / "whole")
    reports = [sum(fact["event"] == "report" and fact["rung"] < 2 for fact in ledger) for ledger in whole]
    for left in range(reports[0] - 2, sum(reports), 5):
        folder = tmp_path / f"left-{left}"
        monkeypatch.setattr(Scripted, "left", left)
        with pytest.raises(UnfinishedError):
            run_study(study, folder, in_process=True)
        Scripted.left = None
        run_study(study, folder, in_process=True)
        assert both(folder) == whole


def test_a_crash_between_any_two_lines_changes_nothing(study_file, tmp_path, scripted):
    study = load_study(study_file)
    run_study(study, tmp_path / "whole", in_process=True)
    whole = both(tmp_path / "whole")
    lines = (tmp_path / "whole" / LEDGER).read_bytes().splitlines(keepends=True)
    begins = next(i for i, fact in enumerate(whole[0]) if fact["event"] == "candidates")
    for kept in range(begins, len(lines)):
        folder = tmp_path / f"kept-{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / LEDGER).write_bytes(b"".join(lines[:kept]) + b'{"torn')
        run_study(study, folder, in_process=True)
        assert both(folder) == whole


def test_a_search_without_confirm_says_so_and_can_be_confirmed_later(tmp_path, scripted):
    plain = write(tmp_path / "plain.yaml", confirm=None)
    result = nas("run", plain, "--out", tmp_path / "run", *IN_PROCESS)
    best = read_run(tmp_path / "run").best()[0].number
    said = f"trial {best} is not confirmed: its val_loss is of one seed, the best of "
    assert said in result.output
    assert said in "\n".join(status(tmp_path / "run"))
    confirmed = nas("confirm", tmp_path / "run", "--best", 2, "--seeds", 4, *IN_PROCESS)
    assert confirmed.exit_code == 0, confirmed.output
    assert "fresh paired seeds" in confirmed.output
    # As if the study had asked for it from the start, but for the order of finish and confirmation.
    assert nas("run", write(tmp_path / "tiny.yaml"), "--out", tmp_path / "other", *IN_PROCESS).exit_code == 0
    assert read_run(tmp_path / "run").confirmed.result == read_run(tmp_path / "other").confirmed.result


def test_more_seeds_top_up_and_the_sentence_tells_of_the_look(study_file, tmp_path, scripted):
    assert nas("run", study_file, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    more = nas("run", study_file, "--out", tmp_path / "run", "--set", "confirm.seeds=6", *IN_PROCESS)
    assert more.exit_code == 0, more.output
    run, fresh = read_run(tmp_path / "run"), read_run(tmp_path / "run" / CONFIRMATION)
    assert {one.pairs for one in run.confirmed.result.candidates} == {6}
    assert len(fresh.trials) == 18
    assert "seeds were added after a look" in more.output


def test_what_would_choose_again_is_refused(study_file, tmp_path, scripted):
    assert nas("run", study_file, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    before = both(tmp_path / "run")
    for change, told in {
        "confirm.best=1": "confirm.best is 2 there and cannot become 1",
        "confirm.against={set: {heads: 1}}": "confirm.against is model there",
        "confirm.budget=1 GFLOPs": "confirm.budget is None there and cannot become 1 GFLOPs",
        "search.trials=10": "search.trials cannot change once candidates are confirmed",
    }.items():
        refused = nas("run", study_file, "--out", tmp_path / "run", "--set", change, *IN_PROCESS)
        assert refused.exit_code == 2
        assert told in refused.output
        assert both(tmp_path / "run") == before


def test_there_must_be_as_many_candidates_as_are_asked_for(tmp_path, scripted):
    plain = write(tmp_path / "plain.yaml", confirm=None)
    assert nas("run", plain, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    complete = len(read_run(tmp_path / "run").best(99))
    assert 1 <= complete < 8
    refused = nas("confirm", tmp_path / "run", "--best", complete + 1, *IN_PROCESS)
    assert refused.exit_code == 2
    assert f"confirm.best is {complete + 1}, but tiny has {complete} complete architectures; lower it" in refused.output
    assert not (tmp_path / "run" / CONFIRMATION).exists()


def test_without_a_complete_trial_there_is_nothing_to_confirm(tmp_path, monkeypatch):
    class Failing(Scripted):
        def search(self, search):
            carry_out(search, failing=range(99))

    Failing.put_in_place(monkeypatch)
    path = write(tmp_path / "plain.yaml", confirm=None, search=TINY["search"] | {"trials": 4})
    result = nas("run", path, "--out", tmp_path / "run", *IN_PROCESS)
    assert result.exit_code == 1, result.output
    refused = nas("confirm", tmp_path / "run", *IN_PROCESS)
    assert refused.exit_code == 2
    assert "no trial of tiny is complete, so there is none to confirm" in refused.output


def test_an_ablation_is_not_confirmed(tmp_path, scripted):
    path = write(
        tmp_path / "a.yaml", search=None, finish=None, confirm=None, ablation={"variants": [{"name": "a", "set": {"heads": 1}}]}
    )
    assert nas("run", path, "--out", tmp_path / "run", *IN_PROCESS).exit_code == 0
    refused = nas("confirm", tmp_path / "run", *IN_PROCESS)
    assert refused.exit_code == 2
    assert "is an ablation, whose rows have paired seeds already" in refused.output
