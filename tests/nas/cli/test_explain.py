"""`explain` of a study and `nas explain`: losses that are sums of known effects, with the luck of a seed."""

import copy

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from nas.cli.app import main
from nas.runs.explanations import explanation_sentences, read_explanation
from nas.runs.layout import CONFIRMATION, EXPLANATION, SIMPLIFICATION
from nas.runs.run import read_run
from nas.stats.verdicts import BETTER, NO_EVIDENCE, WORSE
from nas.study.explanation import SIMPLIFIED
from space.costs.cost import cost
from tests.conftest import TINY
from tests.nas.scripted import ScriptedExecutor, facts

EFFECTS = {"attention.similarity": ("dot", -0.2), "feed_forward.kind": ("mlp", -0.3), "attention.position": ("none", 0.0)}
"""By path: the value that changes the loss, and by how much."""

LUCK = 0.01


class Scripted(ScriptedExecutor):
    bonus = 0.0
    """What the two effects bring beyond their sum."""

    @staticmethod
    def loss(plan, rung):
        found = [change for path, (value, change) in EFFECTS.items() if plan.spec.value_at(path) == value]
        shared = np.random.default_rng(plan.seed + 10**6).normal(0, 0.1)
        luck = np.random.default_rng([plan.seed, int(plan.spec.digest, 16) % 2**32]).normal(0, LUCK)
        # No two effects are told apart by the search's own values where they are so small.
        return float(2 + sum(found) + (Scripted.bonus if len([c for c in found if c]) == 2 else 0) + shared + luck + 1 / (rung + 1))


@pytest.fixture
def scripted(monkeypatch):
    Scripted.put_in_place(monkeypatch)
    monkeypatch.setattr(Scripted, "bonus", 0.0)


@pytest.fixture
def study_file(tmp_path):
    study = copy.deepcopy(TINY) | {"confirm": {"best": 1, "seeds": 6}, "explain": True, "finish": None}
    study["search"] |= {
        "trials": 8,
        "space": {
            "attention.similarity": ["dot", "cosine"],
            "attention.position": ["none", "rope2d"],
            "feed_forward.kind": ["mlp", "conv"],
        },
    }
    study["budget"] = {"max": "200 MFLOPs", "rungs": 1}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def explained(study_file, folder, *more):
    result = nas("run", study_file, "--out", folder, "--in-process", *more)
    assert result.exit_code == 0, result.output
    return result.output, *read_explanation(folder)


def test_what_carries_is_told_from_passengers(study_file, tmp_path, scripted, monkeypatch):
    # A passenger that the search cannot tell from its absence, but prefers.
    monkeypatch.setitem(EFFECTS, "attention.position", ("none", -0.03))
    output, found, _ = explained(study_file, tmp_path / "run")
    monkeypatch.setitem(EFFECTS, "attention.position", ("none", 0.0))
    by_path = {effect.path: effect for effect in found.effects}
    assert set(by_path) == set(EFFECTS)
    for path in ("attention.similarity", "feed_forward.kind"):
        effect, change = by_path[path], -EFFECTS[path][1]
        assert effect.carries
        assert effect.taken_back.low < change < effect.taken_back.high
        assert (effect.taken_back.verdict, effect.added.verdict) == (WORSE, BETTER)
    assert found.joint.difference == pytest.approx(-0.53, abs=4 * LUCK)
    assert found.together.verdict == NO_EVIDENCE
    assert "worse without: " in output
    target = cost(found.explained.winner).gflops
    run = read_run(tmp_path / "run" / EXPLANATION)
    off = max(abs(cost(row.spec).gflops / target - 1) for row in run.study.rows)
    assert off == pytest.approx(found.explained.mismatch)
    # Of eight channels no ratio comes nearer.
    assert f"at GFLOPs that differ by up to {100 * off:.1f} %" in output
    assert 0.01 < off < 0.02
    assert min(trial.seed for trial in run.trials.values()) == 3000


