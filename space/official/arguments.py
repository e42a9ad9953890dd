"""The authors' constructor arguments as a spec, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from space.document import nearest, parse
from space.errors import NasError, SpecError
from space.paths import changed
from space.spec import ModelSpec

_COMMON = {
    "input_size": 32,
    "in_channels": 4,
    "hidden_size": 1152,
    "num_heads": 16,
    "mlp_ratio": 4,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
}
_UDIT = {
    **_COMMON,
    "depth": [2, 5, 8, 5, 2],
    "down_factor": 2,
    "rep": 1,
    "ffn_type": "rep",
    "attn_type": None,
    "posemb_type": None,
    "downsampler": "dwconv5",
    "down_shortcut": False,
}
_DIT = {**_COMMON, "depth": 28, "patch_size": 2}
"""The arguments of both constructors and their defaults; U-DiT's downsampler has none, the paper's stands in."""

_NOT_ARGUMENTS = {"params"}
"""A parameter count that stands beside the arguments in files that record them."""

_TAKES: dict[str, list[str | None]] = {"ffn_type": ["rep", "basic"], "attn_type": [None, "v2"], "posemb_type": [None, "rope2d"]}


def spec_from_kwargs(kwargs: Mapping[str, Any]) -> ModelSpec:
    """The spec of the model that the authors' constructor makes of `kwargs`; a whole number as `depth` means a DiT.

    Missing arguments have the constructor's defaults. Raises SpecError for an argument or a value that the constructor does not
    know, or that this project cannot build.
    """
    known = _DIT if isinstance(kwargs.get("depth"), int) or "patch_size" in kwargs else _UDIT
    for name in kwargs:
        if name not in known and name not in _NOT_ARGUMENTS:
            raise SpecError(f"the authors' constructor has no argument '{name}'{nearest(name, list(known))}")
    given = {**known, **kwargs}
    for name, values in _TAKES.items():
        if name in given and given[name] not in values:
            known_values = " and ".join(repr(value) for value in values)
            raise SpecError(f"argument {name} is {given[name]!r}; the authors' code knows {known_values}")
    try:
        return parse(ModelSpec, _shared(given) | (_isotropic(given) if known is _DIT else _u_shaped(given)))
    except NasError as error:
        raise SpecError(str(error)) from None


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "channels": given["hidden_size"],
        "heads": given["num_heads"],
        "input_size": given["input_size"],
        "in_channels": given["in_channels"],
        "num_classes": given["num_classes"],
        "null_class": given["class_dropout_prob"] > 0,
        "learned_variance": bool(given["learn_sigma"]),
    }


def _isotropic(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "depths": [given["depth"]],
        "block_layers": 1,
        "attention": {"tokens": "all", "similarity": "dot", "position": "none"},
        "feed_forward": {"kind": "mlp", "ratio": given["mlp_ratio"]},
        "patch": given["patch_size"],
        "ends": "linear",
        "absolute_position": "sincos",
    }


def _u_shaped(given: Mapping[str, Any]) -> dict[str, Any]:
    downsampler = re.fullmatch(r"dwconv(\d)", str(given["downsampler"]))
    if not downsampler:
        raise SpecError(f"argument downsampler is {given['downsampler']!r}; the authors' code knows 'dwconv' and a kernel's width")
    depth = list(given["depth"])
    if len(depth) != 5:
        raise SpecError(f"argument depth lists {len(depth)} stages; the authors' U-DiT has five")
    return {
        "depths": depth,
        "attention": {
            "factor": given["down_factor"],
            "downsampler": "dwconv-shortcut" if given["down_shortcut"] else "dwconv",
            "kernel": int(downsampler[1]),
            "similarity": "cosine" if given["attn_type"] == "v2" else "dot",
            "position": given["posemb_type"] or "none",
        },
        "feed_forward": {
            "kind": "conv" if given["ffn_type"] == "rep" else "mlp",
            "ratio": given["mlp_ratio"],
            "reparam": bool(given["rep"]),
        },
    }


def kwargs_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """The arguments with which the authors' constructor makes the spec's model; raises SpecError when there are none."""
    kwargs: dict[str, Any] = {
        "hidden_size": spec.channels,
        "num_heads": spec.heads if isinstance(spec.heads, int) else spec.heads[0],
        "input_size": spec.input_size,
        "in_channels": spec.in_channels,
        "num_classes": spec.num_classes,
        "class_dropout_prob": 0.1 if spec.null_class else 0.0,
        "learn_sigma": spec.learned_variance,
        "mlp_ratio": spec.feed_forward.ratio,
    }
    first = spec.stages[0]
    if spec.levels == 1:
        kwargs |= {"depth": first.layers, "patch_size": spec.patch}
    else:
        kwargs |= {
            "depth": list(spec.depths),
            "down_factor": [stage.factor or 1 for stage in spec.stages],
            "rep": int(first.reparam),
            "ffn_type": "rep" if first.feed_forward == "conv" else "basic",
            "attn_type": "v2" if first.similarity == "cosine" else None,
            "posemb_type": None if first.position == "none" else first.position,
            "downsampler": f"dwconv{first.kernel}",
            "down_shortcut": int(first.downsampler == "dwconv-shortcut"),
        }
        if len(set(kwargs["down_factor"])) == 1:
            kwargs["down_factor"] = kwargs["down_factor"][0]
    try:
        # How branches are applied changes no parameter.
        same = spec_from_kwargs(kwargs).digest == changed(spec, {"feed_forward.branches": False}).digest
    except SpecError:
        same = False
    if not same:
        raise SpecError(
            "the authors' code cannot build this architecture: it knows DiT, and U-DiT of three levels with depthwise downsamplers "
            "and equal choices in every stage"
        )
    return kwargs
