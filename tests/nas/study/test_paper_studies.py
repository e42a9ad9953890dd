"""The studies that rebuild the papers' tables: what they train, and that it is what is printed."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from nas.execution.runner import run_study
from nas.reporting.ablation_estimate import ablation_estimate, planned_macs
from nas.runs.records import State
from nas.runs.run import read_run
from nas.study.load import load_study
from nas.study.study import Study
from space.costs.cost import cost
from space.published import counted_gflops, published, published_table

STUDIES = Path(__file__).parents[3] / "studies"
NAMES = sorted(path.stem for path in (STUDIES / "paper").glob("*.yaml"))
SPEED = "udit_table11_speed"
"""Trains a few hundred steps, as speed is all that it is about."""

MOST_PFLOPS = 0.035
"""Half an hour on two cores, at 10 GFLOPs a second each."""

PLOTTED_ELSEWHERE = {("udit_figure1_gflops", "U-DiT-B"), ("udit_figure1_gflops", "U-DiT-L")}
"""Figure 1 plots them at the GFLOPs of the DiTs beside them; Table 2 prints 22.22 and 85.00, which is what they have."""

UNEXPLAINED = {("udit_table7_downsampler", "ordinary convolution")}
"""No kernel gives the 2.22 GFLOPs of Table 7's caption; docs/architectures.md says so."""

both = pytest.mark.parametrize("size", ["paper", "small"])
every = pytest.mark.parametrize("name", NAMES)


@cache
def study_of(size: str, name: str) -> Study:
    return load_study(STUDIES / size / f"{name}.yaml")


def raw_rows(size: str, name: str):
    return [row for row in study_of(size, name).rows if row.control == "raw"]


def printed_of(row):
    """The printed rows of a variant: one, or one for every count of steps."""
    rows = published_table(row.published).rows
    return [one for one in rows if one.label == row.label] or [one for one in rows if one.printed == row.label]


def test_every_file_stands_in_both_sizes():
    assert NAMES == [
        "dit_table4_models",
        "udit_figure1_gflops",
        "udit_figure2_steps",
        "udit_table10_modifications",
        "udit_table11_speed",
        "udit_table1_toy",
        "udit_table2_main",
        "udit_table4_guidance",
        "udit_table5_iterations",
        "udit_table6_512",
        "udit_table7_downsampler",
        "udit_table9_components",
    ]
    assert sorted(path.stem for path in (STUDIES / "small").glob("*.yaml")) == NAMES
    titles = [study_of(size, name).name for size in ("paper", "small") for name in NAMES]
    assert len(set(titles)) == len(titles), "each gets a run directory of its own"


@both
@every
def test_it_can_be_run_and_prints_its_estimate(size, name, tmp_path):
    study = study_of(size, name)
    study.check_runs()
    printed = ablation_estimate(study, tmp_path)
    assert printed.startswith(f"study        {study.name}")
    assert study.rows[0].published in " ".join(printed.split())


@both
@every
def test_the_header_tells_question_cost_and_outcome(size, name):
    study = study_of(size, name)
    lines = (STUDIES / size / f"{name}.yaml").read_text().splitlines()
    question, price, outcome = lines[:3]
    assert question.startswith("# Question: ")
    assert question.endswith("?")
    assert outcome.startswith("# What came out: ")
    assert price.startswith("# Cost: ")
    assert max(map(len, lines)) <= 135
    seeds, architectures = study.ablation.seeds.max, len({row.spec.digest for row in study.rows})
    assert f" {architectures} architectures × {seeds} seeds" in price
    told = re.search(r"([\d,.]+) training PFLOPs", price)
    if name != "udit_table9_components" or size == "paper":
        assert f" × {study.budget.steps:,} steps" in price
        assert float(told[1].replace(",", "")) == pytest.approx(planned_macs(study, seeds) / 1e15, rel=0.01)


@every
def test_the_small_one_extends_the_paper_s_and_keeps_its_rows(name):
    own = yaml.safe_load((STUDIES / "small" / f"{name}.yaml").read_text())
    assert own["extends"] == f"../paper/{name}.yaml"
    assert not {"variants", "blocks", "published", "baseline"} & own["ablation"].keys(), "rows stand once"

    def facts(row):
        return row.block, row.variant, row.baseline, row.published, row.label, row.family

    assert [facts(row) for row in raw_rows("small", name)] == [facts(row) for row in raw_rows("paper", name)]


@every
def test_rows_are_of_the_table_and_each_is_another_architecture(name):
    rows = raw_rows("paper", name)
    for row in rows:
        assert printed_of(row), f"'{row.label}' is not printed"
    assert len({row.spec.digest for row in rows}) == len(rows)


@every
def test_rows_are_the_presets_that_the_table_prints(name):
    """Where the table prints costs, it is known which preset each of its rows is."""
    study, rows = study_of("paper", name), raw_rows("paper", name)
    title, side = published_table(rows[0].published).title, 8 * study.data.expected.shape[1]
    presets = {one.row: one.preset for one in published() if (one.table, one.resolution) == (title, side)}
    assert presets or title in ("U-DiT Table 4", "U-DiT Table 5", "U-DiT Table 11", "U-DiT Figure 1", "U-DiT Figure 2")
    for row in rows if presets else ():
        assert row.spec == study.spec_of(presets[printed_of(row)[0].printed], {}), row.variant


