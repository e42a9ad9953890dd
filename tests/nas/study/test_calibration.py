import copy

import numpy as np
import pytest

from nas.study.calibration import (
    OWN,
    REFERENCE,
    TrainingProtocol,
    calibration_architectures,
    calibration_study,
    default_protocols,
    own_and,
    parse_protocol,
    protocol_digest,
    recommended,
    reference_study,
    space_digest,
)
from nas.study.load import load_study
from space.errors import StudyError, ToolkitError
from tests.conftest import TINY
from tests.nas.ablations import ablation

OWN_PROTOCOL = TrainingProtocol(OWN)


def test_architectures_are_drawn_once_and_a_larger_number_begins_with_a_smaller(tiny_file):
    study = load_study(tiny_file)
    few, many = calibration_architectures(study, 3), calibration_architectures(study, 5)
    assert many[:3] == few
    assert len({spec.digest for spec in many}) == 5
    assert all(not study.search_space.violations(spec) for spec in many)
    assert few == calibration_architectures(load_study(tiny_file), 3)
    other = calibration_architectures(load_study(tiny_file, ["search.sampler.seed=1"]), 3)
    assert other != few


def test_a_space_gives_what_it_has_enqueued_ones_first(tiny_file):
    study = load_study(tiny_file, ["search.enqueue=[{channels: 16}]", "search.constraints={gflops: {max: 0.02}}"])
    specs = calibration_architectures(study, 50)
    assert specs[0].channels == 16
    assert len(specs) == 1 + 8, "eight points of three toggles"
    one = load_study(tiny_file, ["search.space={heads: [1]}"])
    with pytest.raises(StudyError, match="tiny has 1 architectures to calibrate with"):
        calibration_architectures(one, 6)


def test_the_architectures_of_an_ablation_are_its_rows(tmp_path):
    study = ablation(tmp_path)
    specs = calibration_architectures(study, 3)
    assert [spec.digest for spec in specs] == [row.spec.digest for row in study.rows[:3]]
    made = calibration_study(study, default_protocols(study, specs)[-1], specs, 2)
    assert (made.budget.steps, made.training.batch_size) == (1, 8), "half the steps of twice the batch"


@pytest.mark.parametrize("changes", [[], ["training.prediction=flow"], ["budget.mode=promote", "budget.grace_rungs=1"]])
def test_a_protocol_is_an_ablation_of_the_same_architectures(tiny_file, changes):
    study = load_study(tiny_file, changes)
    specs = calibration_architectures(study, 6)
    for protocol in own_and(default_protocols(study, specs)):
        made = calibration_study(study, protocol, specs, 3)
        assert [row.spec.digest for row in made.rows] == [spec.digest for spec in specs]
        assert made.most_trials == 18
        assert (made.budget.mode, made.finish, made.evaluation.samples) == ("none", None, None)
        assert made.budget.milestones == study.budget.milestones
        changed = made.training != study.training or made.budget.decay != study.budget.decay
        assert changed == bool(protocol.changes)
        assert (protocol_digest(made) == protocol_digest(study)) == (protocol.name == OWN)


def test_architectures_anywhere_in_a_space_are_written_as_changes(tmp_path):
    data = copy.deepcopy(TINY)
    data["model"]["set"] |= {"attention": {"similarity": "cosine"}, "depths.0": 2}
    data["search"]["space"] = {
        "channels": [8, 16],
        "depths": {"each": {"int": [1, 2]}},
        "heads": {"each": {"choice": [1, 2]}},
        "attention.downsampler": ["pixel-shuffle", "dwconv"],
        "feed_forward.ratio": {"float": [1, 3]},
        "feed_forward.kind": ["mlp", "conv"],
        "feed_forward.reparam": {"when": {"feed_forward.kind": "conv"}, "choice": [False, True]},
    }
    data["search"]["constraints"] = {"gflops": {"max": 0.04}}
    data["budget"]["max"] = "1 GFLOPs"
    data["finish"]["budget"] = "2 GFLOPs"
    study = load_study(data)
    specs = calibration_architectures(study, 20)
    made = calibration_study(study, OWN_PROTOCOL, specs, 2)
    assert [row.spec.digest for row in made.rows] == [spec.digest for spec in specs]
    assert calibration_study(study, OWN_PROTOCOL, specs, 2) == made


