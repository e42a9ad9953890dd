"""Guided sampling of latents from a model; each sample has random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    bar: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Latents drawn from a model in eval mode, (N, C, H, W), one per label.

    Sample i depends on (seed, first + i) and its label only, not on the other samples or the batch size.

    Args:
        model: The model.
        labels: The classes of the samples.
        prediction: The prediction that the model was trained for; epsilon by default.
        sampler: The name of a sampler that fits the prediction; by default ddim, or heun for a flow.
        steps: Steps of the sampler.
        guidance: The scale of classifier-free guidance; 1 is none.
        guided_channels: The number of leading channels that guidance acts on, 3 in both papers; None for all.
        bound: Clips the predicted x0 to ±bound, for data of known range.
        seed: The seed of the random numbers.
        first: The number of the first sample.
        batch_size: Samples per batch.
        bar: Called after each batch with the number of its samples.

    Raises:
        ToolkitError: A label is out of range, a model without a null class would be guided, or the sampler or the number of
            steps does not fit.
    """
    prediction = prediction or Epsilon()
    spec = model.spec
    unknown = [label for label in labels if not 0 <= label < spec.num_classes]
    if unknown:
        raise ToolkitError(f"class {unknown[0]} does not exist; the model has classes 0 to {spec.num_classes - 1}")
    if guidance != 1 and not spec.null_class:
        raise ToolkitError("the model has no null class, so it cannot be guided; use a guidance of 1")
    _, draw = sampler_named(sampler, prediction)
    device = next(model.parameters()).device
    shape = (spec.in_channels, spec.input_size, spec.input_size)
    batches = []
    for start in range(0, len(labels), batch_size):
        y = torch.tensor(labels[start : start + batch_size], device=device)
        streams = [stream(seed, "sample noise", first + start + i) for i in range(len(y))]

        def noise(streams: list[torch.Generator] = streams) -> Tensor:
            return torch.stack([torch.randn(shape, generator=generator) for generator in streams]).to(device)

        def predict(x: Tensor, t: Tensor, y: Tensor = y) -> Tensor:
            return _guided(model, x, t, y, guidance, guided_channels)

        try:
            batches.append(draw(Denoiser(prediction, predict, noise, bound), noise(), steps).cpu())
        except ValueError as error:
            raise ToolkitError(str(error)) from None
        bar(len(y))
    return torch.cat(batches)


def _guided(model: Network, x: Tensor, t: Tensor, y: Tensor, guidance: float, guided_channels: int | None) -> Tensor:
    if guidance == 1:
        unguided: Tensor = model(x, t, y)
        return unguided
    null = torch.full_like(y, model.spec.num_classes)
    both = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), guidance, guided_channels)
    return both[: len(x)]