LEFT_OUT = {
    "udit_table2": ["DiT-S/2 [28]", "DiT-L/4 [28]", "DiT-B/2 [28]", "DiT-L/2 [28]", "DiT-XL/2 [28]"],
    "udit_table5": ["DiT-XL/2"],
    "udit_figure1": [f"{name}, {gflops} GFLOPs" for name in ("SiT", "SiT-LLAMA") for gflops in (6.1, "23.*", 80.6, 118.6)],
    "dit_table4": ["DiT-XL/2, 256 px, 400K, (in-context|cross-attention|adaLN)", r"DiT-XL/2, \d+ px, \d{4}K, adaLN-Zero"],
}
"""Printed rows that no study trains: DiT's numbers beside the replicated ones, 7,000,000 steps, flows, other conditionings."""


@every
def test_every_printed_row_is_trained_or_left_out_knowingly(name):
    named = {one.label for row in raw_rows("paper", name) for one in printed_of(row)}
    title = raw_rows("paper", name)[0].published
    patterns = [one.replace("[28]", r"\[28\]") for one in LEFT_OUT.get(title, [])]
    rest = set(published_table(title).labels) - named
    assert all(any(re.fullmatch(pattern, label) for pattern in patterns) for label in rest), rest
    assert all(any(re.fullmatch(pattern, label) for label in rest) for pattern in patterns)


def beyond(name: str, row) -> bool:
    """Whether a row's GFLOPs are further than 1 % from the printed ones, and than half of their last digit."""
    printed = printed_of(row)[0].gflops
    if not printed:
        return False
    found = counted_gflops(cost(row.spec), dit=name.startswith("dit") or row.label.endswith("[28]"))
    half_digit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return abs(found - float(printed)) > max(0.01 * float(printed), half_digit)


def test_gflops_are_the_printed_ones():
    compared = [(name, row) for name in NAMES for row in raw_rows("paper", name) if printed_of(row)[0].gflops]
    assert len(compared) == 12 + 10 + 6 + 4 + 8 + 4 + 2 + 4 + 7
    assert {(name, row.variant) for name, row in compared if beyond(name, row)} == PLOTTED_ELSEWHERE | UNEXPLAINED


@every
def test_the_paper_s_recipe(name):
    study = study_of("paper", name)
    training = study.training
    assert (training.prediction.kind, training.prediction.min_snr) == ("epsilon", None)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (256, 1e-4, 0.0)
    assert (training.ema, training.ema_warmup, training.warmup_steps, training.clip_norm) == ((0.9999,), False, 0, None)
    assert (training.label_dropout, study.data.flip, study.budget.decay) == (0.1, True, 0.0)
    assert study.ablation.seeds.max == 3
    if name == SPEED:
        assert study.evaluation.fid is None
        assert study.resources.concurrent == 1
    else:
        assert study.ablation.metric == "fid"
        assert (study.evaluation.fid.sampler, study.evaluation.fid.extractor) == ("ddpm", "inception")


@pytest.mark.parametrize("name", [name for name in NAMES if name != SPEED])
def test_steps_samples_guidance_and_resolution_are_the_printed_ones(name):
    study = study_of("paper", name)
    fid, side = study.evaluation.fid, 8 * study.data.expected.shape[1]
    judged = study.budget.milestones if fid.at == "every" else study.budget.milestones[-1:]
    for row in raw_rows("paper", name):
        protocols = [one.protocol for one in printed_of(row)]
        assert {one.train_steps for one in protocols} == set(judged)
        for one in protocols:
            assert (one.data, one.batch_size) == (f"ImageNet {side}×{side}", study.training.batch_size)
            assert (one.samples, one.sampling_steps, one.guidance) == (fid.samples, fid.steps, fid.guidance)


@every
def test_a_small_one_fits_two_cores(name):
    study = study_of("small", name)
    assert planned_macs(study, study.ablation.seeds.max) / 1e15 <= MOST_PFLOPS
    assert study.ablation.seeds.max >= 3
    assert study.data.source == "fashion-mnist-10k"
    fid = study.evaluation.fid
    if name == "udit_table4_guidance":
        assert (study.ablation.metric, fid.extractor, fid.guidance) == ("kid", "clothes", 1.5)
        assert fid.samples >= 129, "fewer leave a covariance singular"
    else:
        assert (study.ablation.metric, fid) == ("val_loss", None)


@every
def test_at_equal_cost_small_rows_are_equal(name):
    """Within 2 %: the narrowest models have too few widths for 1 %, which the bill tells."""
    matched = [row.match for row in study_of("small", name).rows if row.match]
    assert all(abs(match.error) < 0.02 for match in matched)


def test_small_rows_keep_the_order_of_gflops_within_a_family():
    """A scaled DiT or U-DiT of a larger size is still the dearer one, or its table would ask something else."""
    for name in ("dit_table4_models", "udit_figure1_gflops"):
        for family in {row.family for row in raw_rows("paper", name)}:
            order = {
                size: [
                    row.variant
                    for row in sorted(raw_rows(size, name), key=lambda row: cost(row.spec).gflops)
                    if row.family == family
                ]
                for size in ("paper", "small")
            }
            if name == "udit_figure1_gflops":
                assert order["small"] == order["paper"]
            else:
                for patch in "248":
                    assert [v for v in order["small"] if v.endswith(f"/{patch}")] == [
                        f"DiT-{s}/{patch}" for s in ("S", "B", "L", "XL")
                    ]


@pytest.mark.slow
def test_a_small_one_runs(tmp_path):
    changes = ["ablation.seeds=1", "ablation.controls=[raw]", "budget.steps=1", "evaluation.val_loss.images=8"]
    study = load_study(STUDIES / "small" / "udit_table1_toy.yaml", changes)
    run_study(study, tmp_path / "run", in_process=True)
    trials = read_run(tmp_path / "run").trials.values()
    assert [trial.state for trial in trials] == 4 * [State.COMPLETE]
    assert all(math.isfinite(trial.reports[-1].val_loss) for trial in trials)