def test_the_winner_without_its_passengers_is_compared_on_fresh_seeds(study_file, tmp_path, scripted):
    for seed in range(9):
        output, found, simplified = explained(study_file, tmp_path / f"run-{seed}", "--set", f"training.seed={seed}")
        if found.passengers == ("attention.position",):
            break
    else:
        pytest.fail("no search whose winner has a passenger")
    assert "simplify: " in output
    run = read_run(tmp_path / f"run-{seed}" / SIMPLIFICATION)
    assert {trial.seed for trial in run.trials.values()} == {seed + 4000 + index for index in range(6)}
    without = next(row.spec for row in run.study.rows if row.variant == SIMPLIFIED)
    assert without.attention.position == found.explained.baseline.attention.position
    assert (without.attention.similarity, without.feed_forward.kind) == ("dot", "mlp")
    assert simplified[found.explained.baseline_name].verdict == BETTER
    assert simplified[found.explained.name].verdict == NO_EVIDENCE
    assert all(line in output for line in explanation_sentences(found, simplified))
    again = facts(tmp_path / f"run-{seed}" / SIMPLIFICATION)
    explained(study_file, tmp_path / f"run-{seed}", "--set", f"training.seed={seed}")
    assert facts(tmp_path / f"run-{seed}" / SIMPLIFICATION) == again, "the same command trains nothing"


def test_what_works_only_together_is_reported_as_such(study_file, tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(Scripted, "bonus", -0.4)
    output, found, _ = explained(study_file, tmp_path / "run")
    assert found.together.low < -0.4 < found.together.high
    assert found.together.verdict == BETTER
    assert "all together bring -0.4" in output


def test_differences_beyond_the_most_are_left_out_and_told(study_file, tmp_path, scripted, monkeypatch):
    monkeypatch.setitem(EFFECTS, "attention.position", ("none", -0.05))
    output, found, _ = explained(study_file, tmp_path / "run", "--set", "explain={most: 2}")
    monkeypatch.setitem(EFFECTS, "attention.position", ("none", 0.0))
    assert len(found.effects) == 2
    assert "left out: " in output
    assert "in the search's trials)" in output
    assert f"2 of {2 + len(found.explained.left_out)} differences were taken back at " in output


def test_an_interrupted_explanation_goes_on_to_the_same_ledgers(study_file, tmp_path, scripted, monkeypatch):
    explained(study_file, tmp_path / "whole")
    folders = [name for name in (CONFIRMATION, EXPLANATION, SIMPLIFICATION) if (tmp_path / "whole" / name).exists()]
    counts = [sum(fact["event"] == "report" for fact in facts(tmp_path / "whole" / name)) for name in folders]
    before = 8 + counts[0]
    for left in (before, before + 1, before + counts[1] - 1):
        monkeypatch.setattr(Scripted, "left", left)
        assert nas("run", study_file, "--out", tmp_path / f"{left}", "--in-process").exit_code == 75
        Scripted.left = None
        explained(study_file, tmp_path / f"{left}")
        for name in folders:
            assert facts(tmp_path / f"{left}" / name) == facts(tmp_path / "whole" / name)


def test_what_cannot_be_explained_is_refused_and_trains_nothing(study_file, tmp_path, scripted):
    refused = nas("run", study_file, "--out", tmp_path / "none", "--set", "confirm=null", "--in-process")
    assert refused.exit_code == 2
    assert "explain is of a confirmed winner; add confirm" in refused.output
    plain = ("--set", "explain=null", "--in-process")
    assert nas("run", study_file, "--out", tmp_path / "run", "--set", "confirm=null", *plain).exit_code == 0
    refused = nas("explain", tmp_path / "run", "--in-process")
    assert refused.exit_code == 2
    assert "is not confirmed, so there is nothing to explain yet; nas confirm" in refused.output
    assert not (tmp_path / "run" / EXPLANATION).exists()


def test_a_winner_that_is_not_claimed_to_be_better_is_not_explained(study_file, tmp_path, scripted, monkeypatch):
    for path, (value, _) in EFFECTS.items():
        monkeypatch.setitem(EFFECTS, path, (value, 0.0))
    result = nas("run", study_file, "--out", tmp_path / "run", "--in-process")
    assert result.exit_code == 0, result.output
    assert "nothing is explained: no candidate is claimed to be better than u-dit-toy" in result.output
    assert not (tmp_path / "run" / EXPLANATION).exists()
