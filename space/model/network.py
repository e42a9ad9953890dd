"""The network of a spec: U-DiT (Tian et al., NeurIPS 2024, Figure 3), DiT (Peebles & Xie, ICCV 2023), and mixtures of them."""

from __future__ import annotations

import copy
from typing import assert_never

import torch
from torch import Tensor, nn

from space.model.block import Blocks
from space.model.condition import ConditionEmbedder, sinusoids
from space.model.feed_forward import ReparamConvFeedForward
from space.model.initial import init_weights
from space.model.kernels import modulated_norm
from space.model.layout import Convolution, Down, Up
from space.model.modulation import FACTORS
from space.model.patches import patchify, sincos, unpatchify
from space.spec import ModelSpec

GUIDED_CHANNELS = 3
"""The code of both papers guides the first three output channels and leaves the others as predicted."""


class Network(nn.Module):
    """A diffusion transformer, U-shaped or isotropic, in the form that is trained; see `build`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        stages, bottleneck = spec.stages, spec.levels - 1
        self.embedding = _end(spec, spec.in_channels * spec.patch**2, spec.channels)
        self.register_buffer("places", _positions(spec), persistent=False)
        self.conditions = nn.ModuleList(
            ConditionEmbedder(spec.width_at(level), spec.num_classes, spec.null_class) for level in range(spec.levels)
        )
        self.level_modulation = nn.ModuleList()
        if spec.modulation == "level":
            widths = [spec.width_at(level) for level in range(spec.levels)]
            self.level_modulation.extend(nn.Linear(width, FACTORS * width) for width in widths)
        self.stages = nn.ModuleDict({s.name: Blocks(s) for s in stages})
        self.down = nn.ModuleList(Down(s.width) for s in stages[:bottleneck])
        self.up = nn.ModuleDict()
        self.skip = nn.ModuleDict()
        for stage in stages[bottleneck + 1 :]:
            self.up[stage.name] = Up(spec.width_at(stage.level + 1))
            # The upsampled and the skipped feature maps are equally wide.
            skipped = spec.width_at(stage.level)
            self.skip[stage.name] = nn.Linear(skipped if spec.skip == "add" else 2 * skipped, stage.width)
        last = stages[-1].width
        self.out = Convolution(last, last, 3) if spec.stem == "conv" else nn.Identity()
        self.out_modulation = nn.Linear(last, 2 * last)
        self.prediction = _end(spec, last, spec.out_channels * spec.patch**2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict from noisy x (N, C, H, W), timesteps t (N,) and labels y (N,): (N, C or 2C, H, W)."""
        spec, bottleneck = self.spec, self.spec.levels - 1
        waves = sinusoids(t).to(x.dtype)
        conditions = [condition(waves, y) for condition in self.conditions]
        modulations = conditions
        if self.level_modulation:
            modulations = [shared(c) for shared, c in zip(self.level_modulation, conditions, strict=True)]
        h = self.embedding(patchify(x, spec.patch))
        if self.places is not None:
            h = h + self.places.to(h.dtype)
        skips: list[Tensor] = []
        for index, stage in enumerate(spec.stages):
            if index > bottleneck:
                up, skipped = self.up[stage.name](h), skips.pop()
                h = self.skip[stage.name](_join(spec, up, skipped))
            h = self.stages[stage.name](h, modulations[stage.condition])
            if index < bottleneck:
                skips.append(h)
                h = self.down[index](h)
        shift, scale = self.out_modulation(conditions[spec.stages[-1].condition])[:, None, None].chunk(2, dim=-1)
        return unpatchify(self.prediction(modulated_norm(self.out(h), shift, scale)), spec.patch)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, scale: float, channels: int | None = GUIDED_CHANNELS) -> Tensor:
        """Predict with classifier-free guidance on a doubled batch: labels in the first half, null labels in the second.

        Args:
            x: Noisy inputs (2N, C, H, W), of which only the first half is read, and used for both.
            t: Timesteps (2N,).
            y: Labels (2N,).
            scale: The guidance scale; 1 is none.
            channels: Leading output channels that are guided, 3 in both papers; None guides all channels of the noise.

        Returns:
            Both halves, guided alike, (2N, C or 2C, H, W); other channels are as predicted.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        guided = self.spec.in_channels if channels is None else channels
        conditional, unconditional = out[:, :guided].chunk(2)
        mixed = unconditional + scale * (conditional - unconditional)
        return torch.cat([torch.cat([mixed, mixed]), out[:, guided:]], dim=1)

    def folded(self) -> Network:
        """A copy in eval mode with every re-parameterised weight folded; the model itself is unchanged."""
        model = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ReparamConvFeedForward):
                    setattr(module, name, child.plain().requires_grad_(False))
        return model


def _end(spec: ModelSpec, inputs: int, outputs: int) -> nn.Module:
    """The first or last layer: a 3×3 convolution over patches, or a linear layer patch by patch."""
    match spec.stem:
        case "conv":
            return Convolution(inputs, outputs, 3)
        case "linear":
            return nn.Linear(inputs, outputs)
        case _:
            assert_never(spec.stem)


def _positions(spec: ModelSpec) -> Tensor | None:
    """The fixed embedding that is added to the patches, (grid, grid, C); None for none."""
    match spec.absolute_position:
        case "none":
            return None
        case "sincos":
            return sincos(spec.grid, spec.channels)
        case _:
            assert_never(spec.absolute_position)


def _join(spec: ModelSpec, up: Tensor, skipped: Tensor) -> Tensor:
    """The upsampled and the skipped feature map (N, H, W, C) as one (N, H, W, C or 2C)."""
    match spec.skip:
        case "concat":
            return torch.cat([up, skipped], dim=-1)
        case "add":
            return up + skipped
        case _:
            assert_never(spec.skip)


def build(spec: ModelSpec, seed: int = 0) -> Network:
    """The model of a spec in training form, with the paper's initial values drawn from `seed`.

    Two models have equal initial values wherever name and shape of a parameter are equal, whatever else differs.
    """
    model = Network(spec)
    init_weights(model, seed)
    return channels_last(model)


def channels_last(model: Network) -> Network:
    """The model itself, with its convolution kernels in the memory order that channels-last feature maps need."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
