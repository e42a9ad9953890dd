"""Named specs: the papers' models and the toy family of their ablations."""

from __future__ import annotations

from typing import Any

from space.document import nearest
from space.errors import SpecError
from space.spec import ModelSpec

_PLAIN = {"attention.similarity": "dot", "attention.position": "none", "feed_forward.kind": "mlp"}
"""Vanilla: downsampled tokens, and no other modification of the component table."""

_DIT: dict[str, tuple[int, int, int]] = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
"""Blocks, width and heads of DiT's Table 1."""

_PAPER: dict[str, tuple[int, int]] = {"s": (96, 4), "b": (192, 8), "l": (384, 16)}
"""Channels and heads of Table 8."""


def _paper(size: str) -> ModelSpec:
    channels, heads = _PAPER[size]
    return ModelSpec(channels=channels, heads=heads, depths=(2, 5, 8, 5, 2))


def _toy(**changes: Any) -> ModelSpec:
    # The paper does not print the size of its toy models; this one reproduces six of their printed GFLOPs.
    base = ModelSpec(channels=48, heads=2, depths=(1, 1, 2, 1, 1))
    return base.replace({"feed_forward.ratio": 4.0, **changes})


def _dit(size: str, patch: int) -> ModelSpec:
    blocks, width, heads = _DIT[size]
    return ModelSpec.model_validate(
        {
            "channels": width,
            "depths": [blocks],
            "heads": heads,
            "block_layers": 1,
            "attention": {"tokens": "all", "similarity": "dot", "position": "none"},
            "feed_forward": {"kind": "mlp", "ratio": 4},
            "patch": patch,
            "stem": "linear",
            "absolute_position": "sincos",
        }
    )


def _all() -> dict[str, ModelSpec]:
    presets: dict[str, ModelSpec] = {}
    for size in _PAPER:
        presets[f"u-dit-{size}"] = _paper(size)
        presets[f"u-dit-{size}-vanilla"] = _paper(size).replace(_PLAIN)
    for size in _DIT:
        presets |= {f"dit-{size}/{patch}": _dit(size, patch) for patch in (2, 4, 8)}
    # Table 9, each row adding to the one before; Table 1 adds key-value downsampling.
    all_tokens = {**_PLAIN, "attention.tokens": "all"}
    presets["dit-unet-slim"] = _toy(channels=36, **all_tokens)
    presets["dit-unet"] = _toy(**all_tokens)
    presets["dit-unet+kv-downsampling"] = _toy(**{**_PLAIN, "attention.tokens": "key-value"})
    presets["u-dit-t"] = _toy(**_PLAIN)
    presets["u-dit-t+cosine"] = _toy(**{**_PLAIN, "attention.similarity": "cosine"})
    presets["u-dit-t+rope2d"] = _toy(**{"feed_forward.kind": "mlp"})
    presets["u-dit-t+dwconv-ffn"] = _toy(**{"feed_forward.reparam": False})
    presets["u-dit-t+reparam"] = _toy()
    # Table 7: the filter before the pixel-unshuffle; the paper's choice, a depthwise convolution beside a shortcut, is u-dit-t.
    for downsampler in ("pixel-shuffle", "dwconv", "conv"):
        presets[f"u-dit-t-{downsampler}"] = _toy(**{**_PLAIN, "attention.downsampler": downsampler})
    # A small U-DiT with every modification, for laptops and tests: 16×16 inputs, ten classes.
    presets["u-dit-toy"] = _toy(channels=16, input_size=16, num_classes=10)
    return presets


PRESETS: dict[str, ModelSpec] = _all()


def preset(name: str) -> ModelSpec:
    """The spec of a preset; raises SpecError, naming the nearest, when there is none of that name."""
    try:
        return PRESETS[name]
    except KeyError:
        raise SpecError(f"no preset '{name}'{nearest(name, list(PRESETS))}") from None
