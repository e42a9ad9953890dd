"""What a spec costs, in closed form and without torch.

One multiply-accumulate is one operation, as in both papers, so "GFLOPs" are multiply-accumulates / 1e9. Counted are matrix products
and convolutions (the attention's two products among them) and, as in the numbers that U-DiT prints, the elementwise products:
modulation, gates, the scaling of attention scores, and RoPE's rotation. Norms, activations, softmax, additions and biases are not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache

from space.costs.formulas import cost_inputs, part_counters
from space.spec import ModelSpec


@dataclass(frozen=True)
class Part:
    """The cost of one stage or connection; whole numbers.

    The multiply-accumulates by operator are one forward pass of one sample in the folded form; `norm_elements` are the elements
    that pass a norm, which counts nothing here. `train_macs` is the forward and backward pass of one sample in the form that is
    trained, folding apart; `reparam_macs` is the folding of re-parameterised weights, once a forward pass whatever the batch.
    """

    name: str
    params: int
    params_training: int
    linear_macs: int
    convolution_macs: int
    attention_macs: int
    elementwise_macs: int
    norm_elements: int
    train_macs: int
    reparam_macs: int

    @property
    def macs(self) -> int:
        """One forward pass of one sample, folded form."""
        return self.product_macs + self.elementwise_macs

    @property
    def product_macs(self) -> int:
        """Matrix products and convolutions alone, what fvcore counts."""
        return self.linear_macs + self.convolution_macs + self.attention_macs


COST_METRICS = ("gflops", "train_gflops", "params_m")
"""The attributes of `Cost` that can be constrained, minimised or matched without training."""

SUMS = tuple(entry.name for entry in fields(Part) if entry.name != "name")


@dataclass(frozen=True)
class Cost(Part):
    """The cost of a spec: its parts, in the order of the forward pass, and their sum.

    `gflops` is the inference cost of the folded form, batch 1. `train_gflops` is what one training sample costs, forward and
    backward, folding apart, which is paid once a step: see `step_macs`.
    """

    parts: tuple[Part, ...]

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
        return self.train_macs * batch_size + 3 * self.reparam_macs


@lru_cache(maxsize=4096)
def cost(spec: ModelSpec) -> Cost:
    """The cost of a spec, per part and in total."""
    parts = tuple(Part(**asdict(counter)) for counter in part_counters(cost_inputs(spec)))
    return Cost(name="total", parts=parts, **{name: sum(getattr(part, name) for part in parts) for name in SUMS})
