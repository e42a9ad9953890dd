"""Images from a model: deterministic DDIM with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nas.diffusion import GaussianDiffusion
from nas.streams import stream
from space.errors import NasError
from space.model.network import Network


@torch.inference_mode()
def sample(
    model: Network,
    labels: Sequence[int],
    *,
    steps: int = 50,
    guidance: float = 1.0,
    guided_channels: int | None = 3,
    bound: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Latents (N, C, H, W), one a label, drawn by `steps` DDIM steps (Song et al. 2021) from a model in eval mode.

    `guidance` 1 is none; it acts on the first `guided_channels` (3 in both papers; None: all). `bound` clips the
    predicted x0, for data whose range is known. Image i depends on (seed, i) and its label alone, not on the others.
    Raises NasError for a label out of range, or for guidance of a model without a null class.
    """
    spec = model.spec
    wrong = [label for label in labels if not 0 <= label < spec.num_classes]
    if wrong:
        raise NasError(f"class {wrong[0]} does not exist; the model has classes 0 to {spec.num_classes - 1}")
    if guidance != 1 and not spec.null_class:
        raise NasError("the model has no null class, so it cannot be guided; use a guidance of 1")
    try:
        process = GaussianDiffusion().respaced(steps)
    except ValueError as error:
        raise NasError(str(error)) from None
    device = next(model.parameters()).device
    shape = (spec.in_channels, spec.input_size, spec.input_size)
    pieces = []
    for first in range(0, len(labels), batch_size):
        y = torch.tensor(labels[first : first + batch_size], device=device)
        noise = torch.stack([torch.randn(shape, generator=stream(seed, "sample noise", first + i)) for i in range(len(y))])
        pieces.append(_ddim(model, process, noise.to(device), y, guidance, guided_channels, bound).cpu())
    return torch.cat(pieces)


def _ddim(
    model: Network,
    process: GaussianDiffusion,
    x: Tensor,
    y: Tensor,
    guidance: float,
    guided_channels: int | None,
    bound: float | None,
) -> Tensor:
    for step in reversed(range(process.steps)):
        i = torch.full((len(x),), step, device=x.device)
        t = torch.full((len(x),), int(process.timestep_map[step]), device=x.device)
        if guidance == 1:
            out = model(x, t, y)
        else:
            null = torch.full_like(y, model.spec.num_classes)
            out = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), guidance, guided_channels)[
                : len(x)
            ]
        x = process.ddim(out, x, i, bound)
    return x
