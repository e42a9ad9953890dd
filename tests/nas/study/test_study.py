import pytest
import yaml

from nas.search.resume import differences
from nas.study.load import load_study
from nas.study.study import Study
from space import ToolkitError
from space.costs.cost import cost
from space.errors import Mistakes, StudyError
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.trials=many", "search.trials: input should be a valid integer"),
        ("serch.trials=3", "unknown key 'serch'; did you mean 'search'"),
        ("training.learning_rte=1", "unknown key 'training.learning_rte'; did you mean 'learning_rate'"),
        ("training.learning_rate=-1", "training.learning_rate: input should be greater than 0, not -1"),
        ("data.source=mnist", "data: no data source 'mnist'"),
        ("model.preset=u-dit-tiny", "model: no preset 'u-dit-tiny'; did you mean 'u-dit-toy'"),
        ("model.set.input_size=64", "model: model.set.input_size is 64, but the data have 8; remove it"),
        ("search.space.attention.tokns=[all]", "search: the space varies 'attention.tokns', which no spec has; did you mean"),
        ("search.sampler.kind=tpee", "did you mean 'tpe'"),
        ("search.constraints={flops: {max: 1}}", "constraint 'flops' is not a cost; did you mean 'gflops'"),
        ("search.constraints={gflops: {min: 2, max: 1}}", "min 2 is above max 1"),
        (
            "search.constraints={gflops: {min: 2}}",
            "none of 100000 random architectures .* has gflops at least 2; the nearest has gflops 0.00",
        ),
        (
            "search.objectives=[{metric: gflops}]",
            "search.objectives has no score, only gflops, which no rung changes; add",
        ),
        (
            "search.objectives=[{metric: step_seconds}, {metric: gflops}]",
            "has no score, only step_seconds and gflops, which",
        ),
        ("search.objectives=[{metric: val_loss}, {metric: gflops}, {metric: gflops}]", "search.objectives names gflops twice"),
        ("search.objectives=[{metric: gflops}, {metric: val_loss, direction: maximize}]", "val_loss is minimised"),
        ("search.objectives=[{metric: fid}]", "has fid, which evaluation.fid measures; add evaluation: {fid: {at: every}}"),
        ("budget.max=3 bananas", "'3 bananas' is not an amount of compute such as '1.5 TFLOPs'"),
        ("budget.max=1 MFLOPs", "the first rung, 0.00025 GFLOPs, is less than one step of the dearest architecture"),
        ("finish.budget=1 MFLOPs", "finish.budget must be above budget.max"),
        (
            "finish={steps: 40}",
            "finish.steps is steps, but budget.max, from which .* is compute; write finish.budget",
        ),
        ("finish={best: 1}", "a finish is either budget .compute, such as '1.5 TFLOPs'. or steps"),
        ("budget={steps: 30, max: 1 GFLOPs}", "a budget is either max .compute, such as '1.5 TFLOPs'. or steps"),
        ("budget={steps: 30}", "finish.budget is compute, but budget.steps, from which the winner trains on, is steps"),
        ("budget={steps: 3, rungs: 3}", "3 rungs leave less than a step for the first"),
        ("name=../x", "name: string should match pattern"),
        ("search.objectives=[{metric: val_loss, direction: maximize}]", "val_loss is minimised"),
        (
            "search.space.attention.similarity=[dot, cosin]",
            "the value 'cosin': 'cosin' is not one of 'dot' or 'cosine'; did you mean 'cosine'",
        ),
        ("search.space.channels={float: [8, 16]}", "varies 'channels' over real numbers, which it does not take"),
        (
            "search.space.feed_forward.reparam={when: {feed_forward.kind: convv}, choice: [true]}",
            "gives 'feed_forward.kind' the value 'convv'",
        ),
        ("search.space.heads={chioce: [1]}", "unknown key 'search.space.heads.chioce'; did you mean 'choice'"),
        ("search.constraints={gflops: {maxx: 1}}", "unknown key 'search.constraints.gflops.maxx'; did you mean 'max'"),
        ("budget.max=1e400 TFLOPs", "is not an amount of compute"),
        ("question=2024-13-45", "'2024-13-45' is not a YAML value"),
        ("budget.reduction=2", "budget.reduction is now called budget.reduction_factor; rename it"),
        ("budget.grace=1", "budget.grace is now called budget.grace_rungs; rename it"),
        ("training.objective=v", "training.objective is now called training.prediction; rename it"),
        ("model.set.ends=double", "no spec has 'ends'; 'ends' is now called 'stem': rename it"),
        ("search.space.ends=[double]", "the space varies 'ends', which no spec has; 'ends' is now called 'stem': rename it"),
        (
            "search.space.channels={when: {ends: conv}, choice: [16]}",
            "'channels' depends on 'ends', which no spec has; 'ends' is now called 'stem': rename it",
        ),
        (
            "search.space.attention.factor=[2, 3]",
            "search: the space gives 'attention.factor' the value 3: 3 is not one of 1, 2 or 4; the nearest is 2",
        ),
        ("search.space.attention.factor=[[1, 1, 3, 1, 1]]", "value .1, 1, 3, 1, 1.: 3 is not one of 1, 2 or 4; the nearest is 2"),
        ("model.set.attention.factor=3", "model: attention.factor: 3 is not one of 1, 2 or 4; the nearest is 2"),
        ("search.objectives={metric: val_loss}", "search.objectives: .* is no list"),
        (
            "search.constraints={gflops: 30 MFLOPs}",
            "gflops: '30 MFLOPs' is no range; write '28.5 MFLOPs ± 5 %', or {min: 28.5 MFLOPs}",
        ),
        ("search.constraints={gflops: {max: 30 M}}", "gflops: '30 M' is no amount of gflops; write a number, or '28.5 MFLOPs'"),
        ("search.trials", "write KEY=VALUE"),
        ("evaluation.samples.steps=1", "evaluation.samples.steps is 1, which would end in noise with epsilon; take at least 2"),
        ("evaluation.fid={steps: 1}", "evaluation.fid.steps is 1, which would end in noise with epsilon; take at least 2"),
        ("search.trials.more=1", "'trials' holds 4, not keys"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tiny_file, change, message):
    with pytest.raises(ToolkitError, match=message) as caught:
        load_study(tiny_file, [change]).check_runs()
    assert "\n" not in str(caught.value)


