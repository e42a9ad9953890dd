"""The estimate before a run: what it says, and the arithmetic behind it."""

import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from nas.reporting.estimate import drawing_macs, estimate, expected_search_macs
from nas.reporting.text import compute, duration, percent
from nas.runs.run import read_run
from nas.runs.throughput import Throughput, throughput_of_run
from nas.study.load import load_study
from space import ToolkitError
from space.costs.cost import cost
from tests.nas.scripted import searched

FOUR_RUNGS = "budget={max: 800 MFLOPs, rungs: 4, reduction_factor: 2}"


def lines(text):
    """The lines by their labels, those that were broken put together."""
    found, label = {}, ""
    for line in text.splitlines():
        label = line[:13].strip() or label
        found[label] = f"{found.get(label, '')} {line[13:]}".strip()
    return found


def test_the_estimate_of_a_plain_search(tiny_file):
    text = estimate(load_study(tiny_file, [FOUR_RUNGS, "search.trials=8", "finish.budget=1 GFLOPs", "finish.best=3"]))
    assert max(map(len, text.splitlines())) <= 100
    found = lines(text)
    assert found["study"] == "tiny: Does everything work?"
    assert found["trials"] == "8, seed 0"
    assert found["sampler"] == "tpe, seed 0"
    assert found["feasible"].startswith("100.0% of the space (100,000 of 100,000 random points)")
    assert "feasible part" not in text
    assert found["rungs"] == "100 MFLOPs, 200 MFLOPs, 400 MFLOPs, 800 MFLOPs of training a trial; mode stop: judged on arrival"
    # 8 trials × 800 million and 3 × 200 for the finish; in expectation 8 × (100 + 50 + 50 + 50).
    assert found["training"] == "at most 7 GFLOPs; about 2.6 GFLOPs when 1 in 2 goes on from every rung"
    assert found["finish"] == "3 best, each 200 MFLOPs more (contained above)"
    assert found["hours"].startswith("unknown until a step is timed here")
    assert found["units"].startswith("FLOPs are multiply-accumulates")


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        (["budget.mode=none"], 800 * 12, "mode none: all go on to the last"),
        (["budget.mode=promote"], 250 * 12, "mode promote: they wait, and the best go on"),
        # The first rung lets all go on: 200, then half of them 200 more, a quarter 400.
        (["budget.grace_rungs=1"], (200 + 100 + 100) * 12, "first at rung 2 (grace 1)"),
        # 4 architectures of 3 seeds each: 2 in the first bracket, 2 in the second, whose trials all reach 200.
        (["budget.brackets=2", "search.replicates=3"], 250 * 6 + 400 * 6, "in 2 brackets, first at rungs 1, 2"),
        (["budget={max: 800 MFLOPs}"], 800 * 12, "nothing is judged before the end"),
    ],
)
def test_the_expected_compute_of_every_way_to_judge(tiny_file, changes, expected, said):
    study = load_study(tiny_file, [FOUR_RUNGS, "search.trials=12", "finish=null", *changes])
    assert expected_search_macs(study) == expected * 10**6
    found = lines(estimate(study))
    assert said in found["rungs"]
    assert found["training"].startswith("at most 9.6 GFLOPs")
    if expected < 800 * 12:
        assert f"about {compute(expected * 1e6)} when 1 in 2 goes on" in found["training"]


