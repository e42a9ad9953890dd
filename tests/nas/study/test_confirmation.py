"""The ablation by which a search is confirmed."""

import copy

import pytest

from nas.execution.preflight import check_confirmation
from nas.study.confirmation import confirmation_study
from nas.study.load import load_study
from space import ToolkitError, cost
from tests.conftest import TINY


def with_confirm(confirm=None, **changes):
    return load_study(copy.deepcopy(TINY) | {"confirm": confirm or {}} | changes)


def narrower(study):
    return study.base.replace({"feed_forward.ratio": 1})


def test_candidates_are_compared_with_the_model_on_fresh_seeds_and_images():
    study = with_confirm({"seeds": {"min": 3, "max": 9}})
    made = confirmation_study(study, {"trial 4": narrower(study)})
    assert [(row.variant, row.spec.digest) for row in made.rows] == [
        ("u-dit-toy", study.base.digest),
        ("trial 4", narrower(study).digest),
    ]
    assert made.rows[1].baseline == "u-dit-toy"
    assert made.training == study.training.model_copy(update={"seed": study.training.seed + 2000})
    assert (made.evaluation.val_loss.images, made.evaluation.val_loss.skip) == (16, 16)
    assert (made.budget.full, made.budget.mode) == (study.budget.full, "none")
    assert (made.ablation.seeds.min, made.ablation.seeds.max) == (3, 9)
    assert made.finish is None
    assert made.confirm is None


def test_the_baseline_is_widened_where_a_candidate_costs_more():
    study = with_confirm(budget={"max": "400 MFLOPs"}, finish=None)
    wider = study.base.replace({"channels": 16})
    made = confirmation_study(study, {"trial 1": narrower(study), "trial 2": wider})
    baseline = made.rows[0].spec
    assert cost(baseline).gflops == pytest.approx(cost(wider).gflops, rel=0.01)
    assert made.rows[0].variant == f"u-dit-toy at {cost(baseline).gflops:.4g} GFLOPs"
    assert baseline.attention == study.base.attention


def test_another_baseline_may_be_of_another_kind():
    study = with_confirm({"against": {"preset": "dit-s/2", "set": {"patch": 1, "channels": 24, "heads": 2, "depths": [3]}}})
    made = confirmation_study(study, {"trial 1": study.base})
    assert made.rows[0].variant.startswith("dit-s/2, changed")
    assert len(made.rows[0].spec.stages) == 1
    assert made.rows[1].spec.digest == study.base.digest


def test_a_larger_budget_is_taken_and_a_smaller_one_refused():
    study = with_confirm({"budget": "400 MFLOPs"})
    assert confirmation_study(study, {"trial 1": narrower(study)}).budget.milestones == (100_000_000, 200_000_000, 400_000_000)
    study = with_confirm({"budget": "150 MFLOPs"})
    with pytest.raises(ToolkitError, match="confirm.budget 150 MFLOPs is below the search's"):
        confirmation_study(study, {"trial 1": narrower(study)})


@pytest.mark.parametrize(
    ("confirm", "changes", "told"),
    [
        ({"best": 5}, {}, "confirm.best is 5, but the search has 4 architectures; lower it"),
        ({"seeds": 1}, {}, "one seed has no interval, so it confirms nothing; take at least 2"),
        ({"against": {"preset": "u-dit-x"}}, {}, "confirm.against: .*u-dit-x"),
        ({"best": 1}, {"search": TINY["search"] | {"trials": 2001, "replicates": 2001}}, "overlap the fresh seeds of confirm"),
        ({}, {"search": None, "finish": None, "ablation": {"variants": [{"name": "a"}]}}, "confirm trains the best of a search"),
    ],
)
def test_what_cannot_be_confirmed_is_refused_before_anything_is_trained(confirm, changes, told):
    with pytest.raises(ToolkitError, match=told):
        with_confirm(confirm, **changes)


def test_the_data_must_hold_out_images_for_the_confirmation_too():
    study = with_confirm(evaluation={"val_loss": {"images": 600}})
    with pytest.raises(ToolkitError, match="confirm takes images that no trial of the search is judged by: .* after the first 600"):
        check_confirmation(study)
    check_confirmation(with_confirm())


def test_explain_may_be_a_switch_or_a_section():
    switched, section, off = (with_confirm(explain=given).explain for given in (True, {}, False))
    assert switched == section
    assert switched.most == 8
    assert off is None


def test_a_candidate_that_is_the_baseline_is_nothing_to_confirm():
    study = with_confirm()
    with pytest.raises(ToolkitError, match="no candidate differs from u-dit-toy"):
        confirmation_study(study, {"trial 1": study.base})
