"""Random specs of everything that can be built, for property tests."""

from typing import get_args

from hypothesis import strategies as st

from space import ModelSpec
from space.choices.attention import Similarity, Tokens
from space.choices.downsampler import Downsampler
from space.choices.feed_forward import FeedForwardKind
from space.choices.position import Position
from space.stage import Factor

KINDS = {
    "tokens": get_args(Tokens),
    "factor": get_args(Factor),
    "downsampler": get_args(Downsampler),
    "similarity": get_args(Similarity),
    "position": get_args(Position),
}


@st.composite
def specs(draw) -> ModelSpec:
    """Specs of one to four levels, small enough to build and run."""
    levels = draw(st.integers(1, 4))
    stages = 2 * levels - 1

    def per_stage(values):
        one = st.sampled_from(values)
        return draw(one | st.tuples(*[one] * stages))

    heads = per_stage([1, 2, 3])
    widest = max(heads) if isinstance(heads, tuple) else heads
    # Heads of every stage divide the width, into parts divisible by 4 for RoPE2D.
    channels = 24 if widest > 2 else draw(st.sampled_from([8, 16]))
    patch = draw(st.sampled_from([1, 2, 4]))
    attention = {name: per_stage(values) for name, values in KINDS.items()}
    factors = attention["factor"]
    factor = max(factors) if isinstance(factors, tuple) else factors
    return ModelSpec.model_validate(
        {
            "channels": channels,
            "depths": [draw(st.integers(1, 2 if levels < 3 else 1)) for _ in range(stages)],
            "heads": heads,
            "block_layers": draw(st.integers(1, 2)) if levels < 3 else 1,
            "attention": {**attention, "kernel": draw(st.sampled_from([1, 3, 5, 7]))},
            "feed_forward": {
                "kind": per_stage(get_args(FeedForwardKind)),
                "ratio": draw(st.sampled_from([0.5, 1.0, 2.0, 3.5])),
                "reparam": draw(st.booleans()),
                "branches": draw(st.booleans()),
            },
            "modulation": draw(st.sampled_from(["layer", "level"])),
            "skip": draw(st.sampled_from(["concat", "add"])),
            "patch": patch,
            "stem": draw(st.sampled_from(["conv", "linear"])),
            "absolute_position": draw(st.sampled_from(["none", "sincos"])),
            "input_size": patch * factor * 2 ** (levels - 1) * (draw(st.integers(1, 2)) if levels < 3 else 1),
            "in_channels": draw(st.integers(1, 4)),
            "num_classes": draw(st.integers(1, 5)),
            "null_class": draw(st.booleans()),
            "learned_variance": draw(st.booleans()),
        }
    )
