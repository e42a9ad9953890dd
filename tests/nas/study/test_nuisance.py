"""Training settings in a search space: which are taken, what they are of, and what they leave alone."""

import pytest

from nas.search.resume import differences
from nas.study.calibration import calibration_architectures, protocol_digest, space_digest
from nas.study.load import load_study
from nas.study.nuisance import Candidate, candidate_key, in_words
from nas.study.study import Study
from space import ToolkitError, cost
from space.errors import Mistakes

RATE = "training.learning_rate"
BATCH = "training.batch_size"
RATES = f"search.space.{RATE}={{float: [1e-4, 1e-2], log: true}}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "search.space.training.warmup_steps=[0, 10]",
            "search: training.warmup_steps cannot be tuned; of training, these can: training.learning_rate, "
            "training.weight_decay, training.ema, training.batch_size",
        ),
        ("search.space.training.seed={int: [0, 3]}", "training.seed cannot be tuned"),
        (f"search.space.{RATE}={{float: [-1, 1]}}", f"{RATE} cannot be -1.0: input should be greater than 0"),
        (f"search.space.{RATE}=[fast]", f"{RATE} cannot be 'fast': "),
        (f"search.space.{RATE}=[true]", f"{RATE} is one number where it is tuned, not True"),
        (f"search.space.{RATE}=[1e-3, 0.001]", f"of '{RATE}' holds a value twice"),
        (f"search.space.{RATE}={{each: [1e-3]}}", f"'{RATE}' has one value for all stages, so 'each' does not apply"),
        ("search.space.training.ema=[[0.9, 0.99]]", "training.ema is one number where it is tuned"),
        ("search.space.training.ema={float: [0.9, 1]}", "training.ema cannot be 1.0: input should be less than 1"),
        (f"search.space.{BATCH}={{float: [4, 8]}}", f"'{BATCH}' is a whole number; write int or choice"),
        (f"search.space.{BATCH}={{int: [0, 8]}}", f"{BATCH} cannot be 0: input should be greater than"),
        (f"search.space.{RATE}={{when: {{haeds: 1}}, choice: [1e-3]}}", f"'{RATE}' depends on 'haeds', which no spec has"),
        (f"search.space.heads={{when: {{{RATE}: 1}}, choice: [1]}}", f"'heads' depends on '{RATE}', which no spec has"),
        (f"search.enqueue=[{{{RATE}: 0}}]", f"search: enqueue.0: {RATE} cannot be 0"),
        ("search.enqueue=[{training.clip_norm: 1}]", "search: enqueue.0: training.clip_norm cannot be tuned"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tiny_file, change, message):
    with pytest.raises(ToolkitError) as caught:
        load_study(tiny_file, [change])
    assert message in str(caught.value)
    assert len(caught.value.each) == 1


def test_all_mistakes_of_a_space_are_told_with_their_places(tiny_file):
    changes = [f"search.space.{BATCH}=[0]", "search.space.chanels=[8]", f"search.enqueue=[{{}}, {{{RATE}: -1}}]"]
    with pytest.raises(Mistakes) as caught:
        load_study(tiny_file, changes)
    at = sorted((at for at, _ in caught.value.each), key=str)
    assert at == [("search", "enqueue", 1, RATE), ("search", "space", "chanels"), ("search", "space", BATCH)]


def test_numbers_that_yaml_takes_for_text_are_numbers(tiny_file):
    """YAML reads 1e-3 as text, in a choice too."""
    study = load_study(tiny_file, [f"search.space.{RATE}=[1e-3, 3e-3]", RATES.replace(RATE, "training.weight_decay")])
    assert study.nuisance[RATE].choice == (0.001, 0.003)
    assert study.nuisance["training.weight_decay"].float_ == (1e-4, 1e-2)
    assert {type(value) for value in study.search_space.parameters[-2].domain.choice} == {float}