@pytest.mark.parametrize(("key", "marks"), [("steps: 80", "10, 20, 40, 80 steps"), ("images: 320", "40, 80, 160, 320 images")])
def test_at_equal_steps_the_bill_says_how_the_compute_differs(tiny_file, key, marks):
    finish = f"finish={{best: 2, {key.split(':')[0]}: {2 * int(key.split()[1])}}}"
    study = load_study(tiny_file, [f"budget={{{key}, rungs: 4}}", "search.trials=8", "search.space.channels=[8, 16]", finish])
    census, size = study.census, study.training.batch_size
    cheapest, dearest = (cost(spec).step_macs(size) for spec in (census.cheapest, census.dearest))
    mean = census.mean_step_macs
    assert cheapest < mean < dearest
    feasible = list(islice(study.search_space.feasible(np.random.default_rng(1)), 4000))
    drawn = [cost(study.search_space.spec(params)).step_macs(size) for params in feasible]
    assert mean == pytest.approx(np.mean(drawn), rel=0.03)
    found = lines(estimate(study))
    assert found["rungs"] == f"{marks} a trial; mode stop: judged on arrival"
    low, high, middle = (compute(80 * step) for step in (cheapest, dearest, mean))
    assert found["a trial"].startswith(f"{low} (cheapest) to {high} (dearest) to the last rung, {middle} in the mean")
    # 8 trials × 80 steps and 2 × 80 for the finish; in expectation 8 × (10 + 5 + 5 + 5).
    most, likely = (8 * 80 + 2 * 80) * dearest, (8 * 25 + 2 * 80) * mean
    assert found["training"] == f"at most {compute(most)}; about {compute(likely)} when 1 in 2 goes on from every rung"
    more = "80 steps" if key.startswith("steps") else "320 images"
    assert found["finish"] == f"2 best, each {more} more (contained above)"
    assert duration(likely / 1e6).split()[1] in lines(estimate(study, Throughput(1e6, 1, "given")))["hours"]


