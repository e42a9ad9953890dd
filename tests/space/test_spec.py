import pytest
from pydantic import ValidationError

from space import ModelSpec, ToolkitError, preset

TOY = {"channels": 48, "heads": 2, "depths": (1, 1, 2, 1, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "5 heads do not fit encoder-1 of width 48.*nearest number of heads that fits: 4"),
        ({"channels": 36, "heads": 2}, "divisible by 4 \\(RoPE2D\\); the nearest number of heads that fits: 1"),
        ({"channels": 47}, "channels 47 is odd.*take 48"),
        ({"input_size": 30}, "input_size 30 is not divisible by 8.*nearest that is: 32"),
        ({"input_size": 28}, "input_size 28 is not divisible by 8, which level 3 needs.*nearest that is: 24"),
        ({"depths": (1, 1, 1, 1)}, "depths lists 4 stages.*list 3 or 5"),
        ({"heads": (2, 2)}, "heads lists 2 values, but depths lists 5 stages"),
        ({"feed_forward": {"ratio": 0.01}}, "hidden width of 0.*must be even; take a ratio of 0.0417"),
        ({"attention": {"factor": 3}}, "Input should be 1, 2 or 4"),
        ({"channel": 48}, "Extra inputs"),
        ({"channels": 10**9}, "less than or equal to 65536"),
        ({"heads": 10**9}, "less than or equal to 1000000"),
        ({"feed_forward": {"ratio": 1e308}}, "less than or equal to 1024"),
    ],
)
def test_impossible_specs_name_the_nearest_valid_value(change, message):
    with pytest.raises(ValidationError, match=message):
        ModelSpec(**{**TOY, **change})


def test_the_named_value_is_valid():
    ModelSpec(**{**TOY, "heads": 4})
    ModelSpec(**{**TOY, "input_size": 24})
    ModelSpec(**{**TOY, "input_size": 32})
    ModelSpec(**{**TOY, "feed_forward": {"ratio": 0.0417}})


@pytest.mark.parametrize(
    "shape", [{"channels": 6, "heads": 1}, {"channels": 50, "heads": 1}, {"channels": 34, "depths": (1, 1, 1)}]
)
@pytest.mark.parametrize("ratio", [0.01, 1.51, 0.37, 3.03])
def test_the_named_ratio_suits_every_stage(shape, ratio):
    spec = {"attention": {"position": "none"}, **TOY, **shape}
    try:
        ModelSpec(**{**spec, "feed_forward": {"ratio": ratio}})
    except ValidationError as error:
        near = float(str(error).split("take a ratio of ")[1].split()[0])
        assert ratio < near < ratio + 1
        ModelSpec(**{**spec, "feed_forward": {"ratio": near}})
    else:
        assert all(int(stage.width * ratio) % 2 == 0 for stage in ModelSpec(**spec).stages)


def test_widths_and_resolutions_of_the_stages():
    stages = preset("u-dit-s").stages
    assert [s.name for s in stages] == ["encoder-1", "encoder-2", "bottleneck", "decoder-2", "decoder-1"]
    assert [s.width for s in stages] == [96, 192, 384, 192, 192]
    assert [s.resolution for s in stages] == [32, 16, 8, 16, 32]
    assert [s.layers for s in stages] == [4, 10, 16, 10, 4]


def test_digest_tells_architectures_apart_and_nothing_else():
    full = preset("dit-unet")
    irrelevant = {"attention.factor": 4, "attention.downsampler": "conv", "attention.kernel": 7, "feed_forward.reparam": False}
    same = full.replace(irrelevant)
    listed = full.replace({"heads": (2, 2, 2, 2, 2)})
    assert full.digest == same.digest == listed.digest
    assert full.digest != full.replace({"attention.tokens": "downsampled"}).digest
    assert full.digest != full.replace({"heads.2": 4}).digest
    # A group of one token without a filter is every token.
    single = {"attention.factor": 1, "attention.downsampler": "pixel-shuffle", "attention.tokens": "downsampled"}
    assert full.replace(single).digest == full.digest
    assert full.replace({**single, "attention.downsampler": "dwconv"}).digest != full.digest


def test_per_stage_values_reach_their_stage():
    spec = preset("u-dit-t").replace({"attention.factor.0": 4, "depths.2": 3, "attention.tokens.4": "all"})
    assert [s.factor for s in spec.stages] == [4, 2, 2, 2, None]
    assert spec.stages[2].layers == 6


@pytest.mark.parametrize("path", ["attention.token", "depths.9", "channels.0.1", "heads.x"])
def test_unknown_paths_are_refused(path):
    with pytest.raises(ToolkitError, match=f"no spec has '{path}'"):
        preset("u-dit-t").replace({path: 1})


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ToolkitError, match="did you mean 'u-dit-s'"):
        preset("udit-s")
