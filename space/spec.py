"""The spec: plain data that describes one U-DiT, and the stages it resolves to.

The architecture is that of Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers" (NeurIPS 2024,
arXiv 2405.02730), with every choice of its ablations (Tables 1, 7 and 9) as a field.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from space.errors import SpecError

T = TypeVar("T")
PerStage: TypeAlias = T | tuple[T, ...]
"""One value for every stage, or one value a stage in the order of `ModelSpec.depths`."""

Tokens = Literal["all", "downsampled", "key-value"]
Downsampler = Literal["pixel-shuffle", "dwconv", "dwconv-shortcut", "conv"]
Similarity = Literal["dot", "cosine"]
Position = Literal["none", "rope2d"]
FeedForwardKind = Literal["mlp", "conv"]
Factor = Literal[1, 2, 4]
Kernel = Literal[1, 3, 5, 7]
Count = Annotated[int, Field(ge=1)]

TIME_SINUSOIDS = 256
"""Width of the timestep's sinusoidal embedding, in every model of both papers."""

LAYERS_A_BLOCK = 2
"""The paper's depths count blocks; each block of the authors' code holds two layers."""


class Frozen(BaseModel):
    """A model that is never changed and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class AttentionSpec(Frozen):
    """How the tokens of a stage attend to each other.

    `factor`, `downsampler` and `kernel` say how tokens are downsampled; they mean nothing, and do not tell two specs apart,
    where `tokens` is `all`. `kernel` is the width of the downsampler's convolution.
    """

    tokens: PerStage[Tokens] = "downsampled"
    factor: PerStage[Factor] = 2
    downsampler: PerStage[Downsampler] = "dwconv-shortcut"
    kernel: Kernel = 5
    similarity: Similarity = "cosine"
    position: Position = "rope2d"


class FeedForwardSpec(Frozen):
    """The feed-forward of a layer: `mlp`, or `conv` with a depthwise 5×5 between the projections.

    `ratio` is hidden width over width. `reparam` trains `conv` with extra linear branches that fold away; it means nothing
    for `mlp`.
    """

    kind: PerStage[FeedForwardKind] = "conv"
    ratio: Annotated[float, Field(gt=0)] = 2.0
    reparam: bool = True


@dataclass(frozen=True)
class Stage:
    """One stage of the U with every choice resolved: what a model is built from and a cost is counted on.

    Choices that have no effect hold None, so equal architectures give equal stages.
    """

    name: str
    level: int
    resolution: int
    """Height and width of the stage's feature map."""
    width: int
    condition: int
    """The level whose condition embedding modulates the stage; its width is the stage's width."""
    layers: int
    heads: int
    tokens: Tokens
    factor: int | None
    downsampler: Downsampler | None
    kernel: int | None
    similarity: Similarity
    position: Position
    feed_forward: FeedForwardKind
    hidden: int
    reparam: bool


class ModelSpec(Frozen):
    """One U-DiT: two specs that build the same network have the same digest.

    `depths` lists blocks per stage (encoder from the outside in, bottleneck, decoder from the inside out), so five numbers
    are two down-levels and a bottleneck. Widths are C, 2C, 4C, 2C, 2C: the outermost decoder stage keeps the width of the level
    below. `input_size` is the height and width of the input, `null_class` adds the row of the label table that guidance needs.

    Raises a pydantic ValidationError (a ValueError) whose message names the nearest valid value.
    """

    channels: Annotated[int, Field(ge=2)]
    depths: Annotated[tuple[Count, ...], Field(min_length=3)]
    heads: PerStage[Count]
    attention: AttentionSpec = AttentionSpec()
    feed_forward: FeedForwardSpec = FeedForwardSpec()
    input_size: Count = 32
    in_channels: Count = 4
    num_classes: Count = 1000
    null_class: bool = True
    learned_variance: bool = True

    @property
    def levels(self) -> int:
        """Resolutions of the U, the bottleneck's included."""
        return (len(self.depths) + 1) // 2

    @property
    def out_channels(self) -> int:
        """Channels of the prediction: noise, and the variance's interpolation when it is learned."""
        return self.in_channels * (2 if self.learned_variance else 1)

    def width_at(self, level: int) -> int:
        """Channels of the encoder, and of the condition embedding, at a level (0 is the outermost)."""
        return self.channels << level

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order of `depths`, every choice resolved."""
        return tuple(self._stage(index) for index in range(len(self.depths)))

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the architecture and its input."""
        plain = {
            "stages": [asdict(stage) for stage in self.stages],
            "input": [self.in_channels, self.input_size],
            "classes": [self.num_classes, self.null_class],
            "learned_variance": self.learned_variance,
        }
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _stage(self, index: int) -> Stage:
        attention, feed_forward = self.attention, self.feed_forward
        bottleneck = self.levels - 1
        level = index if index <= bottleneck else len(self.depths) - 1 - index
        decoder = index > bottleneck
        condition = max(level, 1) if decoder else level
        width = self.width_at(condition)
        tokens: Tokens = at_stage(attention.tokens, index)
        downsampled = tokens != "all"
        downsampler: Downsampler | None = at_stage(attention.downsampler, index) if downsampled else None
        kind: FeedForwardKind = at_stage(feed_forward.kind, index)
        side = "decoder" if decoder else "encoder"
        return Stage(
            name="bottleneck" if index == bottleneck else f"{side}-{level + 1}",
            level=level,
            resolution=self.input_size >> level,
            width=width,
            condition=condition,
            layers=LAYERS_A_BLOCK * self.depths[index],
            heads=at_stage(self.heads, index),
            tokens=tokens,
            factor=at_stage(attention.factor, index) if downsampled else None,
            downsampler=downsampler,
            kernel=attention.kernel if downsampler not in (None, "pixel-shuffle") else None,
            similarity=attention.similarity,
            position=attention.position,
            feed_forward=kind,
            hidden=int(width * feed_forward.ratio),
            reparam=kind == "conv" and feed_forward.reparam,
        )

    @model_validator(mode="after")
    def _can_be_built(self) -> ModelSpec:
        count = len(self.depths)
        if count % 2 == 0:
            raise SpecError(
                f"depths lists {count} stages, but a U has as many decoder as encoder stages and one bottleneck; "
                f"list {count - 1} or {count + 1}"
            )
        if self.channels % 2:
            raise SpecError(f"channels {self.channels} is odd, but the down convolution halves it; take {self.channels + 1}")
        for name, value in {
            "heads": self.heads,
            "attention.tokens": self.attention.tokens,
            "attention.factor": self.attention.factor,
            "attention.downsampler": self.attention.downsampler,
            "feed_forward.kind": self.feed_forward.kind,
        }.items():
            if isinstance(value, tuple) and len(value) != count:
                raise SpecError(f"{name} lists {len(value)} values, but depths lists {count} stages; give one value or {count}")
        self._check_input_size()
        for stage in self.stages:
            _check_heads(stage)
            if stage.hidden < 1 or (stage.reparam and stage.hidden % 2):
                # Rounded up, so that the hidden width is not rounded below what is meant.
                near = math.ceil(1e4 * 2 * max(1, round(stage.hidden / 2)) / stage.width) / 1e4
                raise SpecError(
                    f"feed_forward.ratio {self.feed_forward.ratio:g} gives {stage.name} a hidden width of {stage.hidden}, "
                    f"but it must be {'even' if stage.reparam else 'at least 1'}; take a ratio of {near:g}"
                )
        return self

    def _check_input_size(self) -> None:
        factors = [max(s.factor or 1 for s in self._stages_at(level)) for level in range(self.levels)]
        # All are powers of two, so what the most demanding level needs serves the others.
        level = max(range(self.levels), key=lambda level: factors[level] << level)
        unit = factors[level] << level
        if self.input_size % unit:
            low = self.input_size // unit * unit
            near = low if low and self.input_size - low <= unit // 2 else low + unit
            raise SpecError(
                f"input_size {self.input_size} is not divisible by {unit}, which level {level + 1} needs (halved {level} "
                f"times, tokens downsampled by {factors[level]}); the nearest that is: {near}"
            )

    def _stages_at(self, level: int) -> list[Stage]:
        return [stage for stage in self.stages if stage.level == level]


