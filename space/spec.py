"""The spec: plain data that describes one architecture, from U-DiT with all its choices to the isotropic DiT.

U-DiT is Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers" (NeurIPS 2024, arXiv 2405.02730); every
choice of its ablations (Tables 1, 7 and 9) is a field. DiT is Peebles & Xie, "Scalable Diffusion Models with Transformers" (ICCV
2023, arXiv 2212.09748), a spec of a single stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, reduce
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from space.choices.attention import TOKENS, Similarity, Tokens
from space.choices.downsampler import DOWNSAMPLERS, Downsampler
from space.choices.feed_forward import FEED_FORWARDS, FeedForwardKind
from space.choices.position import POSITIONS, Position
from space.document import parse
from space.errors import SpecError, StudyError
from space.frozen import Frozen
from space.stage import Count, Factor, Kernel, Modulation, PerStage, Stage, Width, at_stage, stage_place

PER_STAGE = (
    "heads",
    "attention.tokens",
    "attention.factor",
    "attention.downsampler",
    "attention.similarity",
    "attention.position",
    "feed_forward.kind",
)
"""Paths that hold one value for all stages or one per stage; `depths` always lists one per stage."""


class AttentionSpec(Frozen):
    """The attention of every block of a stage.

    `factor`, `downsampler` and `kernel` set how tokens are downsampled. Where `tokens` is `all` they have no effect, and specs that
    differ in them alone have the same digest. `kernel` is the width of the downsampler's convolution.
    """

    tokens: PerStage[Tokens] = "downsampled"
    factor: PerStage[Factor] = 2
    downsampler: PerStage[Downsampler] = "dwconv-shortcut"
    kernel: Kernel = 5
    similarity: PerStage[Similarity] = "cosine"
    position: PerStage[Position] = "rope2d"


class FeedForwardSpec(Frozen):
    """The feed-forward of a transformer block: `mlp`, or `conv` with a depthwise 5×5 convolution between the projections.

    `ratio` is hidden width over width. `reparam` trains `conv` with extra linear branches that are folded into it afterwards; it
    has no effect on `mlp`. Training computes the folded weights in every step, so a sample costs as much as in the folded form.
    With `branches`, training applies each branch by itself, as the authors' code does: the same
    function and gradients at a higher cost.
    """

    kind: PerStage[FeedForwardKind] = "conv"
    ratio: Annotated[float, Field(gt=0, le=1024)] = 2.0
    reparam: bool = True
    branches: bool = False


class ModelSpec(Frozen):
    """One architecture: two specs that build the same network have the same digest.

    `depths` counts the blocks of each stage as the papers do: encoder from the outside in, bottleneck, decoder from the inside out.
    Five numbers are two down-levels and a bottleneck; one number is the isotropic DiT. Such a block consists of `block_layers`
    transformer blocks, each attention and feed-forward (`space.model.block.Block`): two in U-DiT's code, one in DiT's. "Layer" in
    the names of fields means one transformer block, so a stage has `block_layers` × its depth layers.

    Widths are C, 2C, 4C, 2C, 2C: the outermost decoder stage keeps the width of the level below.

    `input_size` is the height and width of the input, cut into patches of `patch` × `patch`. `stem: conv` embeds and predicts with
    3×3 convolutions over the patches (U-DiT), `stem: linear` patch by patch (DiT). `absolute_position: sincos` adds DiT's fixed
    embedding of the patches' positions.

    `skip` joins a decoder stage with its encoder stage before a 1×1 convolution: concatenated (U-DiT) or added.
    `modulation: layer` has one modulation network per transformer block; `modulation: level` has one per level and a learned offset
    per transformer block. `null_class` adds the row of the label table that classifier-free guidance needs.

    Raises:
        pydantic.ValidationError: When the architecture cannot be built; the message names the nearest valid value.
    """

    renamed: ClassVar[Mapping[str, str]] = {"ends": "stem"}
    """Today's names of renamed fields, by the old name."""

    channels: Width
    depths: Annotated[tuple[Count, ...], Field(min_length=1)]
    heads: PerStage[Count]
    block_layers: Count = 2
    attention: AttentionSpec = AttentionSpec()
    feed_forward: FeedForwardSpec = FeedForwardSpec()
    modulation: Modulation = "layer"
    skip: Literal["concat", "add"] = "concat"
    patch: Literal[1, 2, 4, 8] = 1
    stem: Literal["conv", "linear"] = "conv"
    absolute_position: Literal["none", "sincos"] = "none"
    input_size: Width = 32
    in_channels: Count = 4
    num_classes: Count = 1000
    null_class: bool = True
    learned_variance: bool = True

    @property
    def levels(self) -> int:
        """Number of resolutions in the U, the bottleneck's included."""
        return (len(self.depths) + 1) // 2

    @property
    def grid(self) -> int:
        """Height and width of the outermost feature map: patches along each side."""
        return self.input_size // self.patch

    @property
    def out_channels(self) -> int:
        """Channels of the prediction: noise, and the variance's interpolation when it is learned."""
        return self.in_channels * (2 if self.learned_variance else 1)

    def width_at(self, level: int) -> int:
        """Channels of the encoder, and of the condition embedding, at a level (0 is the outermost)."""
        return self.channels << level

    def value_at(self, path: str) -> Any:
        """The value at a dotted path such as `attention.tokens`."""
        return reduce(getattr, path.split("."), self)

    def replace(self, changes: Mapping[str, Any]) -> ModelSpec:
        """A copy with other values at dotted paths.

        Args:
            changes: Values by path, such as `attention.tokens`, or `depths.2` or `depths.bottleneck` for one stage. A mapping at
                `attention` or `feed_forward` replaces the keys that it names and keeps the others.

        Raises:
            SpecError: For a path that no spec has, and when the result cannot be built.
        """
        data: dict[str, Any] = self.model_dump()
        for path, value in changes.items():
            *parents, last = path.split(".")
            inner: Any = data
            for part in parents:
                inner = inner.get(part) if isinstance(inner, dict) else None
            if isinstance(inner, dict) and last in inner:
                old = inner[last]
                inner[last] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
            else:
                _set_stage(data, path, value, len(self.depths))
        try:
            return parse(ModelSpec, data)
        except StudyError as error:
            raise SpecError(str(error)) from None

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order of `depths`, every choice resolved."""
        return tuple(self._stage(index) for index in range(len(self.depths)))

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the architecture and its input."""
        plain = {
            "stages": [asdict(stage) for stage in self.stages],
            "skip": self.skip if self.levels > 1 else None,
            "input": [self.in_channels, self.input_size, self.patch],
            "ends": [self.stem, self.absolute_position],
            "classes": [self.num_classes, self.null_class],
            "learned_variance": self.learned_variance,
        }
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _stage(self, index: int) -> Stage:
        attention, feed_forward = self.attention, self.feed_forward
        where = stage_place(index, len(self.depths))
        width = self.width_at(where.condition)
        tokens: Tokens = at_stage(attention.tokens, index)
        downsampler: Downsampler = at_stage(attention.downsampler, index)
        if at_stage(attention.factor, index) == 1 and not DOWNSAMPLERS[downsampler].filters:
            # A single group of unfiltered tokens.
            tokens = "all"
        downsampled = TOKENS[tokens].downsamples
        kind: FeedForwardKind = at_stage(feed_forward.kind, index)
        reparam = FEED_FORWARDS[kind].reparam and feed_forward.reparam
        return Stage(
            name=where.name,
            level=where.level,
            resolution=self.grid >> where.level,
            width=width,
            condition=where.condition,
            layers=self.block_layers * self.depths[index],
            modulation=self.modulation,
            heads=at_stage(self.heads, index),
            tokens=tokens,
            factor=at_stage(attention.factor, index) if downsampled else None,
            downsampler=downsampler if downsampled else None,
            kernel=attention.kernel if downsampled and DOWNSAMPLERS[downsampler].filters else None,
            similarity=at_stage(attention.similarity, index),
            position=at_stage(attention.position, index),
            feed_forward=kind,
            hidden=int(width * feed_forward.ratio),
            reparam=reparam,
            branches=reparam and feed_forward.branches,
        )

    @model_validator(mode="after")
    def _can_be_built(self) -> ModelSpec:
        count = len(self.depths)
        if count % 2 == 0:
            raise SpecError(
                f"depths lists {count} stages, but a U has as many decoder as encoder stages and one bottleneck; "
                f"list {count - 1} or {count + 1}"
            )
        if count > 1 and self.channels % 2:
            raise SpecError(f"channels {self.channels} is odd, but the down convolution halves it; take {self.channels + 1}")
        if self.absolute_position == "sincos" and self.channels % 4:
            near = 4 * max(1, round(self.channels / 4))
            raise SpecError(
                f"channels {self.channels} is not divisible by 4, which absolute_position sincos needs; the nearest that is: {near}"
            )
        for path in PER_STAGE:
            value = self.value_at(path)
            if isinstance(value, tuple) and len(value) != count:
                raise SpecError(f"{path} lists {len(value)} values, but depths lists {count} stages; give one value or {count}")
        self._check_input_size()
        for stage in self.stages:
            _check_heads(stage)
        self._check_hidden()
        return self

    def _check_hidden(self) -> None:
        ratio = self.feed_forward.ratio
        for stage in self.stages:
            if not _takes(stage, ratio):
                # The next ratio up that suits every stage.
                tries = (round(ratio + step * 1e-4, 4) for step in range(20_001))
                near = next((tried for tried in tries if all(_takes(other, tried) for other in self.stages)), None)
                raise SpecError(
                    f"feed_forward.ratio {ratio:g} gives {stage.name} a hidden width of {stage.hidden}, but it must be "
                    f"{'even' if stage.reparam else 'at least 1'}; take {f'a ratio of {near:g}' if near else 'another ratio'}"
                )

    def _check_input_size(self) -> None:
        factors = [max(s.factor or 1 for s in self.stages if s.level == level) for level in range(self.levels)]
        # All are powers of two, so a size that suits the most demanding level suits the others.
        level = max(range(self.levels), key=lambda level: factors[level] << level)
        unit = (factors[level] << level) * self.patch
        if self.input_size % unit:
            low = self.input_size // unit * unit
            near = low if low and self.input_size - low <= unit // 2 else low + unit
            patches = f"patches of {self.patch}, " if self.patch > 1 else ""
            raise SpecError(
                f"input_size {self.input_size} is not divisible by {unit}, which level {level + 1} needs ({patches}halved {level} "
                f"times, tokens downsampled by {factors[level]}); the nearest that is: {near}"
            )


