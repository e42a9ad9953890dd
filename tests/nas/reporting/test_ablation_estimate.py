"""The estimate of an ablation: what it costs, and what its seeds could show."""

import pytest

from nas.reporting.ablation_estimate import ablation_estimate, planned_macs
from nas.reporting.power import pooled_sd
from nas.reporting.text import compute
from nas.runs.throughput import Throughput
from nas.stats.paired import exaggeration, minimum_detectable_effect
from nas.stats.pairing import spared_variance
from space.costs.cost import cost
from tests.nas.ablations import VARIANTS, ablation, effects
from tests.nas.reporting.test_estimate import lines
from tests.nas.scripted import searched


def estimate_of(tmp_path, *changes, rate=None, **block):
    text = ablation_estimate(ablation(tmp_path, *changes, **block), tmp_path / "runs", rate)
    assert max(map(len, text.splitlines())) <= 100
    return lines(text)


def test_the_estimate_says_what_is_trained(tmp_path):
    study = ablation(tmp_path, seeds=6)
    found = estimate_of(tmp_path, seeds=6)
    assert found["trials"] == "24: 4 architectures × 6 seeds, the first of them 0"
    assert found["rows"] == "add-one-in, raw: plain; + cosine; + RoPE; + conv (baseline plain)"
    assert found["budget"] == "2 steps a trial: the same samples for every row, not the same compute"
    macs = sum(6 * 2 * cost(row.spec).step_macs(4) for row in study.rows)
    assert planned_macs(study, 6) == macs
    assert found["training"] == compute(macs)
    rated = estimate_of(tmp_path, "evaluation.samples=null", seeds=6, rate=Throughput(macs / 100, 2, "x"))
    assert rated["hours"].startswith("about 50 s of training")


def test_the_bill_of_sequential_seeds_has_the_least_the_expected_and_the_most(tmp_path):
    study = ablation(tmp_path, seeds={"min": 3, "max": 12})
    found = estimate_of(tmp_path, seeds={"min": 3, "max": 12})
    assert found["trials"].startswith("12 to 48: 4 architectures × 3 to 12 seeds")
    trials = int(found["expected"].split()[1])
    assert 15 < trials < 20
    one = planned_macs(study, 1) / 4
    assert found["training"] == f"{compute(12 * one)} to {compute(48 * one)}"
    assert found["expected"].startswith(f"about {trials} trials (")
    assert "expected" not in estimate_of(tmp_path, seeds={"min": 3, "max": 12, "margin": 0.1}), "without futility"
    assert "expected" not in estimate_of(tmp_path, seeds=6)


def test_a_ladders_rows_go_on_for_both_of_their_steps(tmp_path):
    plain, ladder = (
        int(estimate_of(tmp_path, design=design, seeds={"min": 3, "max": 12})["expected"].split()[1])
        for design in ("table", "ladder")
    )
    assert plain - 1 <= ladder <= plain + 4


def test_a_budget_of_images_is_one_of_steps_of_the_batch(tmp_path):
    found, steps = estimate_of(tmp_path, "budget={images: 7, rungs: 1}"), estimate_of(tmp_path)
    assert found["budget"] == "7 images a trial: the same samples for every row, not the same compute"
    assert found["training"] == steps["training"], "7 images take 2 steps of 4"


def test_a_budget_of_compute_is_equal_for_every_row(tmp_path):
    found = estimate_of(tmp_path, "budget={max: 8 TFLOPs, rungs: 2}")
    assert found["budget"] == "4 TFLOPs, 8 TFLOPs of training a trial"
    assert found["training"] == "96 TFLOPs"


@pytest.mark.parametrize(
    ("seeds", "rows", "words"),
    [
        (
            6,
            6,
            "6 comparisons in a table, decided by hierarchical variances with Holm; the exact sign-flip test, beside it, reaches "
            "p = 0.19 at best with 6 seeds (8 seeds would get below 0.05)",
        ),
        (6, 1, "one comparison in a table, decided by paired t; the exact sign-flip test, beside it, reaches p = 0.031 at best"),
        (1, 3, "one seed a row: no test and no interval; differences of one seed are not evidence"),
        (
            {"min": 3, "max": 12},
            3,
            "3 comparisons in a table, looked at after each of 3 to 12 seeds by group-sequential hierarchical variances, valid",
        ),
    ],
)
def test_the_estimate_says_which_p_value_can_be_reached(tmp_path, seeds, rows, words):
    variants = [{"name": f"ratio {n}", "set": {"feed_forward.ratio": 2 + n / 4}} for n in range(1, rows + 1)]
    assert estimate_of(tmp_path, seeds=seeds, variants=variants)["claims"].startswith(words)


def test_the_comparisons_of_a_ladders_table_are_one_family(tmp_path):
    """Three rows with the baseline and two further steps; the first step is the first row's difference."""
    found = estimate_of(tmp_path, design="ladder", seeds=6, controls=["raw", "flop-matched"])
    assert found["claims"].startswith("5 comparisons in a table, decided by hierarchical variances")
    assert f"a difference of {minimum_detectable_effect(1.0, 6, 0.05 / 5):.2g} standard deviations" in found["visible"]