def test_a_study_is_loaded_from_a_path_its_text_or_its_data(tiny_file):
    study = load_study(tiny_file, ["search.trials=3"])
    assert study.search.trials == 3
    assert load_study(str(tiny_file), ["search.trials=3"]) == study
    assert load_study(yaml.safe_load(tiny_file.read_text()), ["search.trials=3"]) == study


def test_mistakes_in_the_file_name_its_line(tmp_path):
    text = yaml.safe_dump(TINY, sort_keys=False).replace("learning_rate:", "learning_rte:")
    path = tmp_path / "study.yaml"
    path.write_text(text)
    line = 1 + next(number for number, row in enumerate(text.splitlines()) if "learning_rte" in row)
    with pytest.raises(ToolkitError, match=f"study.yaml:{line}: unknown key"):
        load_study(path)
    with pytest.raises(ToolkitError, match="missing.yaml: no such file"):
        load_study(tmp_path / "missing.yaml")


def test_all_mistakes_are_told_together_each_with_its_own_line(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        """name: many
data: {source: fashion-mnist-10k, codec: pixel-unshuffle-4}
model: {preset: u-dit-toy, set: {channels: 8}}
search:
  space:
    heads: [1, 2]
    attention.tokns: [all]
    attention.factor: [2, 3]
    channels: {int: [9, 8]}
  constraints:
    flops: {max: 1}
  enqueue:
    - {}
    - {heads: 3}
  trials: many
training:
  learning_rte: 1.0e-3
  ema: [0.9, 0.9]
budget:
  max: 200 MFLOPs
  reduction: 2
finish:
  budget: 100 MFLOPs
""",
        encoding="utf-8",
    )
    with pytest.raises(Mistakes) as caught:
        load_study(path)
    lines = sorted(what.removeprefix(f"{path}:") for _, what in caught.value.each)
    for line, words in {
        7: "search: the space varies 'attention.tokns'",
        8: "search: the space gives 'attention.factor' the value 3",
        9: "search.space.channels: the range [9, 8] is empty",
        11: "search: constraint 'flops' is not a cost",
        15: "search.trials: input should be a valid integer",
        17: "unknown key 'training.learning_rte'; did you mean 'learning_rate'?",
        18: "training.ema names a decay twice",
        21: "budget.reduction is now called budget.reduction_factor",
        23: "finish.budget must be above budget.max",
    }.items():
        assert any(told.startswith(f"{line}: {words}") for told in lines), (line, words, lines)
    assert all("\n" not in what for what in lines)


