"""What a spec costs, in closed form and without torch.

One multiply-accumulate is one operation, as in both papers, so "GFLOPs" are multiply-accumulates / 1e9. Counted are matrix products
and convolutions (the attention's two products among them) and, as in the numbers that U-DiT prints, the elementwise products:
modulation, gates, the scaling of attention scores, and RoPE's rotation. Norms, activations, softmax, additions and biases are not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache

from space.spec import TIME_SINUSOIDS, ModelSpec, Stage


@dataclass(frozen=True)
class Part:
    """The cost of one stage or connection; whole numbers.

    `macs` is one forward pass of one sample in the folded form, of which `elementwise_macs` are elementwise products.
    `backward_macs` is the backward pass of one sample as it is trained, folding apart; `fold_macs` is the folding of
    re-parameterised weights, once a forward pass whatever the batch.
    """

    name: str
    params: int
    params_training: int
    macs: int
    elementwise_macs: int
    backward_macs: int
    fold_macs: int


@dataclass(frozen=True)
class Cost:
    """The cost of a spec; the parts are in the order of the forward pass.

    `gflops` is the inference cost of the folded form, batch 1. `train_gflops` is what one training sample costs, forward and
    backward, folding apart, which is paid once a step: see `step_macs`.
    """

    parts: tuple[Part, ...]
    params: int = field(init=False)
    params_training: int = field(init=False)
    macs: int = field(init=False)
    elementwise_macs: int = field(init=False)
    train_macs: int = field(init=False)
    fold_macs: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("params", "params_training", "macs", "elementwise_macs", "fold_macs"):
            object.__setattr__(self, name, sum(getattr(part, name) for part in self.parts))
        object.__setattr__(self, "train_macs", self.macs + sum(part.backward_macs for part in self.parts))

    @property
    def gflops(self) -> float:
        """Inference cost, folded form, batch 1, in 1e9 multiply-accumulates."""
        return self.macs / 1e9

    @property
    def train_gflops(self) -> float:
        """Forward and backward of one training sample, in 1e9 multiply-accumulates."""
        return self.train_macs / 1e9

    @property
    def params_m(self) -> float:
        """Parameters of the folded form, in millions."""
        return self.params / 1e6

    def step_macs(self, batch_size: int) -> int:
        """Multiply-accumulates of one training step: the batch, and folding with its backward (twice the forward)."""
        return self.train_macs * batch_size + 3 * self.fold_macs


@dataclass
class _Count:
    """Adds up the operators of a part."""

    params: int = 0
    params_training: int = 0
    macs: int = 0
    elementwise_macs: int = 0
    backward_macs: int = 0
    fold_macs: int = 0

    def linear(
        self, inputs: int, outputs: int, positions: int = 1, *, bias: bool = True, kernel: int = 1, input_gradient: bool = True
    ) -> None:
        """A linear layer or an ordinary k×k convolution applied at a number of positions."""
        weights = inputs * outputs * kernel * kernel
        self.weights(weights + bias * outputs)
        self._products(weights * positions, 1 + input_gradient)

    def depthwise(self, channels: int, positions: int, kernel: int) -> None:
        """A depthwise k×k convolution with bias."""
        self.weights(channels * (kernel * kernel + 1))
        self._products(channels * kernel * kernel * positions, 2)

    def attend(self, queries: int, keys: int, width: int, heads: int) -> None:
        """Scores, their scaling, and their product with the values; each has two factors that need a gradient."""
        self._products(2 * queries * keys * width, 2)
        self.elementwise(queries * keys * heads)

    def elementwise(self, elements: int) -> None:
        """A product of every element with a factor that needs a gradient too."""
        self.elementwise_macs += elements
        self._products(elements, 2)

    def weights(self, count: int) -> None:
        """Parameters that no operator above brings."""
        self.params += count
        self.params_training += count

    def _products(self, macs: int, gradients: int) -> None:
        self.macs += macs
        self.backward_macs += macs * gradients

    def part(self, name: str) -> Part:
        """What was added up."""
        return Part(name, **asdict(self))


@lru_cache(maxsize=4096)
def cost(spec: ModelSpec) -> Cost:
    """The cost of a spec, per part and in total."""
    size = spec.input_size
    half = len(spec.depths) // 2
    parts = [_embedding(spec), _conditions(spec)]
    for index, stage in enumerate(spec.stages):
        if index > half:
            parts.append(_up(spec, stage))
        parts.append(_stage(stage))
        if index < half:
            parts.append(_down(stage))
    last = spec.stages[-1].width
    out = _Count()
    out.linear(last, last, size * size, kernel=3)
    out.linear(last, 2 * last)
    out.elementwise(last * size * size)
    out.linear(last, spec.out_channels, size * size, kernel=3)
    return Cost((*parts, out.part("output")))


def _embedding(spec: ModelSpec) -> Part:
    count = _Count()
    # The images need no gradient, so the first convolution has only its weights'.
    count.linear(spec.in_channels, spec.channels, spec.input_size**2, kernel=3, input_gradient=False)
    return count.part("embedding")


def _conditions(spec: ModelSpec) -> Part:
    count = _Count()
    for level in range(spec.levels):
        width = spec.width_at(level)
        count.linear(TIME_SINUSOIDS, width, input_gradient=False)
        count.linear(width, width)
        count.weights((spec.num_classes + spec.null_class) * width)
    return count.part("conditions")


def _down(stage: Stage) -> Part:
    count = _Count()
    count.linear(stage.width, stage.width // 2, stage.resolution**2, kernel=3, bias=False)
    return count.part(f"down-{stage.level + 1}")


def _up(spec: ModelSpec, stage: Stage) -> Part:
    """Upsampling into a decoder stage, and the skip's 1×1 convolution."""
    count = _Count()
    below = spec.width_at(stage.level + 1)
    upsampled, skipped = below // 2, spec.width_at(stage.level)
    count.linear(below, 2 * below, (stage.resolution // 2) ** 2, kernel=3, bias=False)
    count.linear(upsampled + skipped, stage.width, stage.resolution**2)
    return count.part(f"up-{stage.level + 1}")


def _stage(stage: Stage) -> Part:
    count = _Count()
    for _ in range(stage.layers):
        count.linear(stage.width, 6 * stage.width)
        # Scale and gate, around the attention and around the feed-forward.
        count.elementwise(4 * stage.width * stage.resolution**2)
        _attention(count, stage)
        _feed_forward(count, stage)
    return count.part(stage.name)


def _attention(count: _Count, stage: Stage) -> None:
    width, positions = stage.width, stage.resolution**2
    factor = stage.factor or 1
    if stage.downsampler in ("dwconv", "dwconv-shortcut"):
        count.depthwise(width, positions, stage.kernel or 1)
    elif stage.downsampler == "conv":
        count.linear(width, width, positions, kernel=stage.kernel or 1)
    count.linear(width, 3 * width, positions)
    # Groups of positions / factor² tokens, or every query over positions / factor² keys: the same products.
    keys = positions // factor**2
    count.attend(positions, keys, width, stage.heads)
    if stage.position == "rope2d":
        # One complex product for two channels, of the queries and of the keys.
        count.elementwise((positions + (keys if stage.tokens == "key-value" else positions)) * width // 2)
    if stage.similarity == "cosine":
        count.weights(stage.heads)
    count.linear(width, width, positions)


def _feed_forward(count: _Count, stage: Stage) -> None:
    width, hidden, positions = stage.width, stage.hidden, stage.resolution**2
    count.linear(width, hidden, positions)
    if stage.feed_forward == "conv":
        count.depthwise(hidden, positions, 5)
    count.linear(hidden, width, positions)
    if stage.reparam:
        # In place of each 1×1 two stacked ones with hidden / 2 channels between; beside the 5×5 a 3×3 and a 1×1, with biases.
        middle = hidden // 2
        stacked = (width * middle + middle + middle * hidden + hidden) + (hidden * middle + middle + middle * width + width)
        single = (width * hidden + hidden) + (hidden * width + width)
        branches = hidden * (9 + 1) + hidden * (1 + 1)
        count.params_training += stacked - single + branches
        # Weights, and the inner bias carried through the outer matrix.
        count.fold_macs += hidden * middle * (width + 1) + width * middle * (hidden + 1)