def test_the_bill_says_how_much_too_large_claims_are(tmp_path):
    share = minimum_detectable_effect(1.0, 6, 0.05 / 3)
    visible, half = (100 * (exaggeration(share / times, 6**-0.5, 5, 0.05 / 3) - 1) for times in (1, 2))
    found = estimate_of(tmp_path, seeds=6)["too large"]
    assert f"by {visible:.0f} % where the true difference has that size, by {half:.0f} % where it has half of it" in found
    assert 0 < visible < 20 < half
    assert "too large" not in estimate_of(tmp_path, seeds=1)


def test_the_bill_says_what_pairing_brought_in_an_earlier_run(tmp_path):
    variants = [{"name": f"ratio {n}", "set": {"feed_forward.ratio": 2 + n / 4}} for n in range(1, 7)]
    study = ablation(tmp_path, seeds=20, variants=variants)
    assert "pairing" not in estimate_of(tmp_path, seeds=6, variants=variants)
    searched(study, tmp_path / "runs" / "apart", loss=effects(study, sd=0.0, noise=0.01))
    apart = pooled_sd(tmp_path / "runs", study).seeds
    assert apart.icc < 0.1
    spared = f"2.4 times as many seeds for the baseline, unpaired, would remove {100 * spared_variance(max(apart.icc, 0), 6):.0f} %"
    found = estimate_of(tmp_path, seeds=6, variants=variants)["pairing"]
    assert found == f"{apart} in run apart; {spared} at equal cost"
    searched(study, tmp_path / "others" / "common", loss=effects(study, sd=1.0, noise=0.01))
    text = ablation_estimate(study, tmp_path / "others")
    assert lines(text)["pairing"] == f"{pooled_sd(tmp_path / 'others', study).seeds} in run common"
    assert "removes 100 % of a difference's variance" in lines(text)["pairing"]


def test_sequential_seeds_are_estimated_from_least_to_most(tmp_path):
    found = estimate_of(tmp_path, seeds={"min": 3, "max": 12})
    assert found["trials"] == "12 to 48: 4 architectures × 3 to 12 seeds, the first of them 0"
    assert " to " in found["training"]


def test_a_cost_that_cannot_be_matched_is_told(tmp_path):
    # Four times the layers cost more than the baseline whatever the ratio.
    block = {"variants": [VARIANTS[0], {"name": "deep", "set": {"depths": [4, 4, 4, 4, 4]}}], "controls": ["raw", "flop-matched"]}
    found = estimate_of(tmp_path, matched_by="feed_forward.ratio", **block)
    assert found["not matched"].startswith("deep: +")
    assert "cosine" not in found["not matched"]
    assert "not matched" not in estimate_of(tmp_path, variants=VARIANTS, controls=["raw", "flop-matched"])


def test_a_row_that_is_its_baseline_is_told(tmp_path):
    found = estimate_of(tmp_path, variants=[*VARIANTS, {"name": "dot", "set": {"attention.similarity": "dot"}}])
    assert found["equal rows"] == "dot is plain (raw); they cannot differ, but count in the correction"
    assert "equal rows" not in estimate_of(tmp_path)


def test_a_spread_of_another_budget_says_nothing(tmp_path):
    study = ablation(tmp_path)
    searched(study, tmp_path / "runs" / "first", loss=effects(study))
    assert pooled_sd(tmp_path / "runs", study).run == "first"
    assert pooled_sd(tmp_path / "runs", ablation(tmp_path, "budget.steps=20")) is None
    assert pooled_sd(tmp_path / "runs", ablation(tmp_path, "training.batch_size=8")) is None


def test_fid_and_published_tables_are_named(tmp_path):
    found = estimate_of(
        tmp_path,
        "evaluation.fid={samples: 160, steps: 2, seeds: [0, 1], at: every}",
        "budget={steps: 4, rungs: 2}",
        variants=[{**VARIANTS[0], "row": "U-DiT-T (+Cos.Sim.)"}],
        published="udit_table9",
    )
    assert found["evaluation"].startswith("2 × 160 samples of 2 steps at every rung of every trial")
    assert found["rows"].endswith("beside udit_table9")


def test_samples_too_few_to_order_rows_by_the_metric_are_told(tmp_path):
    def told(metric, samples):
        return estimate_of(tmp_path, f"evaluation.fid={{samples: {samples}}}", metric=metric).get("biased", "")

    assert told("fid", 1279).startswith("1,279 samples are too few to order models by fid (at least 1,280): below 20 a feature")
    assert told("sfid", 2559).startswith("2,559 samples are too few to order models by sfid (at least 2,560)")
    assert not any(
        told(metric, samples) for metric, samples in (("fid", 1280), ("kid", 130), ("val_loss", 130), ("fid_infinity", 256))
    )