def test_brackets_share_the_architectures_out(tiny_file):
    study = load_study(tiny_file, [FOUR_RUNGS, "search.trials=10", "search.replicates=2", "budget.brackets=3", "finish=null"])
    # Five architectures in turn: the first and the fourth, the second and the fifth, the third.
    assert [2 * study.budget.in_bracket(study.search.trials // 2, bracket) for bracket in range(3)] == [4, 4, 2]


def test_replicates_and_what_is_enqueued_are_told(tiny_file):
    found = lines(estimate(load_study(tiny_file, ["search.replicates=2", "search.enqueue=[{heads: 2}]", "training.seed=7"])))
    assert found["trials"] == "4: 2 architectures × 2 seeds, the first of them 7"
    assert found["sampler"] == "tpe, seed 0, after 1 given first (enqueue)"


def test_a_tiny_feasible_share_is_told_with_its_digits(tiny_file):
    space = "search.space={channels: {int: [8, 1024], step: 8}, depths: {each: {int: [1, 8]}}, heads: [1, 2, 4]}"
    study = load_study(tiny_file, [space, "search.constraints={gflops: {max: 0.0025}}"])
    assert 1e-6 < study.census.share < 1e-4
    found = lines(estimate(study))
    assert found["feasible"].startswith(f"{percent(study.census.share)} of the space (")
    assert "so few say little of the range of costs" in found["feasible"]


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.0%"), (0.341, "34.1%"), (0.01, "1.0%"), (0.00123, "0.12%"), (1.3e-5, "0.0013%"), (0, "0.0%")]
)
def test_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (12240, "3.4 h"), (216000, "2.5 days")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_hours_are_told_once_a_rate_is_known(tiny_file):
    study = load_study(
        tiny_file,
        [FOUR_RUNGS, "search.trials=8", "finish.budget=1 GFLOPs", "finish.best=3", "evaluation.samples=null"],
    )
    # 2,000 million multiply-accumulates over two at once, then two turns of 200: at a million a second 1,400 s.
    found = lines(estimate(study, Throughput(1e6, 2, "from the smoke step")))
    assert found["hours"].startswith("about 23 min of training and sampling at 1 MFLOPs a second and trial, 2 at once (")
    # More at once than there are trials bring nothing.
    assert lines(estimate(study, Throughput(1e6, 100, "x")))["hours"].startswith(f"about {duration(250 + 200)} ")


@pytest.mark.parametrize(("macs", "text"), [(9e8, "900 MFLOPs"), (1.5e12, "1.5 TFLOPs"), (7e14, "700 TFLOPs"), (2e15, "2 PFLOPs")])
def test_the_unit_fits_the_amount(macs, text):
    assert compute(macs) == text


def test_the_bill_counts_sampling(tiny_file):
    study = load_study(tiny_file, ["evaluation.fid={samples: 100, seeds: [0, 1], steps: 10}", "finish.best=2"])
    # A grid of 10 guided images in 2 steps, and 200 unguided ones in 10.
    macs = 2 * (40 + 2000) * cost(study.census.dearest).gflops * 1e9
    found = lines(estimate(study, Throughput(1e6, 1, "x")))
    assert found["sampling"] == f"at most {compute(macs)} (2 exported, scored; a grid of 10 images), not contained above"
    trained = expected_search_macs(study) + 2 * (study.finish.budget - study.budget.full)
    assert found["hours"].startswith(f"about {duration((trained + macs) / 1e6)} of training and sampling")
    flow = load_study(tiny_file, ["training.prediction=flow"])
    assert drawing_macs(flow, flow.evaluation.samples, flow.base) == 2 * 40 * round(cost(flow.base).gflops * 1e9)
    none = load_study(tiny_file, ["evaluation.samples=null"])
    assert lines(estimate(none))["sampling"] == "none: evaluation.samples is null"


def test_the_bill_of_a_search_by_a_metric_of_samples_has_the_scoring_of_every_report(tiny_file):
    judged = "evaluation.fid={samples: 200, seeds: [0, 1], steps: 3, at: every}"
    changes = [FOUR_RUNGS, "search.trials=8", "finish=null", judged, "search.objectives=[{metric: gflops}, {metric: kid}]"]
    study = load_study(tiny_file, changes)
    each = drawing_macs(study, study.evaluation.fid, study.census.dearest)
    found = lines(estimate(study))
    # 8 trials report at 4 rungs at most; in expectation 8, 4, 2 and 1.
    said = f"at most {compute(32 * each)}, about {compute(15 * each)} (every report, of 400 samples each, of"
    assert found["scoring"] == f"{said} the dearest architecture), not contained above"
    assert "scoring" not in lines(estimate(load_study(tiny_file, [FOUR_RUNGS, "finish=null"])))
    slow, training = Throughput(1e6, 1, "given"), expected_search_macs(study)
    grid = drawing_macs(study, study.evaluation.samples, study.census.dearest) + each
    assert f"about {duration((training + 15 * each + grid) / 1e6)} of" in lines(estimate(study, slow))["hours"]


def test_the_rate_of_a_run_is_that_of_what_it_trained_itself(tiny, tmp_path):
    searched(tiny, tmp_path)
    run = read_run(tmp_path)
    reports = [report for trial in run.trials.values() for report in trial.reports]
    total = sum(trial.reports[-1].macs for trial in run.trials.values())
    assert throughput_of_run(run, 3) == Throughput(total / len(reports), 3, "as in the run so far"), "a second each"
    first = run.trials[0]
    first.reused = [0]
    assert throughput_of_run(run, 3).macs_per_s == (total - first.reports[0].macs) / (len(reports) - 1)
    for trial in run.trials.values():
        trial.reports = []
    assert throughput_of_run(run, 3) is None


def test_what_cannot_be_run_has_no_estimate(tiny_file):
    with pytest.raises(ToolkitError, match="the nearest has gflops"):
        estimate(load_study(tiny_file, ["search.constraints={gflops: {min: 2}}"]))


def test_the_estimate_imports_neither_torch_nor_ray_nor_optuna(tiny_file):
    code = f"""
import sys
from pathlib import Path
from nas.reporting.estimate import estimate
from nas.study.load import load_study
estimate(load_study(Path({str(tiny_file)!r})))
print([name for name in ("torch", "ray", "optuna", "pandas") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