def test_defaults_turn_round_what_a_study_has(tiny_file):
    study = load_study(tiny_file, ["training.warmup_steps=3", "finish=null", "budget.decay=0.3", "training.ema=0"])
    names = {protocol.name: protocol.changes for protocol in default_protocols(study, calibration_architectures(study, 2))}
    assert names["no warm-up"] == ("training.warmup_steps=0",)
    assert names["no decay"] == ("budget.decay=0",)
    assert names["EMA"] == ("training.ema=0.999",)
    assert names["half the rate"] == ("training.learning_rate=0.0005",)


def test_a_decay_begins_where_the_rungs_allow_it(tiny_file):
    study = load_study(tiny_file, ["budget.mode=none", "budget.even=true", "budget.rungs=5", "budget.max=1 GFLOPs", "finish=null"])
    specs = calibration_architectures(study, 2)
    decay = next(one for one in default_protocols(study, specs) if one.name == "decay")
    assert calibration_study(study, decay, specs, 2).budget.decay == 0.2


def test_a_protocol_is_written_on_a_line():
    assert parse_protocol("warm: training.warmup_steps = 60, training.ema=[0.9, 0.99],budget.max=1 TFLOPs") == TrainingProtocol(
        "warm", ("training.warmup_steps=60", "training.ema=[0.9, 0.99]", "budget.max=1 TFLOPs")
    )
    assert parse_protocol("A b/C!: training.clip_norm=1").folder == "a-b-c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.clip_norm=1", "write NAME: KEY=VALUE"),
        ("name:", "write NAME: KEY=VALUE"),
        ("?!: training.clip_norm=1", "write NAME: KEY=VALUE"),
        ("x: training.seed=1", "'x' changes training.seed; a protocol changes keys of training"),
        ("x: training.prediction.kind=v", "'x' changes training.prediction.kind"),
        ("x: model.preset=u-dit-s", "'x' changes model.preset"),
        ("x: budget.rungs=2", "'x' changes budget.rungs"),
    ],
)
def test_what_is_no_protocol_is_refused(text, message):
    with pytest.raises(StudyError, match=message):
        parse_protocol(text)


@pytest.mark.parametrize("names", [["a", "A!"], ["As given"], ["reference"]])
def test_protocols_share_no_directory(names):
    with pytest.raises(StudyError, match="two protocols are called"):
        own_and(TrainingProtocol(name, ("training.clip_norm=1",)) for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("training.learning_rate=-1", "protocol 'x': training.learning_rate: input should be greater than 0"),
        ("training.learnig_rate=1", "protocol 'x': unknown key 'training.learnig_rate'; did you mean"),
        ("budget.max=1 MFLOPs", "protocol 'x': budget: the first rung, .* is less than one step"),
        ("training.clip_norm={", "protocol 'x': training.clip_norm={: '{' is not a YAML value"),
    ],
)
def test_changes_that_make_no_study_are_refused(tiny, changes, message):
    with pytest.raises(StudyError, match=message):
        calibration_study(tiny, parse_protocol(f"x: {changes}"), calibration_architectures(tiny, 2), 2)


def test_a_search_at_equal_images_is_calibrated_at_as_many(tiny_file):
    study = load_study(tiny_file, ["budget={images: 32, rungs: 3}", "finish=null"])
    specs = calibration_architectures(study, 2)
    made = {one.name: calibration_study(study, one, specs, 2) for one in default_protocols(study, specs)}
    twice = made["twice the batch"]
    assert (twice.budget.images, twice.training.batch_size) == (32, 8)
    assert twice.milestones_of(study.base) == pytest.approx(study.milestones_of(study.base), rel=0.05), "but for folding"
    assert reference_study(study, specs, 1, "64").budget.images == 64
    assert recommended(study, OWN_PROTOCOL, 2)["budget"]["images"] == 16