def at_stage(value: PerStage[T], index: int) -> T:
    """The value that holds at a stage."""
    return value[index] if isinstance(value, tuple) else value


def _check_heads(stage: Stage) -> None:
    unit = 4 if stage.position == "rope2d" else 1
    if stage.width % stage.heads == 0 and stage.width // stage.heads % unit == 0:
        return
    valid = [h for h in range(1, stage.width + 1) if stage.width % (h * unit) == 0]
    near = min(valid, key=lambda h: (abs(h - stage.heads), h), default=None)
    need = f"heads of a width divisible by {unit} (RoPE2D)" if unit > 1 else "heads that divide it"
    mend = f"the nearest number of heads that fits: {near}" if near else f"take channels divisible by {unit}"
    raise SpecError(f"{stage.heads} heads do not fit {stage.name} of width {stage.width}, which needs {need}; {mend}")


def changed(spec: ModelSpec, changes: dict[str, Any]) -> dict[str, Any]:
    """The spec's plain data with values replaced at dotted paths such as `attention.tokens`, or `depths.2` for one stage.

    The result still has to be validated. Raises SpecError for a path that no spec has.
    """
    data: dict[str, Any] = spec.model_dump()
    for path, value in changes.items():
        parts = path.split(".")
        inner = data
        for part in parts[:-1]:
            if not isinstance(inner.get(part), dict):
                break
            inner = inner[part]
        else:
            if parts[-1] in inner:
                inner[parts[-1]] = value
                continue
        _set_stage(data, path, value, len(spec.depths))
    return data


def _set_stage(data: dict[str, Any], path: str, value: Any, stages: int) -> None:
    """Set one stage's entry of a per-stage value, whose path ends in the stage's index."""
    *parts, last = path.split(".")
    inner: Any = data
    for part in parts[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not parts or parts[-1] not in inner or not last.isdecimal() or int(last) >= stages:
        raise SpecError(f"no spec has '{path}'; known: {', '.join(spec_paths())}")
    current = inner[parts[-1]]
    values = list(current) if isinstance(current, (tuple, list)) else [current] * stages
    values[int(last)] = value
    inner[parts[-1]] = tuple(values)


_NESTED: dict[str, type[Frozen]] = {"attention": AttentionSpec, "feed_forward": FeedForwardSpec}


def spec_paths() -> list[str]:
    """Every dotted path that can be set or searched."""
    paths: list[str] = []
    for name in ModelSpec.model_fields:
        inner = _NESTED.get(name)
        paths += [f"{name}.{key}" for key in inner.model_fields] if inner else [name]
    return paths


@lru_cache
def value_type(path: str) -> TypeAdapter[Any]:
    """What values a path can hold, each by itself; raises KeyError for a path that no spec has."""
    outer, _, inner = path.partition(".")
    field = (_NESTED[outer] if inner else ModelSpec).model_fields[inner or outer]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)


def per_stage_paths() -> list[str]:
    """The paths that may hold one value a stage."""
    return ["depths", "heads", "attention.tokens", "attention.factor", "attention.downsampler", "feed_forward.kind"]
