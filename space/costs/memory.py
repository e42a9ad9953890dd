"""What training a batch keeps in memory, in closed form and without torch.

Counted is the path that runs on a CPU in float32, whose operators keep little for the backward pass (space/model/kernels.py): for
every layer the normalised input and one statistic a position, the inputs of linear layers and convolutions, queries, keys and
values, and attention's weights where it is explicit.
"""

from __future__ import annotations

from dataclasses import dataclass

from space.choices.attention import TOKENS
from space.choices.downsampler import DOWNSAMPLERS
from space.choices.feed_forward import FEED_FORWARD_KERNEL, FEED_FORWARDS
from space.choices.inputs import Number, StageInputs
from space.choices.table import rules_of
from space.costs.cost import cost
from space.costs.formulas import CostInputs, cost_inputs
from space.spec import ModelSpec
from space.stage import TIME_SINUSOIDS

FLOAT_BYTES = 4

MOMENTS = 2
"""Running averages that AdamW keeps of every parameter."""

EXPLICIT_KEYS = 64
"""Keys up to which attention runs outside the fused kernel and its weights are kept."""

WORKING_TENSORS = 4
"""Feature maps as wide as the widest hidden layer that the backward pass of a layer holds at once."""


@dataclass(frozen=True)
class PartMemory:
    """The memory of one part, in bytes.

    `activations` is what a batch keeps for the backward pass, folded weights included; `optimizer` is AdamW's two moments.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int


@dataclass(frozen=True)
class Memory(PartMemory):
    """The memory of training a batch: its parts, their sums, and the peak, in bytes.

    `averages` is the copy of the weights that is averaged (EMA). The peak is reached somewhere in the backward pass, which frees
    activations from the last part to the first while gradients appear, or in the optimizer's step.
    """

    averages: int
    peak: int
    parts: tuple[PartMemory, ...]


def memory(spec: ModelSpec, batch_size: int, averages: int = 1) -> Memory:
    """What training a batch in float32 takes; `averages` is how many averaged copies of the weights are kept."""
    n = cost_inputs(spec)
    kept = kept_elements(n)
    parts = []
    for counted in cost(spec).parts:
        weights = FLOAT_BYTES * counted.params_training
        a_sample, once = kept[counted.name]
        activations = FLOAT_BYTES * (a_sample * batch_size + once)
        parts.append(PartMemory(counted.name, weights, weights, MOMENTS * weights, activations))
    weights = sum(part.weights for part in parts)
    working = FLOAT_BYTES * WORKING_TENSORS * batch_size * max(s.positions * max(s.hidden, 2 * s.width) for s in n.stages)
    # Within a part activations go as gradients come, so the highest point is where the backward pass enters one: the activations
    # up to it and the gradients beyond it are there.
    before, after = 0, weights
    highest = weights
    for part in parts:
        before += part.activations
        after -= part.gradients
        highest = max(highest, before + after + working)
    lasting = weights * (1 + MOMENTS + averages)
    return Memory(
        name="total",
        weights=weights,
        gradients=weights,
        optimizer=MOMENTS * weights,
        activations=before,
        averages=averages * weights,
        peak=lasting + highest,
        parts=tuple(parts),
    )


def kept_elements(n: CostInputs) -> dict[str, tuple[Number, Number]]:
    """For every part, the elements kept for the backward pass: a sample's, and those of folded weights, once a batch."""
    positions, last = n.grid**2, n.stages[-1].width
    found: dict[str, tuple[Number, Number]] = {"embedding": (n.patch_inputs * positions, 0), "conditions": (_conditions(n), 0)}
    bottleneck = len(n.stages) // 2
    for index, stage in enumerate(n.stages):
        if index > bottleneck:
            below, skipped = n.channels << (stage.level + 1), n.channels << stage.level
            joined = skipped * (2 - n.add_skips)
            found[f"up-{stage.level + 1}"] = (below * stage.positions // 4 + joined * stage.positions, 0)
        found[stage.name] = (_stage(n, stage), _folded(stage))
        if index < bottleneck:
            found[f"down-{stage.level + 1}"] = (stage.width * stage.positions, 0)
    # The input of the 3×3 convolution, the normalised input of the modulation with its statistic, and the prediction's input.
    found["output"] = (positions * (last * (2 + n.conv_stem) + 1) + 2 * last, 0)
    return found


def _conditions(n: CostInputs) -> Number:
    """The sinusoids, and inputs and outputs of the two activations of every level's embedder."""
    return TIME_SINUSOIDS + sum(4 * (n.channels << level) for level in range(len(n.stages) // 2 + 1))


def _stage(n: CostInputs, stage: StageInputs) -> Number:
    width, hidden, positions = stage.width, stage.hidden, stage.positions
    # Both halves: the normalised input and its statistic, and what the gate multiplies.
    elements = 2 * (2 * width + 1)
    # The downsampler's input, the tokens, and the output projection's input.
    elements = elements + width * (stage.downsampler(lambda value: DOWNSAMPLERS[value].kept) + 2)
    for kept, chosen in rules_of(stage.tokens, {value: choice.kept for value, choice in TOKENS.items()}):
        elements = elements + kept(stage) * chosen
    # An explicit product keeps its weights, the fused kernel a number for every row of them.
    explicit = stage.keys <= EXPLICIT_KEYS
    elements = elements + stage.heads * (explicit * stage.keys + (1 - explicit))
    # The projections' inputs and what is between them.
    elements = elements + width + hidden * (stage.feed_forward(lambda value: FEED_FORWARDS[value].kept) + stage.branches * 2)
    return stage.layers * (elements * positions + 6 * width)


def _folded(stage: StageInputs) -> Number:
    """Folded weights and kernels, which the backward pass needs."""
    folding = stage.reparam * (1 - stage.branches)
    return stage.layers * folding * stage.hidden * (2 * stage.width + FEED_FORWARD_KERNEL**2)
