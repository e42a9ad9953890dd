"""Initial values as in the authors' code, drawn per parameter from its name."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

TABLE_STD = 0.02
"""Standard deviation of label tables and timestep layers."""
ZERO = ("modulation.", "prediction.")
"""Parts of the names of parameters that start at zero: adaLN outputs and the last convolution."""


def init_weights(model: nn.Module, seed: int) -> None:
    """Fill a model's parameters in place.

    The values are those of U-DiT's code, after DiT's. Weights are Xavier-uniform by torch's fan rule on the stored tensor, for the
    embedding on the flattened matrix. Biases, all adaLN outputs and the last convolution are 0. Label tables and timestep layers
    are N(0, 0.02). The log scale of the similarity keeps its ln 10. Every parameter has a random stream keyed by its name.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(_seed(seed, name))
            if name.endswith("log_scale"):
                continue
            if name.endswith("bias") or any(part in f"{name}." for part in ZERO):
                parameter.zero_()
            elif ".labels." in name or ".time_in." in name or ".time_out." in name:
                parameter.copy_(torch.empty_like(parameter).normal_(0, TABLE_STD, generator=generator))
            else:
                _xavier(parameter.flatten(1) if name == "embedding.weight" else parameter, generator)


def _xavier(weight: Tensor, generator: torch.Generator) -> None:
    field = math.prod(weight.shape[2:])
    bound = math.sqrt(6.0 / ((weight.shape[0] + weight.shape[1]) * field))
    # Drawn in the plain memory order, so that the values do not depend on how the parameter is laid out.
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/initial/{name}".encode()).digest()[:8]) >> 1
