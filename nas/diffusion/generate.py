"""Images from a model: guided sampling, every image from random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nas.diffusion.prediction import Epsilon, Prediction
from nas.diffusion.samplers import Denoiser, sampler_named
from nas.rng import stream
from space.errors import ToolkitError
from space.model.network import Network


@torch.inference_mode()
def sample(
    model: Network,
    labels: Sequence[int],
    *,
    prediction: Prediction | None = None,
    sampler: str | None = None,
    steps: int = 50,
    guidance: float = 1.0,
    guided_channels: int | None = 3,
    bound: float | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Latents (N, C, H, W), one a label, drawn in some steps of a sampler from a model in eval mode.

    `prediction` is what the model was trained for (epsilon by default), `sampler` one that fits it (ddim, or heun for a flow,
    by default). `guidance` 1 is none; it acts on the first `guided_channels` (3 in both papers; None: all). `bound` clips the
    predicted x0, for data whose range is known. Image i depends on (seed, first + i) and its label alone, not on the others.
    Raises ToolkitError for a label out of range, for guidance of a model without a null class, and for a sampler or a number of
    steps that does not fit.
    """
    prediction = prediction or Epsilon()
    spec = model.spec
    wrong = [label for label in labels if not 0 <= label < spec.num_classes]
    if wrong:
        raise ToolkitError(f"class {wrong[0]} does not exist; the model has classes 0 to {spec.num_classes - 1}")
    if guidance != 1 and not spec.null_class:
        raise ToolkitError("the model has no null class, so it cannot be guided; use a guidance of 1")
    _, draw = sampler_named(sampler, prediction)
    device = next(model.parameters()).device
    shape = (spec.in_channels, spec.input_size, spec.input_size)
    pieces = []
    for begin in range(0, len(labels), batch_size):
        y = torch.tensor(labels[begin : begin + batch_size], device=device)
        streams = [stream(seed, "sample noise", first + begin + i) for i in range(len(y))]

        def noise(streams: list[torch.Generator] = streams) -> Tensor:
            return torch.stack([torch.randn(shape, generator=generator) for generator in streams]).to(device)

        def predict(x: Tensor, t: Tensor, y: Tensor = y) -> Tensor:
            return _guided(model, x, t, y, guidance, guided_channels)

        try:
            pieces.append(draw(Denoiser(prediction, predict, noise, bound), noise(), steps).cpu())
        except ValueError as error:
            raise ToolkitError(str(error)) from None
    return torch.cat(pieces)


def _guided(model: Network, x: Tensor, t: Tensor, y: Tensor, guidance: float, guided_channels: int | None) -> Tensor:
    if guidance == 1:
        plain: Tensor = model(x, t, y)
        return plain
    null = torch.full_like(y, model.spec.num_classes)
    both = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), guidance, guided_channels)
    return both[: len(x)]
