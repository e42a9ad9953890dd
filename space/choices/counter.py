"""A counter of operators: parameters, multiply-accumulates, and elements that pass a norm."""

from __future__ import annotations

from dataclasses import dataclass

from space.choices.inputs import Number


@dataclass
class PartCounter:
    """Adds up the operators of a part; `space.costs.cost.Part` defines the numbers."""

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
        """Count a linear layer with bias, or a 1×1 convolution, applied at a number of positions.

        Args:
            inputs: Channels of the input.
            outputs: Channels of the output.
            positions: Positions that one layer is applied at.
            input_gradient: Whether training needs the gradient of the input.
            times: Number of equal layers.
        """
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
        """Count a k×k convolution; a depthwise one has a single input per output. A kernel of 0 means no convolution."""
        weights = inputs * outputs * kernel * kernel * times
        self.weights(weights + bias * outputs * (kernel > 0) * times)
        self.convolution_macs = self.convolution_macs + weights * positions
        self._train(weights * positions, 1 + input_gradient)

    def attend(self, queries: Number, keys: Number, width: Number, heads: Number, times: Number) -> None:
        """Count scores, their scaling, and their product with the values; each has two factors that need a gradient."""
        products = 2 * queries * keys * width * times
        self.attention_macs = self.attention_macs + products
        self._train(products, 2)
        self.elementwise(queries * keys * heads * times)

    def elementwise(self, elements: Number) -> None:
        """Count a product of every element with a factor that needs a gradient as well."""
        self.elementwise_macs = self.elementwise_macs + elements
        self._train(elements, 2)

    def norm(self, elements: Number) -> None:
        """Count a norm without affine parameters over a total number of elements."""
        self.norm_elements = self.norm_elements + elements

    def weights(self, count: Number) -> None:
        """Count parameters that the folded form and the training form both have."""
        self.params = self.params + count
        self.params_training = self.params_training + count

    def _train(self, macs: Number, gradients: int) -> None:
        """Count a forward pass, and as many multiply-accumulates for each gradient of the backward pass."""
        self.train_macs = self.train_macs + macs * (1 + gradients)