def test_every_enqueued_mistake_is_told_with_its_place(tiny_file):
    wrong = "[{channels: 13}, {}, {attention.similarity: cosin}, {num_classes: 3}, {channels: 64}]"
    with pytest.raises(Mistakes) as caught:
        load_study(tiny_file, [f"search.enqueue={wrong}"])
    at = [at for at, _ in caught.value.each]
    found = [(0, "channels"), (2, "attention.similarity"), (3, "num_classes"), (4,)]
    assert at == [("search", "enqueue", *below) for below in found], caught.value.each
    told = [what for _, what in caught.value.each]
    assert "search: enqueue.0: channels 13 is odd" in told[0]
    assert "enqueue.4 has" in told[3]


def test_a_refused_value_makes_no_mistakes_elsewhere(tiny_file):
    for change in ("training.prediction=flw", "budget.mx=1 TFLOPs", "data.codec=3", "search.trials=x"):
        changes = ["evaluation.samples.sampler=heun", "training.prediction=flow", change]
        with pytest.raises(Mistakes) as caught:
            load_study(tiny_file, changes)
        assert len(caught.value.each) == 1, caught.value.each


def test_costs_are_written_with_units_wherever_they_are_given(tiny_file):
    def limits(text):
        return load_study(tiny_file, [f"search.constraints={text}"]).search.constraints

    assert limits("{gflops: {min: 4.5 MFLOPs, max: 0.01}}") == limits("{gflops: {min: 0.0045, max: 0.01}}")
    for text in ("10 MFLOPs ± 5 %", "10 MFLOPs +- 5%", "0.01 GFLOPs ±5 %", "0.01 ± 5 %"):
        limit = limits(f"{{gflops: {text}}}")["gflops"]
        assert (limit.min, limit.max) == pytest.approx((0.0095, 0.0105))
    assert limits("{params_m: {max: 33 M}, train_gflops: {max: 1 GFLOPs}}") == limits(
        "{params_m: {max: 33}, train_gflops: {max: 1}}"
    )


def test_a_single_tracker_needs_no_list(tiny_file):
    assert [tracker.kind for tracker in load_study(tiny_file, ["tracking=tensorboard"]).tracking] == ["tensorboard"]
    assert load_study(tiny_file, ["tracking={kind: mlflow}"]).tracking == load_study(tiny_file, ["tracking=[mlflow]"]).tracking
    assert load_study(tiny_file, ["tracking=null"]).tracking == ()


def test_changes_reach_keys_that_hold_dots(tiny_file):
    study = load_study(tiny_file, ["search.space.attention.similarity=[dot]", "model.set.feed_forward.ratio=3", "search.trials=9"])
    assert study.search.space["attention.similarity"].choice == ("dot",)
    assert study.base.feed_forward.ratio == 3
    assert study.search.trials == 9


def test_amounts_of_compute_and_rungs(tiny):
    assert tiny.budget.max == 200_000_000
    assert tiny.budget.milestones == (50_000_000, 100_000_000, 200_000_000)


