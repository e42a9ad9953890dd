"""Training one model: the papers' recipe, paired random streams, a continuation that is bit-exact on a CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.data.feed import Feed
from nas.diffusion.prediction import prediction
from nas.rng import TrainingStream
from nas.study.settings import TrainingSettings
from space.errors import ToolkitError
from space.model.network import Network, build
from space.spec import ModelSpec

FINITE_CHECK_STEPS = 50
"""Reading the loss waits for the device, so it is looked at only this often."""


class DivergedError(ToolkitError):
    """The training loss is no longer a number."""


@dataclass(frozen=True)
class Decay:
    """The learning rate falls linearly to 0 from one step to another (warm-up-stable-decay, Hu et al. 2024)."""

    first: int
    end: int

    def share(self, step: int) -> float:
        """The share of the full rate at a step, counted from 0."""
        return 1.0 if step < self.first else max(0.0, (self.end - step) / (self.end - self.first))


class Trainer:
    """A model in training: parameters, their moving averages, optimizer and step.

    AdamW with betas (0.9, 0.999) (both papers' recipe), at a rate that is constant but for a warm-up and, at the end of a whole
    budget, a decay. Every random draw comes from `TrainingStream`, so the state to continue from is just `tensors()` and the step.
    `ema_models` holds the moving average of every decay; `ema` is the first, by which the model is judged.
    """

    def __init__(self, spec: ModelSpec, seed: int, settings: TrainingSettings, feed: Feed, decay: Decay | None = None) -> None:
        device = feed.device
        self.spec, self.settings, self.feed, self.device, self.decay = spec, settings, feed, device, decay
        self.prediction = prediction(settings.prediction)
        self.model = build(spec, seed).to(device)
        self.ema_models: dict[float, Network] = {
            decay: copy.deepcopy(self.model).eval().requires_grad_(False) for decay in settings.ema
        }
        self.ema = self.ema_models[settings.ema[0]]
        # The fused kernel needs one device type it knows.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        header = feed.store.header
        self.stream = TrainingStream(
            seed,
            len(feed),
            settings.batch_size,
            header.shape,
            self.prediction.times,
            settings.label_dropout if spec.null_class else 0.0,
            moments=header.content == "moments",
        )
        self.autocast = settings.precision == "bf16" or (settings.precision == "auto" and _has_bf16(device))
        if device.type == "cuda":
            # TF32 keeps float32's range with 10 bits of mantissa, in matrix products and convolutions alike.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        self.step = 0

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
        x0 = self.feed.latents(draw.samples, draw.mirrored if self.feed.mirrored else None, draw.posterior)
        y = torch.where(draw.dropped.to(self.device), self.spec.num_classes, self.feed.labels[draw.samples.to(self.device)])
        t, noise = draw.t.to(self.device, non_blocking=True), draw.noise.to(self.device, non_blocking=True)
        x_t = self.prediction.noised(x0, t, noise)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            out = self.model(x_t, t, y)
        loss = self.prediction.loss(out.float(), x0, x_t, t, noise).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.lr_multiplier()
        self.optimizer.step()
        self._update_ema()
        return loss.detach()

    def lr_multiplier(self) -> float:
        """The share of the learning rate at the present step; what came before or comes after does not matter."""
        warmup = min(1.0, (self.step + 1) / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        return warmup * (self.decay.share(self.step) if self.decay else 1.0)

    @torch.no_grad()
    def _update_ema(self) -> None:
        for decay, ema in self.ema_models.items():
            if self.settings.ema_warmup:
                decay = min(decay, (1 + self.step) / (10 + self.step))
            for averaged, parameter in zip(ema.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(parameter, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training has changed but the step: `model.`, `ema-DECAY.`, and AdamW's two moments, on the CPU."""
        state: dict[str, Tensor] = {}
        for part, module in self._parts().items():
            state |= {f"{part}.{name}": value for name, value in module.named_parameters()}
        for name, parameter, moments in self._moments():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(parameter))
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from `tensors()` as they were at a step; raises ToolkitError when they belong to another model."""
        expected = self.tensors()
        if {n: v.shape for n, v in expected.items()} != {n: v.shape for n, v in tensors.items()}:
            raise ToolkitError("the checkpoint belongs to another architecture; remove it to train the trial anew")
        with torch.no_grad():
            for part, module in self._parts().items():
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"{part}.{name}"])
        for name, parameter, _ in self._moments():
            self.optimizer.state[parameter] = {
                # Same memory order as the parameter: the fused kernel walks both together.
                moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"])
                for moment in ("exp_avg", "exp_avg_sq")
            } | {"step": torch.tensor(float(step), device=self.device)}
        self.step = step

    def _parts(self) -> dict[str, Network]:
        return {"model": self.model} | {ema_name(decay): ema for decay, ema in self.ema_models.items()}

    def _moments(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, self.optimizer.state.get(parameter, {})


def ema_name(decay: float) -> str:
    """How a checkpoint calls the moving average of a decay."""
    return f"ema-{float(decay)!r}"


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
