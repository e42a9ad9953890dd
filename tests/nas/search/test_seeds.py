"""How an ablation is carried out: paired seeds, more of them where a difference is open, restarts, what it reports."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from analysis.ablation.tables import ablation_tables
from analysis.runs.data import load
from nas.execution.runner import run_study
from nas.replay.curves import recorded
from nas.reporting.console import describe
from nas.reporting.power import pooled_sd
from nas.runs.layout import CHECKPOINT, TRIALS
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import State
from nas.runs.run import read_run
from nas.runs.winners import winners
from nas.search.controller import Search
from nas.search.optuna_export import export_run
from nas.stats.hierarchical import row_variances
from nas.stats.sequential import FUTILE, looks, prospects, settled
from nas.stats.sequential_variances import normal_levels
from nas.study.load import load_study
from nas.study.metrics import SCORES
from nas.training.checkpoint import write_checkpoint
from nas.training.export import select
from space.errors import ToolkitError
from tests.nas.ablations import VARIANTS, ablation, effects
from tests.nas.scripted import Counting, carry_out, facts, searched, status


def seeds_of(search, study):
    """How many seeds each row was trained with."""
    counts = Counter(trial.digest for trial in search.run.trials.values())
    return {row.variant: counts[row.spec.digest] for row in study.rows if row.control == "raw"}


def test_all_rows_are_trained_with_one_seed_before_any_with_the_next(tmp_path):
    study = ablation(tmp_path, "training.seed=7")
    search = searched(study, tmp_path / "run", workers=3)
    order = [(trial.digest, trial.seed) for trial in search.run.trials.values()]
    assert order == [(row.spec.digest, seed) for seed in (7, 8, 9) for row in study.rows]
    assert {trial.state for trial in search.run.trials.values()} == {State.COMPLETE}
    assert search.complete


def test_steps_cost_every_row_its_own_compute(tmp_path):
    study = ablation(tmp_path, "budget={steps: 8, rungs: 2}")
    search = searched(study, tmp_path / "run")
    for trial in search.run.trials.values():
        step_macs = trial.cost.step_macs(4)
        assert [report.macs for report in trial.search_reports] == [4 * step_macs, 8 * step_macs]
    assert len({trial.reports[-1].macs for trial in search.run.trials.values()}) > 1


def test_even_rungs_are_evenly_spaced(tmp_path):
    assert ablation(tmp_path, "budget={steps: 1000, rungs: 5, even: true}").budget.milestones == (200, 400, 600, 800, 1000)


@pytest.mark.parametrize("stop_after", [0, 1, 5, 11])
def test_an_interrupted_ablation_goes_on_as_it_would_have(tmp_path, stop_after):
    study = ablation(tmp_path, seeds={"min": 3, "max": 8})
    loss = effects(study, cosine=-0.1, conv=-0.02)
    whole = searched(study, tmp_path / "whole", loss=loss)
    searched(study, tmp_path / "broken", loss=loss, stop_after=stop_after)
    searched(study, tmp_path / "broken", loss=loss)
    assert facts(tmp_path / "broken") == facts(tmp_path / "whole")
    assert len(whole.run.trials) > 12


def test_seeds_are_added_only_where_a_difference_is_open(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 9})
    search = searched(study, tmp_path / "run", workers=3, loss=effects(study, noise=0.001, cosine=-0.2, RoPE=0.1, conv=0.001))
    assert seeds_of(search, study) == {"plain": 8, "+ cosine": 4, "+ RoPE": 4, "+ conv": 8}, "the baseline goes with what is open"
    best = next(row.spec.digest for row in study.rows if row.variant == "+ cosine")
    assert search.run.best()[0].digest == best, "those with more seeds do not come first"


def test_a_row_without_prospects_ends_and_does_not_go_on_with_others(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 9})
    search = searched(study, tmp_path / "run", loss=effects(study, noise=0.001, cosine=0.001, RoPE=0.1))
    assert seeds_of(search, study) == {"plain": 8, "+ cosine": 8, "+ RoPE": 4, "+ conv": 4}


def test_with_a_margin_a_row_without_prospects_goes_on_for_the_other_answer(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 9, "margin": 0.0005})
    search = searched(study, tmp_path / "run", loss=effects(study, noise=0.001, cosine=-0.2, RoPE=0.1))
    assert seeds_of(search, study)["+ conv"] == 9


def test_every_difference_is_judged_with_its_share_of_the_error(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 5})
    planned, random = looks(4, 5), np.random.default_rng(3)
    table = random.standard_normal((4, 4))
    table -= table.mean(axis=1, keepdims=True)
    single, shared = (normal_levels(planned, 0.05 / comparisons)[0] for comparisons in (1, 3))

    variances = row_variances(table, 0)

    def needed(row, wanted):
        """The effect whose p-value at the first look is the wanted one; effects do not change variances."""
        pairs = variances.pairs(row, 0)
        return float(brentq(lambda effect: pairs.p_value(-np.ldexp(effect, -variances.exponent))[0] - wanted, 0, 20))

    for row, wanted in ((1, (single + shared) / 2), (2, 0.9 * shared), (3, 0.9 * shared)):
        table[row] += needed(row, wanted)
    place = {row.spec.digest: number for number, row in enumerate(study.rows)}

    def loss(plan, rung):
        return float(5 + table[place[plan.spec.digest], plan.seed]) if plan.seed < 4 else 5.0

    search = searched(study, tmp_path / "run", loss=loss)
    assert seeds_of(search, study) == {"plain": 5, "+ cosine": 5, "+ RoPE": 4, "+ conv": 4}


@pytest.mark.parametrize(("effect", "seeds"), [(0.0, 4), (0.006, 8), (0.2, 4)])
def test_a_single_comparison_is_settled_by_the_t_test(tmp_path, effect, seeds):
    study = ablation(tmp_path, variants=VARIANTS[:1], seeds={"min": 4, "max": 9})
    random = np.random.default_rng(1)
    level, noise = random.standard_normal(9), random.standard_normal(9) * 0.01
    first = study.rows[0].spec.digest

    def loss(plan, rung):
        return float(5 + level[plan.seed] + (0 if plan.spec.digest == first else effect + noise[plan.seed]))

    search = searched(study, tmp_path / "run", loss=loss)
    differences, planned = effect + noise, looks(4, 9)
    ended = lambda n: settled(differences[:n], planned, 0.05) or prospects(differences[:n], planned, 0.05) < FUTILE  # noqa: E731
    wanted = next((n for n in planned if ended(n)), 9)
    assert set(seeds_of(search, study).values()) == {wanted}
    assert wanted == seeds


def test_a_run_that_another_rule_gave_more_seeds_is_gone_on_with(tmp_path):
    """Rows that a rule without futility trained on stay, and the decisions of each look are those of its seeds."""
    loss = lambda study: effects(study, noise=0.001, cosine=0.001, RoPE=0.1)  # noqa: E731
    more = ablation(tmp_path, seeds=6)
    searched(more, tmp_path / "run", loss=loss(more))
    study = ablation(tmp_path, seeds={"min": 4, "max": 9})
    search = searched(study, tmp_path / "run", loss=loss(study))
    assert seeds_of(search, study) == {"plain": 8, "+ cosine": 8, "+ RoPE": 6, "+ conv": 6}
    assert search.complete


def test_a_margin_settles_what_is_too_small_to_matter(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 9, "margin": 0.1})
    search = searched(study, tmp_path / "run", loss=effects(study, noise=0.001))
    assert set(seeds_of(search, study).values()) == {4}


def test_a_ladder_adds_seeds_to_both_sides_of_an_open_step(tmp_path):
    study = ablation(tmp_path, design="ladder", seeds={"min": 4, "max": 6})
    loss = effects(study, noise=0.001, cosine=-0.2, RoPE=-0.2, conv=-0.4)
    assert seeds_of(searched(study, tmp_path / "run", loss=loss), study) == {"plain": 4, "+ cosine": 6, "+ RoPE": 6, "+ conv": 4}


def test_a_failed_seed_is_left_out_of_its_pairs(tmp_path):
    study = ablation(tmp_path, seeds={"min": 4, "max": 6})
    search = searched(study, tmp_path / "run", loss=effects(study, noise=0.001, cosine=-0.2, RoPE=0.2, conv=0.3), failing={1})
    assert search.run.trials[1].state is State.FAILED
    assert search.complete
    assert seeds_of(search, study)["+ cosine"] in (4, 5, 6)


def test_a_row_that_always_fails_ends_the_ablation_all_the_same(tmp_path):
    study = ablation(tmp_path, seeds={"min": 3, "max": 30})
    digest = next(row.spec.digest for row in study.rows if row.variant == "+ RoPE")
    failing = set(range(1000))
    search = Search(study, Ledger(tmp_path / "run"))
    loss = effects(study, noise=0.001, cosine=-0.2, conv=0.3)

    class Failing:
        def __contains__(self, number):
            return number in failing and search.run.trials[number].digest == digest

    carry_out(search, failing=Failing(), loss=loss)
    search.ledger.close()
    assert search.complete
    assert seeds_of(search, study)["+ RoPE"] < 10


def test_more_seeds_and_rows_top_a_run_up(tmp_path):
    study = ablation(tmp_path)
    searched(study, tmp_path / "run")
    more = ablation(tmp_path, seeds=4, variants=[*VARIANTS, {"name": "+ bottom", "set": {"feed_forward.ratio": 3}}])
    search = searched(more, tmp_path / "run")
    assert seeds_of(search, more) == {"plain": 4, "+ cosine": 4, "+ RoPE": 4, "+ conv": 4, "+ bottom": 4}
    assert search.run.replanned, "the seeds were changed after results were there"
    assert not read_run(tmp_path / "run").study.ablation.seeds.sequential


@pytest.mark.parametrize(("stop_after", "noted"), [(0, False), (1, True), (5, True)])
def test_a_change_is_noted_once_there_are_results(tmp_path, stop_after, noted):
    searched(ablation(tmp_path), tmp_path / "run", stop_after=stop_after)
    search = searched(ablation(tmp_path, variants=VARIANTS[:2]), tmp_path / "run")
    assert search.run.replanned is noted
    assert read_run(tmp_path / "run").replanned is noted


def test_what_is_no_row_any_more_does_not_win(tmp_path):
    study = ablation(tmp_path)
    first = searched(study, tmp_path / "run", loss=effects(study, cosine=-1.0))
    assert first.run.best()[0].digest == study.rows[1].spec.digest
    less = ablation(tmp_path, variants=VARIANTS[1:])
    search = searched(less, tmp_path / "run")
    assert search.run.best()[0].digest in {row.spec.digest for row in less.rows}
    assert search.run.replanned


def test_the_status_of_an_ablation_counts_what_is_planned(tmp_path):
    study = ablation(tmp_path)
    searched(study, tmp_path / "run", stop_after=5)
    lines = "\n".join(status(tmp_path / "run"))
    assert "of 12 trials: 1 running, 5 complete" in lines
    assert "to come" in lines
    assert "rung            steps  reported" in lines
    searched(study, tmp_path / "run")
    assert "nothing to come" in "\n".join(status(tmp_path / "run"))


def test_the_spread_is_that_of_paired_differences(tmp_path):
    study = ablation(tmp_path, seeds=40)
    searched(study, tmp_path / "runs" / "one", loss=effects(study, sd=1.0, noise=0.01))
    spread = pooled_sd(tmp_path / "runs", study)
    assert spread.run == "one"
    assert spread.pairs == 3 * 39
    assert spread.sd == pytest.approx(0.01 * 2**0.5, rel=0.2), "the seeds' own level, a hundred times larger, cancels"
    assert pooled_sd(tmp_path / "nowhere", study) is None


FID = "evaluation.fid={samples: 160, steps: 2, seeds: [0]}"


def scored(study, folder, scores, **how):
    """A scripted ablation whose reports have these scores: functions of a plan, by metric."""
    return searched(study, folder, scores=lambda plan, rung: {name: of(plan) for name, of in scores.items()}, **how)


def test_a_report_without_the_ablations_metric_stops_the_run_and_says_what_was_measured(tmp_path):
    study = ablation(tmp_path, FID, metric="kid")
    with pytest.raises(ToolkitError, match=r"trial 0 has no kid, by which .*: it was scored with val_loss, fid; name one of those"):
        scored(study, tmp_path / "run", {"fid": lambda plan: 3.0})
    assert not read_run(tmp_path / "run").trials[0].reports, "nothing without the metric is in the ledger"


def test_a_metric_that_is_newer_than_the_reports_of_a_run_is_refused(tmp_path):
    first = scored(ablation(tmp_path, FID, metric="fid"), tmp_path / "run", {"fid": lambda plan: 3.0}, stop_after=5)
    assert len(first.run.trials) > 4
    with pytest.raises(ToolkitError, match=r"5 of 6 trials were scored before the metric was measured: the report"):
        searched(ablation(tmp_path, FID, metric="kid"), tmp_path / "run")
    scored(ablation(tmp_path, FID, metric="fid"), tmp_path / "run", {"fid": lambda plan: 3.0, "kid": lambda plan: 1.0})


def test_what_another_run_scored_without_the_metric_is_not_taken_over(tmp_path):
    study = ablation(tmp_path, FID, "budget.steps=1", metric="fid")
    first = scored(study, tmp_path / "runs" / "first", {"fid": lambda plan: 3.0})
    for trial in first.run.trials.values():
        held = {"digest": trial.spec.digest, "step": trial.reports[-1].step, "reports": []}
        write_checkpoint(tmp_path / "runs" / "first" / TRIALS / trial.name / CHECKPOINT, {"x": torch.zeros(1)}, held)
    both = {"fid": lambda plan: 3.0, "kid": lambda plan: 1.0}
    again = scored(study, tmp_path / "runs" / "again", {"fid": lambda plan: 4.0})
    assert all(trial.reused for trial in again.run.trials.values())
    newer = scored(ablation(tmp_path, FID, "budget.steps=1", metric="kid"), tmp_path / "runs" / "newer", both)
    assert not any(trial.reused for trial in newer.run.trials.values())


def test_the_winner_goes_by_the_ablations_metric_and_needs_a_claim(tmp_path):
    study = ablation(tmp_path, FID, seeds=6, metric="precision")
    shift = {row.spec.digest: {"+ cosine": 0.2, "+ RoPE": -0.2}.get(row.variant, 0.0) for row in study.rows}
    precision = {"precision": lambda plan: 0.5 + shift[plan.spec.digest] + 0.001 * ((plan.seed * 7 + plan.number) % 5)}
    loss = effects(study, RoPE=-1.0)
    search = scored(study, tmp_path / "run", precision, loss=loss)
    cosine = next(row.spec.digest for row in study.rows if row.variant == "+ cosine")
    assert search.run.best()[0].digest == cosine, "more precision is better, whatever the loss says"
    assert [trial.digest for trial in winners(search.run)] == [cosine]
    for table in ablation_tables(load(search.run)):
        verdicts = dict(zip(table.frame["variant"], table.frame["verdict"], strict=True))
        assert verdicts == {"plain": "baseline", "+ cosine": "better", "+ RoPE": "worse", "+ conv": "no evidence"}
    even = scored(study, tmp_path / "even", {"precision": lambda plan: 0.5 + 0.01 * ((plan.seed + plan.number) % 3)}, loss=loss)
    assert not winners(even.run), "no evidence is no winner"
    assert select(even.run, "best") == even.run.best(), "unless one asks for it"


def test_the_best_is_not_taken_over_different_seeds(tmp_path):
    study = ablation(tmp_path)
    # Seeds differ far more than variants, and the run stops within the second seed.
    loss = lambda plan, rung: 10.0 - plan.seed * 5 + {row.spec.digest: n for n, row in enumerate(study.rows)}[plan.spec.digest]  # noqa: E731
    search = searched(study, tmp_path / "run", loss=loss, stop_after=6)
    assert search.run.best()[0].digest == study.rows[0].spec.digest
    standings = search.run.standings()
    assert [(standing.mean, standing.seeds) for standing in standings] == [(10.0, 1), (11.0, 1), (12.0, 1), (13.0, 1)]
    assert "best mean val_loss 10.0000 (plain; over the seed that ended in every row)" in status(tmp_path / "run")
    early = searched(study, tmp_path / "early", loss=loss, stop_after=3)
    assert not early.run.best()
    assert not any("best" in line for line in status(tmp_path / "early"))
    with pytest.raises(ToolkitError, match="no seed has ended in every row yet"):
        select(early.run, "best")


def test_lines_name_the_variant_and_the_metric(tmp_path):
    study = ablation(tmp_path, FID, metric="fid", variants=[{"name": "two\nlines", "set": {"attention.similarity": "cosine"}}])
    scored(study, tmp_path / "run", {"fid": lambda plan: 12.345}, failing={3})
    counting, lines = Counting(), []
    for event in read_events(tmp_path / "run"):
        progress = counting.take(event)
        lines.append(describe(event, counting.state.run, progress))
    assert lines[1].startswith("trial 0 (plain, seed 0) starts: ")
    assert any(line.startswith("trial 1 (two lines, seed 0) at rung 1 of 1: val_loss ") and ", fid 12.35" in line for line in lines)
    assert "trial 3 (two lines, seed 1) FAILED: broken" in status(tmp_path / "run")


@pytest.mark.slow
def test_an_ablation_really_trains_pairs_and_exports_the_best(tmp_path):
    study = ablation(tmp_path, "evaluation.fid={samples: 256, steps: 2, seeds: [0]}", seeds=2, variants=VARIANTS[:1])
    run = run_study(study, tmp_path / "run", in_process=True)
    assert [trial.state for trial in run.trials.values()] == [State.COMPLETE] * 4
    scores = [trial.reports[-1].scores for trial in run.trials.values()]
    assert all(set(found) == set(SCORES) - {"val_loss"} for found in scores)
    assert len({found["fid"] for found in scores}) == 4
    assert [trial.export is not None for trial in run.trials.values()].count(True) == len(winners(run))
    again = run_study(study, tmp_path / "run", in_process=True)
    assert [trial.reports for trial in again.trials.values()] == [trial.reports for trial in run.trials.values()]


@pytest.mark.slow
def test_scores_belong_to_how_they_were_measured(tmp_path):
    fid = "evaluation.fid={samples: 160, steps: 2, seeds: [0]}"
    run_study(ablation(tmp_path, seeds=1, variants=VARIANTS[:1]), tmp_path / "runs" / "plain", in_process=True)
    scored = run_study(ablation(tmp_path, fid, seeds=1, variants=VARIANTS[:1]), tmp_path / "runs" / "scored", in_process=True)
    assert all(trial.reports[-1].scores and not trial.reused for trial in scored.trials.values()), (
        "what has no score is not taken over"
    )
    again = run_study(ablation(tmp_path, fid, seeds=1, variants=VARIANTS[:1]), tmp_path / "runs" / "again", in_process=True)
    assert all(trial.reports[-1].scores and trial.reused for trial in again.trials.values())
    with pytest.raises(Exception, match=r"holds another study \(evaluation\.fid\.samples: 160 → 170\)"):
        Search(ablation(tmp_path, fid.replace("160", "170"), seeds=1, variants=VARIANTS[:1]), Ledger(tmp_path / "runs" / "scored"))


def test_what_is_of_searches_alone_refuses_an_ablation(tmp_path):
    searched(ablation(tmp_path), tmp_path / "run")
    with pytest.raises(ToolkitError, match="is an ablation, which prunes nothing; a replay is of a search"):
        recorded(read_run(tmp_path / "run"))
    assert export_run(tmp_path / "run", f"sqlite:///{tmp_path}/run.db") == 12


def test_an_ablation_and_a_search_share_no_run_directory(tmp_path, tiny_file):
    searched(ablation(tmp_path), tmp_path / "run")
    with pytest.raises(Exception, match="holds another study"):
        Search(load_study(tiny_file), Ledger(tmp_path / "run"))
