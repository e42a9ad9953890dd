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
class StageNumbers:
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
class Numbers:
    """What the cost of a spec depends on."""

    channels: Number
    grid: Number
    patch_inputs: Number
    """Values in a patch of the input."""
    patch_outputs: Number
    label_rows: Number
    conv_ends: Number
    add_skips: Number
    level_modulation: Number
    stages: tuple[StageNumbers, ...]


def numbers(spec: ModelSpec) -> Numbers:
    """The numbers of one spec."""
    return Numbers(
        channels=spec.channels,
        grid=spec.grid,
        patch_inputs=spec.in_channels * spec.patch**2,
        patch_outputs=spec.out_channels * spec.patch**2,
        label_rows=spec.num_classes + spec.null_class,
        conv_ends=int(spec.ends == "conv"),
        add_skips=int(spec.skip == "add"),
        level_modulation=int(spec.modulation == "level"),
        stages=tuple(_stage_numbers(stage) for stage in spec.stages),
    )


def _stage_numbers(stage: Stage) -> StageNumbers:
    positions = stage.resolution**2
    kernel = stage.kernel or 0
    return StageNumbers(
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
class Tally:
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
    fold_macs: Number = 0

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


def tallies(n: Numbers) -> Iterator[Tally]:
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


def _embedding(n: Numbers) -> Tally:
    tally = Tally("embedding")
    # The images need no gradient, so the first layer has only its weights'.
    positions, kernel = n.grid**2, 3 * n.conv_ends
    tally.convolution(n.patch_inputs, n.channels, positions, kernel, input_gradient=False)
    tally.linear(n.patch_inputs, n.channels, positions, input_gradient=False, times=1 - n.conv_ends)
    return tally


def _conditions(n: Numbers) -> Tally:
    tally = Tally("conditions")
    for level in range(len(n.stages) // 2 + 1):
        width = n.channels << level
        tally.linear(TIME_SINUSOIDS, width, input_gradient=False)
        tally.linear(width, width)
        tally.weights(n.label_rows * width)
        tally.linear(width, 6 * width, times=n.level_modulation)
    return tally


def _down(stage: StageNumbers) -> Tally:
    tally = Tally(f"down-{stage.level + 1}")
    tally.convolution(stage.width, stage.width // 2, stage.positions, 3, bias=False)
    return tally


def _up(n: Numbers, stage: StageNumbers) -> Tally:
    """Upsampling into a decoder stage, and the skip's 1×1 convolution."""
    tally = Tally(f"up-{stage.level + 1}")
    below, skipped = n.channels << (stage.level + 1), n.channels << stage.level
    tally.convolution(below, 2 * below, stage.positions // 4, 3, bias=False)
    # What comes up is as wide as what is skipped.
    tally.linear(skipped * (2 - n.add_skips), stage.width, stage.positions)
    return tally


def _output(n: Numbers) -> Tally:
    tally = Tally("output")
    last, positions, kernel = n.stages[-1].width, n.grid**2, 3 * n.conv_ends
    tally.convolution(last, last, positions, kernel)
    tally.linear(last, 2 * last)
    tally.norm(last * positions)
    tally.elementwise(last * positions)
    tally.convolution(last, n.patch_outputs, positions, kernel)
    tally.linear(last, n.patch_outputs, positions, times=1 - n.conv_ends)
    return tally


def _stage(n: Numbers, stage: StageNumbers) -> Tally:
    tally = Tally(stage.name)
    layers = stage.layers
    tally.linear(stage.width, 6 * stage.width, times=layers * (1 - n.level_modulation))
    tally.weights(6 * stage.width * layers * n.level_modulation)
    # Norm, scale and gate, around the attention and around the feed-forward.
    tally.norm(2 * stage.width * stage.positions * layers)
    tally.elementwise(4 * stage.width * stage.positions * layers)
    _attention(tally, stage)
    _feed_forward(tally, stage)
    return tally


def _attention(tally: Tally, stage: StageNumbers) -> None:
    width, positions, keys, layers = stage.width, stage.positions, stage.keys, stage.layers
    tally.convolution(1, width, positions, stage.depthwise_kernel, times=layers)
    tally.convolution(width, width, positions, stage.ordinary_kernel, times=layers)
    tally.linear(width, 3 * width, positions, times=layers)
    # Groups of `keys` tokens, or every query over `keys` keys: the same products.
    tally.attend(positions, keys, width, stage.heads, layers)
    # One complex product for two channels, of the queries and of the keys.
    turned = positions + positions * (1 - stage.key_value) + keys * stage.key_value
    tally.elementwise(turned * (width * layers) // 2 * stage.rope)
    tally.weights(stage.heads * layers * stage.cosine)
    tally.linear(width, width, positions, times=layers)


def _feed_forward(tally: Tally, stage: StageNumbers) -> None:
    width, hidden, positions, layers = stage.width, stage.hidden, stage.positions, stage.layers
    tally.linear(width, hidden, positions, times=layers)
    tally.convolution(1, hidden, positions, FEED_FORWARD_KERNEL * stage.convolutional, times=layers)
    tally.linear(hidden, width, positions, times=layers)
    # In place of each 1×1 two stacked ones with hidden / 2 channels between; beside the 5×5 a 3×3 and a 1×1, with biases.
    middle, reparam = hidden // 2, stage.reparam * layers
    stacked, single, branches = 2 * middle * (width + hidden), 2 * width * hidden, hidden * (9 + 1)
    tally.params_training = tally.params_training + (stacked + 2 * middle - single + branches + 2 * hidden) * reparam
    # Applied branch by branch, forward and two gradients; or folded: the weights, and the inner bias through the outer matrix.
    tally.train_macs = tally.train_macs + 3 * (stacked - single + branches) * positions * layers * stage.branches
    folding = hidden * middle * (width + 1) + width * middle * (hidden + 1)
    tally.fold_macs = tally.fold_macs + folding * (reparam - layers * stage.branches)