def test_a_reference_is_longer_and_shares_no_seed(tiny):
    specs = calibration_architectures(tiny, 2)
    made = reference_study(tiny, specs, 2, "1 GFLOPs")
    assert (made.budget.milestones, made.training.seed, made.ablation.seeds.max) == ((10**9,), tiny.training.seed + 1000, 2)
    assert made.name.endswith(REFERENCE.folder)
    with pytest.raises(StudyError, match="--reference 0.2 GFLOPs is not above the study's budget"):
        reference_study(tiny, specs, 1, "0.2 GFLOPs")
    with pytest.raises(StudyError, match="'reference': budget.max: "):
        reference_study(tiny, specs, 1, "soon")


def test_what_is_recommended_makes_a_study(tiny_file, tiny):
    specs = calibration_architectures(tiny, 2)
    for protocol in own_and(default_protocols(tiny, specs)):
        for rung in (1, 2, 3):
            found = recommended(tiny, protocol, rung)
            made = load_study({**copy.deepcopy(TINY), **found})
            trained = calibration_study(tiny, protocol, specs, 2)
            assert protocol_digest(made) == protocol_digest(trained, rung)
            assert made.budget.milestones == trained.budget.milestones[:rung]
    assert recommended(tiny, OWN_PROTOCOL, 3) == {"training": {"batch_size": 4, "learning_rate": 1e-3}}
    promoted = load_study(tiny_file, ["budget.mode=promote", "budget.grace_rungs=1"])
    assert recommended(promoted, OWN_PROTOCOL, 2)["budget"] == {"max": 100_000_000, "rungs": 2, "mode": "promote"}


def test_a_digest_is_of_what_changes_a_score(tiny_file):
    digest = protocol_digest(load_study(tiny_file))
    assert digest == "4570533ad104", "calibrations of earlier versions are still found"
    steps, images = (load_study(tiny_file, [f"budget={{{unit}: 8, rungs: 2}}", "finish=null"]) for unit in ("steps", "images"))
    assert len({digest, protocol_digest(steps), protocol_digest(images)}) == 3
    same = ["training.seed=5", "search.trials=8", "search.sampler.seed=3", "budget.rungs=2", "budget.mode=none", "resources.cpu=2"]
    for change in same:
        assert protocol_digest(load_study(tiny_file, [change])) == digest, change
    for change in ("training.clip_norm=1", "budget.max=250 MFLOPs", "evaluation.val_loss.images=32", "data.held_out=0.2"):
        assert protocol_digest(load_study(tiny_file, [change])) != digest, change
    assert protocol_digest(load_study(tiny_file, ["budget.max=100 MFLOPs", "budget.rungs=2"])) == protocol_digest(
        load_study(tiny_file), 2
    ), "a rung is the budget of a shorter study"


def test_a_space_has_a_digest_too(tiny_file):
    space = space_digest(load_study(tiny_file))
    assert space_digest(load_study(tiny_file, ["search.trials=8", "training.clip_norm=1"])) == space
    assert space_digest(load_study(tiny_file, ["search.space={heads: [1, 2]}"])) != space
    assert space_digest(load_study(tiny_file, ["model.set.channels=16"])) != space


def test_errors_name_no_option_that_was_not_given(tiny):
    with pytest.raises(ToolkitError) as caught:
        calibration_study(tiny, TrainingProtocol("x", ("training.clip_norm.a.b=1",)), calibration_architectures(tiny, 2), 2)
    assert "--set" not in str(caught.value)
    assert np.all([part not in str(caught.value) for part in ("Traceback", "\n")])
