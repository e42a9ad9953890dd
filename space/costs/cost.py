"""The cost of a spec in parameters and multiply-accumulates, in closed form and without torch.

One multiply-accumulate is one operation, as in both papers, so "GFLOPs" are multiply-accumulates / 1e9. The count covers matrix
products and convolutions, the two products of attention included, and, as in the numbers that U-DiT prints, elementwise products:
modulation, gates, the scaling of attention scores, and the rotations of RoPE. Norms, activations, softmax, additions and biases are
not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache

from space.costs.formulas import cost_inputs, part_counters
from space.spec import ModelSpec


@dataclass(frozen=True)
class Part:
    """The cost of one stage or connection, in whole numbers.

    The multiply-accumulates by operator are those of one forward pass of one sample in the folded form. `norm_elements` are the
    elements that pass a norm; they add nothing to `macs`. `train_macs` is the forward and backward pass of one sample in training
    form, without folding. `reparam_macs` is the folding of re-parameterised weights, once per forward pass at any batch size.
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
        """Multiply-accumulates of one forward pass of one sample, in the folded form."""
        return self.product_macs + self.elementwise_macs

    @property
    def product_macs(self) -> int:
        """Multiply-accumulates of matrix products and convolutions alone, as fvcore counts."""
        return self.linear_macs + self.convolution_macs + self.attention_macs


COST_METRICS = ("gflops", "train_gflops", "params_m")
"""The attributes of `Cost` that can be constrained, minimised or matched without training."""

SUMS = tuple(entry.name for entry in fields(Part) if entry.name != "name")


@dataclass(frozen=True)
class Cost(Part):
    """The cost of a spec: the sum over its parts, which are in the order of the forward pass.

    `gflops` is the inference cost of the folded form at batch 1. `train_gflops` is the forward and backward pass of one training
    sample, without folding, which is done once per step: see `step_macs`.
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
