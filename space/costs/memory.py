"""The memory that training a batch needs, in closed form and without torch.

The formulas describe training on a CPU in float32, whose operators keep little for the backward pass (space/model/kernels.py). Each
transformer block keeps its normalised inputs and one statistic per position, the inputs of linear layers and convolutions, queries,
keys and values, and the attention weights where they are computed explicitly.
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
"""Number of running averages that AdamW keeps per parameter."""

EXPLICIT_KEYS = 64
"""With at most this many keys, attention is computed outside the fused kernel and its weights are kept."""

WORKING_TENSORS = 4
"""Number of feature maps, as wide as the widest hidden layer, that the backward pass holds at once."""


@dataclass(frozen=True)
class PartMemory:
    """The memory of one part, in bytes.

    `activations` is kept by a batch for the backward pass, folded weights included; `optimizer` is the two moments of AdamW.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int


@dataclass(frozen=True)
class Memory(PartMemory):
    """The memory of training a batch: its parts, their sums, and the peak, in bytes.

    `averages` is the averaged copies of the weights (EMA). The peak is reached in the backward pass, which frees activations from
    the last part to the first while gradients appear, or in the step of the optimizer.
    """

    averages: int
    peak: int
    parts: tuple[PartMemory, ...]


def memory(spec: ModelSpec, batch_size: int, averages: int = 1) -> Memory:
    """The memory of training a batch in float32 on a CPU.

    Args:
        spec: The architecture.
        batch_size: Samples per training step.
        averages: Number of averaged copies of the weights (EMA).

    Returns:
        Bytes by kind and part, and the peak.
    """
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
    # Within a part, activations are freed as gradients appear. The peak is therefore where the backward pass enters a part: the
    # activations up to it and the gradients of the parts after it exist.
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
    """The elements kept for the backward pass, by part: per sample, and once per batch (folded weights)."""
    positions, last = n.grid**2, n.stages[-1].width
    kept: dict[str, tuple[Number, Number]] = {"embedding": (n.patch_inputs * positions, 0), "conditions": (_conditions(n), 0)}
    bottleneck = len(n.stages) // 2
    for index, stage in enumerate(n.stages):
        if index > bottleneck:
            below, skipped = n.channels << (stage.level + 1), n.channels << stage.level
            joined = skipped * (2 - n.add_skips)
            kept[f"up-{stage.level + 1}"] = (below * stage.positions // 4 + joined * stage.positions, 0)
        kept[stage.name] = (_stage(n, stage), _folded(stage))
        if index < bottleneck:
            kept[f"down-{stage.level + 1}"] = (stage.width * stage.positions, 0)
    # The input of the 3×3 convolution, the normalised input of the modulation with its statistic, and the prediction's input.
    kept["output"] = (positions * (last * (2 + n.conv_stem) + 1) + 2 * last, 0)
    return kept


def _conditions(n: CostInputs) -> Number:
    """The sinusoids, and the inputs and outputs of both activations in the embedder of each level."""
    return TIME_SINUSOIDS + sum(4 * (n.channels << level) for level in range(len(n.stages) // 2 + 1))


def _stage(n: CostInputs, stage: StageInputs) -> Number:
    width, hidden, positions = stage.width, stage.hidden, stage.positions
    # Attention and feed-forward each: the normalised input, its statistic, and the output that the gate multiplies.
    elements = 2 * (2 * width + 1)
    # The downsampler's input, the tokens, and the output projection's input.
    elements = elements + width * (stage.downsampler(lambda value: DOWNSAMPLERS[value].kept) + 2)
    for kept, chosen in rules_of(stage.tokens, {value: choice.kept for value, choice in TOKENS.items()}):
        elements = elements + kept(stage) * chosen
    # Explicit attention keeps its weights, the fused kernel one number per row of them.
    explicit = stage.keys <= EXPLICIT_KEYS
    elements = elements + stage.heads * (explicit * stage.keys + (1 - explicit))
    # The input of the feed-forward, and the feature maps between its projections.
    elements = elements + width + hidden * (stage.feed_forward(lambda value: FEED_FORWARDS[value].kept) + stage.branches * 2)
    return stage.layers * (elements * positions + 6 * width)


def _folded(stage: StageInputs) -> Number:
    """The folded weights and kernels, which the backward pass needs."""
    folding = stage.reparam * (1 - stage.branches)
    return stage.layers * folding * stage.hidden * (2 * stage.width + FEED_FORWARD_KERNEL**2)
