"""What every part of a network costs, as formulas over whole numbers.

The numbers are Python integers for one spec and NumPy arrays of them for many specs at once: choices enter as 0 or 1, so both
run through the same formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from space.spec import ModelSpec
from space.stage import FEED_FORWARD_KERNEL, TIME_SINUSOIDS, Stage

Number: TypeAlias = Any
"""An int, or an array of int64; a choice is 0 or 1."""


@dataclass(frozen=True)
class StageInputs:
    """What the cost of a stage depends on."""

    name: str
    level: int
    condition: int
    layers: Number
    width: Number
    positions: Number
    heads: Number
    keys: Number
    """Tokens that each query attends to."""
    key_value: Number
    depthwise_kernel: Number
    """Kernel width of a depthwise downsampler, 0 without one."""
    ordinary_kernel: Number
    """Kernel width of an ordinary convolution as the downsampler, 0 without one."""
    cosine: Number
    rope: Number
    convolutional: Number
    hidden: Number
    reparam: Number
    branches: Number


@dataclass(frozen=True)
class CostInputs:
    """What the cost of a spec depends on."""

    channels: Number
    grid: Number
    patch_inputs: Number
    """Values in a patch of the input."""
    patch_outputs: Number
    label_rows: Number
    conv_stem: Number
    add_skips: Number
    level_modulation: Number
    stages: tuple[StageInputs, ...]


def cost_inputs(spec: ModelSpec) -> CostInputs:
    """The numbers of one spec."""
    return CostInputs(
        channels=spec.channels,
        grid=spec.grid,
        patch_inputs=spec.in_channels * spec.patch**2,
        patch_outputs=spec.out_channels * spec.patch**2,
        label_rows=spec.num_classes + spec.null_class,
        conv_stem=int(spec.stem == "conv"),
        add_skips=int(spec.skip == "add"),
        level_modulation=int(spec.modulation == "level"),
        stages=tuple(_stage_inputs(stage) for stage in spec.stages),
    )


def _stage_inputs(stage: Stage) -> StageInputs:
    positions = stage.resolution**2
    kernel = stage.kernel or 0
    return StageInputs(
        name=stage.name,
        level=stage.level,
        condition=stage.condition,
        layers=stage.layers,
        width=stage.width,
        positions=positions,
        heads=stage.heads,
        keys=positions // (stage.factor or 1) ** 2,
        key_value=int(stage.tokens == "key-value"),
        depthwise_kernel=kernel if stage.downsampler != "conv" else 0,
        ordinary_kernel=kernel if stage.downsampler == "conv" else 0,
        cosine=int(stage.similarity == "cosine"),
        rope=int(stage.position == "rope2d"),
        convolutional=int(stage.feed_forward == "conv"),
        hidden=stage.hidden,
        reparam=int(stage.reparam),
        branches=int(stage.branches),
    )


@dataclass
class PartCounter:
    """Adds up the operators of a part; see `space.costs.cost.Part` for what the numbers mean."""

    name: str
    params: Number = 0
    params_training: Number = 0
    linear_macs: Number = 0
    convolution_macs: Number = 0
    attention_macs: Number = 0
    elementwise_macs: Number = 0
    norm_elements: Number = 0
    train_macs: Number = 0
    reparam_macs: Number = 0

    def linear(
        self, inputs: Number, outputs: Number, positions: Number = 1, *, input_gradient: bool = True, times: Number = 1
    ) -> None:
        """A linear layer with bias, or a 1×1 convolution, applied at a number of positions."""
        weights = inputs * outputs * times
        self.weights(weights + outputs * times)
        self.linear_macs = self.linear_macs + weights * positions
        self._train(weights * positions, 1 + input_gradient)

    def convolution(
        self,
        inputs: Number,
        outputs: Number,
        positions: Number,
        kernel: Number,
        *,
        bias: bool = True,
        input_gradient: bool = True,
        times: Number = 1,
    ) -> None:
        """A k×k convolution; a depthwise one has a single input to every output. With a kernel of 0 there is none."""
        weights = inputs * outputs * kernel * kernel * times
        self.weights(weights + bias * outputs * (kernel > 0) * times)
        self.convolution_macs = self.convolution_macs + weights * positions
        self._train(weights * positions, 1 + input_gradient)

    def attend(self, queries: Number, keys: Number, width: Number, heads: Number, times: Number) -> None:
        """Scores, their scaling, and their product with the values; each has two factors that need a gradient."""
        products = 2 * queries * keys * width * times
        self.attention_macs = self.attention_macs + products
        self._train(products, 2)
        self.elementwise(queries * keys * heads * times)

    def elementwise(self, elements: Number) -> None:
        """A product of every element with a factor that needs a gradient too."""
        self.elementwise_macs = self.elementwise_macs + elements
        self._train(elements, 2)

    def norm(self, elements: Number) -> None:
        """A norm without affine over so many elements in all."""
        self.norm_elements = self.norm_elements + elements

    def weights(self, count: Number) -> None:
        """Parameters that both forms have."""
        self.params = self.params + count
        self.params_training = self.params_training + count

    def _train(self, macs: Number, gradients: int) -> None:
        """A forward pass, and a backward pass of as many for each gradient."""
        self.train_macs = self.train_macs + macs * (1 + gradients)


def part_counters(n: CostInputs) -> Iterator[PartCounter]:
    """The parts of a network in the order of the forward pass."""
    yield _embedding(n)
    yield _conditions(n)
    bottleneck = len(n.stages) // 2
    for index, stage in enumerate(n.stages):
        if index > bottleneck:
            yield _up(n, stage)
        yield _stage(n, stage)
        if index < bottleneck:
            yield _down(stage)
    yield _output(n)


def _embedding(n: CostInputs) -> PartCounter:
    counter = PartCounter("embedding")
    # The images need no gradient, so the first layer has only its weights'.
    positions, kernel = n.grid**2, 3 * n.conv_stem
    counter.convolution(n.patch_inputs, n.channels, positions, kernel, input_gradient=False)
    counter.linear(n.patch_inputs, n.channels, positions, input_gradient=False, times=1 - n.conv_stem)
    return counter


def _conditions(n: CostInputs) -> PartCounter:
    counter = PartCounter("conditions")
    for level in range(len(n.stages) // 2 + 1):
        width = n.channels << level
        counter.linear(TIME_SINUSOIDS, width, input_gradient=False)
        counter.linear(width, width)
        counter.weights(n.label_rows * width)
        counter.linear(width, 6 * width, times=n.level_modulation)
    return counter


def _down(stage: StageInputs) -> PartCounter:
    counter = PartCounter(f"down-{stage.level + 1}")
    counter.convolution(stage.width, stage.width // 2, stage.positions, 3, bias=False)
    return counter


def _up(n: CostInputs, stage: StageInputs) -> PartCounter:
    """Upsampling into a decoder stage, and the skip's 1×1 convolution."""
    counter = PartCounter(f"up-{stage.level + 1}")
    below, skipped = n.channels << (stage.level + 1), n.channels << stage.level
    counter.convolution(below, 2 * below, stage.positions // 4, 3, bias=False)
    # What comes up is as wide as what is skipped.
    counter.linear(skipped * (2 - n.add_skips), stage.width, stage.positions)
    return counter


def _output(n: CostInputs) -> PartCounter:
    counter = PartCounter("output")
    last, positions, kernel = n.stages[-1].width, n.grid**2, 3 * n.conv_stem
    counter.convolution(last, last, positions, kernel)
    counter.linear(last, 2 * last)
    counter.norm(last * positions)
    counter.elementwise(last * positions)
    counter.convolution(last, n.patch_outputs, positions, kernel)
    counter.linear(last, n.patch_outputs, positions, times=1 - n.conv_stem)
    return counter


def _stage(n: CostInputs, stage: StageInputs) -> PartCounter:
    counter = PartCounter(stage.name)
    layers = stage.layers
    counter.linear(stage.width, 6 * stage.width, times=layers * (1 - n.level_modulation))
    counter.weights(6 * stage.width * layers * n.level_modulation)
    # Norm, scale and gate, around the attention and around the feed-forward.
    counter.norm(2 * stage.width * stage.positions * layers)
    counter.elementwise(4 * stage.width * stage.positions * layers)
    _attention(counter, stage)
    _feed_forward(counter, stage)
    return counter


def _attention(counter: PartCounter, stage: StageInputs) -> None:
    width, positions, keys, layers = stage.width, stage.positions, stage.keys, stage.layers
    counter.convolution(1, width, positions, stage.depthwise_kernel, times=layers)
    counter.convolution(width, width, positions, stage.ordinary_kernel, times=layers)
    counter.linear(width, 3 * width, positions, times=layers)
    # Groups of `keys` tokens, or every query over `keys` keys: the same products.
    counter.attend(positions, keys, width, stage.heads, layers)
    # One complex product for two channels, of the queries and of the keys.
    turned = positions + positions * (1 - stage.key_value) + keys * stage.key_value
    counter.elementwise(turned * (width * layers) // 2 * stage.rope)
    counter.weights(stage.heads * layers * stage.cosine)
    counter.linear(width, width, positions, times=layers)


def _feed_forward(counter: PartCounter, stage: StageInputs) -> None:
    width, hidden, positions, layers = stage.width, stage.hidden, stage.positions, stage.layers
    counter.linear(width, hidden, positions, times=layers)
    counter.convolution(1, hidden, positions, FEED_FORWARD_KERNEL * stage.convolutional, times=layers)
    counter.linear(hidden, width, positions, times=layers)
    # In place of each 1×1 two stacked ones with hidden / 2 channels between; beside the 5×5 a 3×3 and a 1×1, with biases.
    middle, reparam = hidden // 2, stage.reparam * layers
    stacked, single, branches = 2 * middle * (width + hidden), 2 * width * hidden, hidden * (9 + 1)
    counter.params_training = counter.params_training + (stacked + 2 * middle - single + branches + 2 * hidden) * reparam
    # Applied branch by branch, forward and two gradients; or folded: the weights, and the inner bias through the outer matrix.
    counter.train_macs = counter.train_macs + 3 * (stacked - single + branches) * positions * layers * stage.branches
    folding = hidden * middle * (width + 1) + width * middle * (hidden + 1)
    counter.reparam_macs = counter.reparam_macs + folding * (reparam - layers * stage.branches)
