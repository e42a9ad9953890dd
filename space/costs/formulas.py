"""The cost of every part of a network, as formulas over whole numbers.

The numbers are Python integers for one spec and NumPy arrays for many specs at once; both run through the same formulas. The
formulas of the choices of a stage are in `space.choices`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from space.choices.attention import TOKENS, learned_scale
from space.choices.counter import PartCounter
from space.choices.downsampler import DOWNSAMPLERS
from space.choices.feed_forward import FEED_FORWARDS
from space.choices.inputs import Choice, Number, StageInputs
from space.choices.position import POSITIONS
from space.choices.table import rules_of
from space.spec import ModelSpec
from space.stage import TIME_SINUSOIDS, Stage


@dataclass(frozen=True)
class CostInputs:
    """The numbers that the cost of a spec depends on."""

    channels: Number
    grid: Number
    patch_inputs: Number
    """Number of values in a patch of the input."""
    patch_outputs: Number
    label_rows: Number
    conv_stem: Number
    add_skips: Number
    level_modulation: Number
    stages: tuple[StageInputs, ...]


def cost_inputs(spec: ModelSpec) -> CostInputs:
    """The inputs of the cost formulas for one spec."""
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
    return StageInputs(
        name=stage.name,
        level=stage.level,
        condition=stage.condition,
        layers=stage.layers,
        width=stage.width,
        positions=positions,
        heads=stage.heads,
        keys=positions // (stage.factor or 1) ** 2,
        tokens=_chosen(stage.tokens),
        downsampler=_chosen(stage.downsampler),
        kernel=stage.kernel or 0,
        similarity=_chosen(stage.similarity),
        position=_chosen(stage.position),
        feed_forward=_chosen(stage.feed_forward),
        hidden=stage.hidden,
        reparam=int(stage.reparam),
        branches=int(stage.branches),
    )


def _chosen(value: str | None) -> Choice:
    """The choice of one spec; None is a choice that has no effect."""
    return lambda encode: 0 if value is None else encode(value)


def part_counters(n: CostInputs) -> Iterator[PartCounter]:
    """The counters of the parts of a network, in the order of the forward pass."""
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
    # The images need no gradient, so the first layer computes those of its weights alone.
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
    """The upsampling into a decoder stage, and the 1×1 convolution of the skip."""
    counter = PartCounter(f"up-{stage.level + 1}")
    below, skipped = n.channels << (stage.level + 1), n.channels << stage.level
    counter.convolution(below, 2 * below, stage.positions // 4, 3, bias=False)
    # The upsampled and the skipped feature maps are equally wide.
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
    # Norm, scale and gate, for the attention and for the feed-forward.
    counter.norm(2 * stage.width * stage.positions * layers)
    counter.elementwise(4 * stage.width * stage.positions * layers)
    _attention(counter, stage)
    _feed_forward(counter, stage)
    return counter


def _attention(counter: PartCounter, stage: StageInputs) -> None:
    width, positions, layers = stage.width, stage.positions, stage.layers
    for count, chosen in rules_of(stage.downsampler, {value: choice.count for value, choice in DOWNSAMPLERS.items()}):
        count(counter, stage, layers * chosen)
    counter.linear(width, 3 * width, positions, times=layers)
    # Groups of `keys` tokens need as many products as attention of every query over `keys` keys.
    counter.attend(positions, stage.keys, width, stage.heads, layers)
    encodings = {value: choice.count for value, choice in POSITIONS.items()}
    for encoded, attending in rules_of(stage.tokens, {value: choice.encoded for value, choice in TOKENS.items()}):
        for encode, chosen in rules_of(stage.position, encodings):
            encode(counter, stage, encoded(stage), layers * attending * chosen)
    counter.weights(stage.heads * layers * learned_scale(stage))
    counter.linear(width, width, positions, times=layers)


def _feed_forward(counter: PartCounter, stage: StageInputs) -> None:
    width, hidden, positions, layers = stage.width, stage.hidden, stage.positions, stage.layers
    counter.linear(width, hidden, positions, times=layers)
    for count, chosen in rules_of(stage.feed_forward, {value: choice.count for value, choice in FEED_FORWARDS.items()}):
        count(counter, stage, layers * chosen)
    counter.linear(hidden, width, positions, times=layers)
    # Each 1×1 becomes two stacked ones with hidden / 2 channels between; the 5×5 gains a 3×3 and a 1×1 branch, with biases.
    middle, reparam = hidden // 2, stage.reparam * layers
    stacked, single, branches = 2 * middle * (width + hidden), 2 * width * hidden, hidden * (9 + 1)
    counter.params_training = counter.params_training + (stacked + 2 * middle - single + branches + 2 * hidden) * reparam
    # Branches that are applied one by one cost a forward pass and two gradients. Folding multiplies the stacked weights, and the
    # inner bias with the outer matrix.
    counter.train_macs = counter.train_macs + 3 * (stacked - single + branches) * positions * layers * stage.branches
    folding = hidden * middle * (width + 1) + width * middle * (hidden + 1)
    counter.reparam_macs = counter.reparam_macs + folding * (reparam - layers * stage.branches)