def _takes(stage: Stage, ratio: float) -> bool:
    """Whether a feed-forward ratio gives a stage a valid hidden width."""
    hidden = int(stage.width * ratio)
    return hidden >= 1 and not (stage.reparam and hidden % 2)


def _check_heads(stage: Stage) -> None:
    position = POSITIONS[stage.position]
    unit = position.head_unit
    if stage.width % stage.heads == 0 and stage.width // stage.heads % unit == 0:
        return
    valid = [h for h in range(1, stage.width + 1) if stage.width % (h * unit) == 0]
    near = min(valid, key=lambda h: (abs(h - stage.heads), h), default=None)
    need = f"heads of a width divisible by {unit} ({position.title})" if unit > 1 else "heads that divide it"
    mend = f"the nearest number of heads that fits: {near}" if near else f"take channels divisible by {unit}"
    raise SpecError(f"{stage.heads} heads do not fit {stage.name} of width {stage.width}, which needs {need}; {mend}")


def _set_stage(data: dict[str, Any], path: str, value: Any, stages: int) -> None:
    """Set the entry of one stage in a per-stage value; the path ends in the stage's index or name."""
    *parts, last = path.split(".")
    names = [stage_place(index, stages).name for index in range(stages)]
    last = str(names.index(last)) if last in names else last
    inner: Any = data
    for part in parts[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not parts or parts[-1] not in inner or not last.isdecimal() or int(last) >= stages:
        known = f"; known: {', '.join(spec_paths())}"
        raise SpecError(f"no spec has '{path}'{today(path) or known}")
    current = inner[parts[-1]]
    values = list(current) if isinstance(current, (tuple, list)) else [current] * stages
    values[int(last)] = value
    inner[parts[-1]] = tuple(values)


def today(path: str) -> str:
    """What to add to a message about an unknown path that was renamed; empty for any other path."""
    name = path.partition(".")[0]
    return f"; '{name}' is now called '{ModelSpec.renamed[name]}': rename it" if name in ModelSpec.renamed else ""


def current_words(data: Any) -> Any:
    """Plain data that may have been written when fields of a spec had other names, with today's names at any depth."""
    if isinstance(data, Mapping):
        return {ModelSpec.renamed.get(name, name): current_words(value) for name, value in data.items()}
    return [current_words(value) for value in data] if isinstance(data, (list, tuple)) else data


NESTED: dict[str, type[Frozen]] = {"attention": AttentionSpec, "feed_forward": FeedForwardSpec}


def spec_paths() -> list[str]:
    """Every dotted path that can be set or searched."""
    paths: list[str] = []
    for name in ModelSpec.model_fields:
        inner = NESTED.get(name)
        paths += [f"{name}.{key}" for key in inner.model_fields] if inner else [name]
    return paths
