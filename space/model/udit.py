"""The U-DiT of a spec (Tian et al., NeurIPS 2024, Figure 3)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from space.model.condition import Condition, sinusoids
from space.model.feed_forward import ReparamConvFeedForward
from space.model.initial import initialise
from space.model.layer import Layers, modulated_norm
from space.model.layout import Convolution, Down, Up, from_convolution, to_convolution
from space.spec import ModelSpec

GUIDED_CHANNELS = 3
"""Both papers' code guides the first three output channels and leaves the rest as predicted."""


class UDiT(nn.Module):
    """A U-shaped diffusion transformer in the form that is trained; see `build`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        stages, bottleneck = spec.stages, spec.levels - 1
        self.embedding = Convolution(spec.in_channels, spec.channels, 3)
        self.conditions = nn.ModuleList(
            Condition(spec.width_at(level), spec.num_classes, spec.null_class) for level in range(spec.levels)
        )
        self.stages = nn.ModuleDict({s.name: Layers(s) for s in stages})
        self.down = nn.ModuleList(Down(s.width) for s in stages[:bottleneck])
        self.up = nn.ModuleDict()
        self.skip = nn.ModuleDict()
        for stage in stages[bottleneck + 1 :]:
            below = spec.width_at(stage.level + 1)
            self.up[stage.name] = Up(below)
            self.skip[stage.name] = nn.Linear(below // 2 + spec.width_at(stage.level), stage.width)
        last = stages[-1].width
        self.out = Convolution(last, last, 3)
        self.out_modulation = nn.Linear(last, 2 * last)
        self.prediction = Convolution(last, spec.out_channels, 3)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict from noisy x (N, C, H, W), timesteps t (N,) and labels y (N,): (N, C or 2C, H, W)."""
        waves = sinusoids(t).to(x.dtype)
        conditions = [condition(waves, y) for condition in self.conditions]
        h = self.embedding(from_convolution(x))
        skips: list[Tensor] = []
        bottleneck = self.spec.levels - 1
        for index, stage in enumerate(self.spec.stages):
            if index > bottleneck:
                h = self.skip[stage.name](torch.cat([self.up[stage.name](h), skips.pop()], dim=-1))
            h = self.stages[stage.name](h, conditions[stage.condition])
            if index < bottleneck:
                skips.append(h)
                h = self.down[index](h)
        shift, scale = self.out_modulation(conditions[self.spec.stages[-1].condition])[:, None, None].chunk(2, dim=-1)
        return to_convolution(self.prediction(modulated_norm(self.out(h), shift, scale)))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, scale: float, channels: int | None = GUIDED_CHANNELS) -> Tensor:
        """Classifier-free guidance on a doubled batch: labels first, null labels second.

        Only the first half of x is read, and used for both. Returns both halves, guided alike: (2N, C or 2C, H, W).
        Guidance acts on the first `channels` outputs (3 in both papers; None: all channels of the noise), the rest
        passes.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        guided = self.spec.in_channels if channels is None else channels
        conditional, unconditional = out[:, :guided].chunk(2)
        mixed = unconditional + scale * (conditional - unconditional)
        return torch.cat([torch.cat([mixed, mixed]), out[:, guided:]], dim=1)

    def folded(self) -> UDiT:
        """A copy in eval mode with every re-parameterised weight folded; the model itself is left as it is."""
        model = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ReparamConvFeedForward):
                    setattr(module, name, child.plain().requires_grad_(False))
        return model


def build(spec: ModelSpec, seed: int = 0) -> UDiT:
    """The model of a spec in training form, with the paper's initial values drawn from `seed`.

    Two models have equal initial values wherever name and shape of a parameter are equal, whatever else differs.
    """
    model = UDiT(spec)
    initialise(model, seed)
    # Convolution kernels in the memory order that channels-last feature maps need.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