def test_a_trial_has_the_study_s_settings_but_for_its_own(tiny_file):
    study = load_study(tiny_file, [RATES, f"search.space.{BATCH}=[4, 8]"])
    heads = {"heads": 1, "attention.similarity": "dot", "feed_forward.kind": "mlp"}
    changed = study.candidate({**heads, RATE: 0.002, BATCH: 8})
    assert changed.training == {RATE: 0.002, BATCH: 8}
    assert study.training_of(changed) == study.training.model_copy(update={"learning_rate": 0.002, "batch_size": 8})
    assert study.tuned_of(changed) == changed.training
    assert in_words(study.tuned_of(changed)) == "learning_rate 0.002, batch_size 8"
    # What equals the study's is no setting of its own, so the candidate is the same as one that leaves it out.
    plain = study.candidate({**heads, RATE: 0.001, BATCH: 4})
    assert (plain.training, plain.key) == ({}, plain.spec.digest)
    assert study.tuned_of(plain) == {RATE: 0.001, BATCH: 4}
    assert plain.spec == changed.spec
    assert plain.key != changed.key == candidate_key(changed.spec.digest, {BATCH: 8, RATE: 0.002})
    assert Study.unpacked(study.packed()) == study


def test_averages_of_the_weights_are_compared_as_they_are_kept(tiny_file):
    study = load_study(tiny_file, ["training.ema=[0.99, 0.9]", "search.space.training.ema=[0.99, 0.999]"])
    one = Candidate(study.base, {"training.ema": 0.99})
    assert study.training_of(one).ema == (0.99,)
    assert study.candidate({"training.ema": 0.99}).training == {"training.ema": 0.99}, "the study keeps two"
    assert study.tuned_of(Candidate(study.base, {})) == {"training.ema": [0.99, 0.9]}


def test_costs_and_feasibility_are_those_of_the_architectures(tiny_file):
    without = load_study(tiny_file)
    tuned = load_study(tiny_file, [RATES, f"search.space.{BATCH}=[2, 4]", "search.space.training.ema={float: [0.9, 0.99]}"])
    assert tuned.census == without.census
    assert tuned.varied == without.varied
    assert [parameter.name for parameter in tuned.search_space.parameters[-3:]] == [RATE, BATCH, "training.ema"]


def test_the_largest_batch_must_fit_the_first_rung(tiny_file):
    study = load_study(tiny_file, [f"search.space.{BATCH}={{int: [4, 8]}}", f"search.enqueue=[{{{BATCH}: 2}}]"])
    assert study.batch_sizes == (2, 8)
    study.check_runs()
    step = cost(study.census.dearest).step_macs(64)
    large = load_study(tiny_file, [f"search.space.{BATCH}=[4, 64]", f"budget.max={step // 10**6 * 4 - 4} MFLOPs", "finish=null"])
    with pytest.raises(ToolkitError, match=r"is less than one step of the dearest architecture \(.* at batch size 64\)"):
        large.check_runs()


def test_a_space_may_tune_settings_alone(tiny_file):
    study = load_study(tiny_file, [f"search.space={{{RATE}: [1e-3, 3e-3]}}"])
    study.check_runs()
    assert study.census.share == 1
    assert study.candidate({RATE: 0.003}) == Candidate(study.base, {RATE: 0.003})


def test_a_calibration_is_of_the_architectures_at_the_study_s_settings(tiny_file):
    without, tuned = load_study(tiny_file), load_study(tiny_file, [RATES, f"search.enqueue=[{{{RATE}: 0.5}}, {{}}]"])
    assert space_digest(tuned) == space_digest(without)
    specs = calibration_architectures(tuned, 4)
    assert specs[0] == tuned.base
    assert len({spec.digest for spec in specs}) == 4
    assert {spec.digest for spec in specs[1:]} <= {spec.digest for spec in calibration_architectures(without, 8)}


def test_a_protocol_is_known_by_its_width_rule_and_by_no_rule_as_before_there_was_one(tiny_file):
    assert protocol_digest(load_study(tiny_file)) == "4570533ad104"
    changes = ["training.width_rule=inverse"], ["training.width_rule=inverse", "model.set.channels=16"]
    assert len({protocol_digest(load_study(tiny_file, change)) for change in ([], *changes)}) == 3


def test_a_space_that_tunes_otherwise_is_another_study(tiny_file):
    before, after = load_study(tiny_file), load_study(tiny_file, [RATES])
    assert differences(before, after)
    assert not differences(after, load_study(tiny_file, [RATES, f"search.enqueue=[{{{RATE}: 0.5}}]"]))
