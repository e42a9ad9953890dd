"""Conversion between the authors' constructor arguments and specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from space.document import parse
from space.errors import SpecError, ToolkitError
from space.frozen import Frozen
from space.spec import ModelSpec
from space.stage import Count, Factor, PerStage

_NOT_ARGUMENTS = {"params"}
"""Keys that are beside the arguments in files that record them: the parameter count."""


class _Common(Frozen):
    """The arguments of both constructors, with their defaults."""

    input_size: Count = 32
    in_channels: Count = 4
    hidden_size: Count = 1152
    num_heads: Count = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4
    class_dropout_prob: Annotated[float, Field(ge=0, le=1)] = 0.1
    num_classes: Count = 1000
    learn_sigma: bool = True

    def shared(self) -> dict[str, Any]:
        """The fields of a spec that both kinds of model have."""
        return {
            "channels": self.hidden_size,
            "heads": self.num_heads,
            "input_size": self.input_size,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "null_class": self.class_dropout_prob > 0,
            "learned_variance": self.learn_sigma,
        }


class _DiT(_Common):
    depth: Count = 28
    patch_size: Literal[1, 2, 4, 8] = 2

    def spec(self) -> dict[str, Any]:
        return {
            **self.shared(),
            "depths": [self.depth],
            "block_layers": 1,
            "attention": {"tokens": "all", "similarity": "dot", "position": "none"},
            "feed_forward": {"kind": "mlp", "ratio": self.mlp_ratio},
            "patch": self.patch_size,
            "stem": "linear",
            "absolute_position": "sincos",
        }


def _five(depth: tuple[int, ...]) -> tuple[int, ...]:
    if len(depth) != 5:
        raise ValueError(f"the authors' U-DiT has five stages, not {len(depth)}")
    return depth


class _UDiT(_Common):
    depth: Annotated[tuple[Count, ...], AfterValidator(_five)] = (2, 5, 8, 5, 2)
    down_factor: PerStage[Factor] = 2
    rep: bool = True
    ffn_type: Literal["rep", "basic"] = "rep"
    attn_type: Literal["v2"] | None = None
    posemb_type: Literal["rope2d"] | None = None
    # The constructor has no default; this is the paper's choice.
    downsampler: Literal["dwconv1", "dwconv3", "dwconv5", "dwconv7"] = "dwconv5"
    down_shortcut: bool = False

    def spec(self) -> dict[str, Any]:
        return {
            **self.shared(),
            "depths": self.depth,
            "attention": {
                "factor": self.down_factor,
                "downsampler": "dwconv-shortcut" if self.down_shortcut else "dwconv",
                "kernel": int(self.downsampler.removeprefix("dwconv")),
                "similarity": "cosine" if self.attn_type == "v2" else "dot",
                "position": self.posemb_type or "none",
            },
            "feed_forward": {
                "kind": "conv" if self.ffn_type == "rep" else "mlp",
                "ratio": self.mlp_ratio,
                "reparam": self.rep,
            },
        }


def spec_from_kwargs(kwargs: Mapping[str, Any]) -> ModelSpec:
    """The spec of the model that the authors' constructor makes from arguments.

    A whole number as `depth` means a DiT. Missing arguments have the constructor's defaults.

    Raises:
        SpecError: For an argument or value that the constructor does not know, or that cannot be built here.
    """
    given = {name: value for name, value in kwargs.items() if name not in _NOT_ARGUMENTS}
    isotropic = isinstance(given.get("depth"), int) or "patch_size" in given
    arguments: type[_DiT] | type[_UDiT] = _DiT if isotropic else _UDiT
    try:
        return parse(ModelSpec, parse(arguments, given).spec())
    except ToolkitError as error:
        raise SpecError(f"the authors' arguments: {error}") from None


def kwargs_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """The arguments with which the authors' constructor makes the spec's model; raises SpecError when there are none."""
    first = spec.stages[0]
    kwargs: dict[str, Any] = {
        "hidden_size": spec.channels,
        "num_heads": first.heads,
        "input_size": spec.input_size,
        "in_channels": spec.in_channels,
        "num_classes": spec.num_classes,
        "class_dropout_prob": 0.1 if spec.null_class else 0.0,
        "learn_sigma": spec.learned_variance,
        "mlp_ratio": spec.feed_forward.ratio,
    }
    if spec.levels == 1:
        kwargs |= {"depth": first.layers, "patch_size": spec.patch}
    else:
        factors = [stage.factor or 1 for stage in spec.stages]
        kwargs |= {
            "depth": list(spec.depths),
            "down_factor": factors[0] if len(set(factors)) == 1 else factors,
            "rep": int(first.reparam),
            "ffn_type": "rep" if first.feed_forward == "conv" else "basic",
            "attn_type": "v2" if first.similarity == "cosine" else None,
            "posemb_type": None if first.position == "none" else first.position,
            "downsampler": f"dwconv{first.kernel}",
            "down_shortcut": int(first.downsampler == "dwconv-shortcut"),
        }
    try:
        # Applying branches one by one changes no parameter.
        same = spec_from_kwargs(kwargs).digest == spec.replace({"feed_forward.branches": False}).digest
    except SpecError:
        same = False
    if not same:
        raise SpecError(
            "the authors' code cannot build this architecture: it knows DiT, and U-DiT of three levels with depthwise downsamplers "
            "and equal choices in every stage"
        )
    return kwargs
