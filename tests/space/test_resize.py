"""Presets in the small, and widths that are solved again."""

import pytest

from space import ToolkitError, cost, match_cost, preset
from space.costs.matching import match_width
from space.presets import PRESETS
from space.resize import Scale, scaled


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith("toy")])
def test_every_preset_can_be_an_eighth_as_wide(name):
    spec, small = PRESETS[name], scaled(PRESETS[name], Scale(channels=1 / 8, depths=1 / 4), 16)
    assert abs(small.channels - spec.channels / 8) <= 4
    assert small.input_size == 16
    assert all(few == max(1, round(many / 4)) for few, many in zip(small.depths, spec.depths, strict=True))
    assert small.heads == max(1, round(spec.heads / 8))
    assert (small.attention, small.feed_forward, small.patch) == (spec.attention, spec.feed_forward, spec.patch)


def test_a_scale_of_one_changes_nothing():
    assert scaled(preset("u-dit-b"), Scale()).digest == preset("u-dit-b").digest


def test_heads_per_stage_are_scaled_one_by_one():
    small = scaled(preset("u-dit-b").replace({"heads": (4, 8, 16, 8, 8)}), Scale(channels=0.5))
    assert small.heads == (2, 4, 8, 4, 4)


def test_what_cannot_be_built_near_is_refused():
    with pytest.raises(ToolkitError, match="no width near 96 channels can be built: input_size 9 is not divisible"):
        scaled(preset("u-dit-s"), Scale(), 9)


@pytest.mark.parametrize("metric", ["gflops", "params_m", "train_gflops"])
def test_a_coarse_grid_of_widths_is_closed_by_the_ratio(metric):
    spec, target = preset("u-dit-t"), getattr(cost(preset("dit-unet")), metric) * 1.07
    alone, match = match_cost(spec, target, "channels", metric), match_width(spec, target, metric)
    assert not alone.within
    assert match.within
    assert getattr(cost(match.spec), metric) == pytest.approx(target, rel=0.01)
    assert match.spec.channels == alone.spec.channels, "the width is solved first"


def test_a_width_that_fits_keeps_the_ratio():
    target = cost(preset("u-dit-t").replace({"channels": 56})).gflops
    match = match_width(preset("u-dit-t"), target)
    assert (match.spec.channels, match.spec.feed_forward.ratio) == (56, 4.0)