@pytest.mark.parametrize("unit", ["max", "steps", "images"])
def test_a_budget_is_of_one_unit_in_which_its_rungs_are(tiny_file, unit):
    amounts = {"max": ("400 MFLOPs", "800 MFLOPs"), "steps": (40, 80), "images": (160, 320)}
    key = "budget" if unit == "max" else unit
    amount, more = amounts[unit]
    study = load_study(tiny_file, [f"budget={{{unit}: {amount}, rungs: 3}}", f"finish={{{key}: {more}}}"])
    budget, finish = study.budget, study.finish
    assert (budget.key, finish.key, finish.full) == (unit, key, 2 * budget.full)
    assert budget.milestones == (budget.full // 4, budget.full // 2, budget.full)
    with pytest.raises(ToolkitError, match=rf"finish.{key} must be above budget.{unit}: the winner trains on"):
        load_study(tiny_file, [f"budget={{{unit}: {amount}, rungs: 3}}", f"finish={{{key}: {amount}}}"])
    step, size = cost(study.base).step_macs(4), study.training.batch_size
    if unit == "max":
        assert study.milestones_of(study.base) == budget.milestones
        assert study.finish_macs_of(study.base) == 800 * 10**6
        return
    # Every architecture takes as many steps: of 40, 10 to the first rung.
    assert budget.steps_of(cost(study.base), size) == (10, 20, 40)
    assert study.milestones_of(study.base) == (10 * step, 20 * step, 40 * step)
    assert study.finish_macs_of(study.base) == 80 * step


def test_images_are_reached_at_the_first_whole_step(tiny_file):
    study = load_study(tiny_file, ["budget={images: 42, rungs: 2}", "finish=null"])
    assert study.budget.milestones == (21, 42)
    assert study.budget.steps_of(cost(study.base), 4) == (6, 11)
    assert study.budget.steps_of(cost(study.base), 8) == (3, 6), "half the steps of twice the batch"
    with pytest.raises(ToolkitError, match="the first rung, 3 images, is less than one step at batch size 4"):
        load_study(tiny_file, ["budget={images: 30, rungs: 4}", "finish=null"]).check_runs()


def test_the_base_takes_its_input_from_the_data(tiny):
    assert (tiny.base.in_channels, tiny.base.input_size, tiny.base.num_classes) == (16, 8, 10)


def test_a_study_survives_its_json(tiny):
    again = Study.unpacked(tiny.packed())
    assert again.model_dump() == tiny.model_dump()
    assert again.header == tiny.header


def test_what_may_differ_when_a_run_goes_on(tiny_file, tiny):
    free = load_study(tiny_file, ["search.trials=99", "question=Why?", "finish.budget=1 GFLOPs", "resources.cpu=2"])
    assert differences(tiny, free) == []
    other = load_study(tiny_file, ["training.batch_size=8", "search.space.heads=[1]"])
    assert differences(tiny, other) == ["search.space.heads.choice: [1, 2] → [1]", "training.batch_size: 4 → 8"]


@pytest.mark.parametrize(
    ("changes", "classes", "labels"),
    [
        ([], 1000, [0, 125, 250, 375, 500, 625, 750, 875]),
        ([], 10, [0, 1, 2, 3, 5, 6, 7, 8]),
        (["images=80"], 10, list(range(10))),
        (["per_class=2"], 3, [0, 1, 2]),
        (["per_class=100"], 1000, [0]),
    ],
)
def test_a_grid_has_at_most_its_images_of_evenly_chosen_classes(tiny_file, changes, classes, labels):
    settings = load_study(tiny_file, ["evaluation.samples={}", *(f"evaluation.samples.{c}" for c in changes)]).evaluation.samples
    assert settings.classes(classes) == labels


@pytest.mark.parametrize(
    "change",
    [
        *("search.sampler.seed=-1", "search.sampler.seed=4294967296", "search.trials=10000000", "search.replicates=10000000"),
        *("training.seed=4294967296", "training.batch_size=10000000", "training.learning_rate=1e39", "training.weight_decay=1e39"),
        *("training.warmup_steps=10000000000", "training.clip_norm=1e39", "evaluation.samples.guidance=1e39"),
        *("evaluation.fid={seeds: [-1]}", "evaluation.fid={guidance: -1e39}", "resources.cpu=1000000", "resources.gpu=1.5"),
        *("resources.gpu=0.00001", "resources.step_limit_s=1e300", "budget.reduction_factor=10000000", "finish.best=10000000"),
        *("evaluation.val_loss.images=10000000", "evaluation.samples.per_class=10000000", "budget.max=" + "9" * 30),
        *("search.space.heads={int: [1, 2], step: 10000000000000000000}", "search.sampler={kind: nsga2, population: 10000000}"),
    ],
)
def test_numbers_that_no_library_takes_are_refused(tiny_file, change):
    key = change.partition("=")[0].rpartition(".")[2]
    with pytest.raises(StudyError, match=f"{key}|seeds|guidance|step|population"):
        load_study(tiny_file, [change])


def test_a_population_is_of_nsga2(tiny_file):
    load_study(tiny_file, ["search.sampler={kind: nsga2, population: 4}"]).check_runs()
    study = load_study(tiny_file, ["search.sampler={kind: tpe, population: 4}"])
    with pytest.raises(StudyError, match=r"search\.sampler\.population is of nsga2; tpe has none, so remove it"):
        study.check_runs()
