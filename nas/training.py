"""Training one model: the papers' recipe, paired random streams, a continuation that is bit-exact on a CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nas.data.sources import Split
from nas.diffusion import GaussianDiffusion
from nas.streams import TrainingStream
from nas.study import TrainingSettings
from space.errors import NasError
from space.model.network import Network, build
from space.spec import ModelSpec

FINITE_CHECK_STEPS = 50
"""Reading the loss waits for the device, so it is looked at only this often."""


class DivergedError(NasError):
    """The training loss is no longer a number."""


class Training:
    """A model in training: parameters, their moving average, optimizer and step.

    AdamW with betas (0.9, 0.999) at a constant rate, on loss = MSE + VB (both papers' recipe). Every random draw comes from
    `TrainingStream`, so the state to continue from is just `tensors()` and the step.
    """

    def __init__(self, spec: ModelSpec, seed: int, settings: TrainingSettings, data: Split, device: torch.device) -> None:
        self.spec, self.settings, self.device = spec, settings, device
        self.model = build(spec, seed).to(device)
        self.average: Network = copy.deepcopy(self.model).eval().requires_grad_(False)
        # The fused kernel needs one device type it knows.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.diffusion = GaussianDiffusion()
        self.latents, self.labels = torch.from_numpy(data.latents), torch.from_numpy(data.labels)
        shape = tuple(self.latents.shape[1:])
        self.stream = TrainingStream(seed, len(data), settings.batch_size, shape, self.diffusion.steps, self._dropout())
        self.autocast = settings.precision == "bf16" or (settings.precision == "auto" and _has_bf16(device))
        self.step = 0

    def _dropout(self) -> float:
        return self.settings.label_dropout if self.spec.null_class else 0.0

    def train_to(self, step: int) -> float:
        """Train until `step` steps have been done and return the mean training loss on the way; 0 when there is nothing to do.

        Raises DivergedError as soon as a loss that is not finite is seen.
        """
        total, seen = torch.zeros((), device=self.device), 0
        while self.step < step:
            total += self._train_step()
            self.step += 1
            seen += 1
            if (self.step % FINITE_CHECK_STEPS == 0 or self.step == step) and not math.isfinite(total.item()):
                raise DivergedError(f"diverged: the training loss is {total.item()} by step {self.step}")
        return total.item() / seen if seen else 0.0

    def _train_step(self) -> Tensor:
        draw = self.stream.draw(self.step)
        x0 = self.latents[draw.rows].to(self.device, non_blocking=True)
        y = torch.where(draw.dropped, self.spec.num_classes, self.labels[draw.rows]).to(self.device, non_blocking=True)
        t, noise = draw.t.to(self.device, non_blocking=True), draw.noise.to(self.device, non_blocking=True)
        x_t = self.diffusion.q_sample(x0, t, noise)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            out = self.model(x_t, t, y)
        loss = self.diffusion.loss_terms(out.float(), x0, x_t, t, noise).loss.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._update_average()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = self.settings.ema
        if self.settings.ema_warmup:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training has changed but the step: `model.`, `average.`, and AdamW's two moments, on the CPU."""
        parts: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        state: dict[str, Tensor] = {}
        for part, module in parts.items():
            state |= {f"{part}.{name}": value for name, value in module.named_parameters()}
        for name, parameter, moments in self._moments():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(parameter))
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from `tensors()` as they were at a step; raises NasError when they belong to another model."""
        expected = self.tensors()
        if {n: v.shape for n, v in expected.items()} != {n: v.shape for n, v in tensors.items()}:
            raise NasError("the checkpoint belongs to another architecture; remove it to train the trial anew")
        with torch.no_grad():
            for part, module in {"model": self.model, "average": self.average}.items():
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"{part}.{name}"])
        for name, parameter, _ in self._moments():
            self.optimizer.state[parameter] = {
                # Same memory order as the parameter: the fused kernel walks both together.
                moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"])
                for moment in ("exp_avg", "exp_avg_sq")
            } | {"step": torch.tensor(float(step), device=self.device)}
        self.step = step

    def _moments(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, self.optimizer.state.get(parameter, {})


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
