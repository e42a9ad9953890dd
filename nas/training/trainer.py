"""Trains one model with the papers' recipe and paired random streams; resuming is bit-exact on a CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
"""Steps between two checks that the loss is finite; each check waits for the device."""


class DivergedError(ToolkitError):
    """The training loss or the validation loss is not finite."""


@dataclass(frozen=True)
class Decay:
    """A linear fall of the learning rate to 0, from step `first` to step `end` (warm-up-stable-decay, Hu et al. 2024)."""

    first: int
    end: int

    def share(self, step: int) -> float:
        """The multiplier of the learning rate at a step, counted from 0."""
        return 1.0 if step < self.first else max(0.0, (self.end - step) / (self.end - self.first))


class Trainer:
    """A model in training: parameters, their moving averages, optimizer and step.

    The optimizer is AdamW with betas (0.9, 0.999), both papers' recipe. The learning rate is constant, except for a warm-up and, at
    the end of a full budget, a decay. Every random draw comes from `TrainingStream`, so `tensors()` and the step are the state.

    `hidden_rate` is the learning rate of the parameters of `is_hidden_matrix` as a multiple of the others'. µP's rule for Adam asks
    for one in inverse proportion to the width (Yang et al., Tensor Programs V, arXiv 2203.03466, Table 3). What a step takes from
    their weights by weight decay, rate × decay, stays the same.

    Attributes:
        ema_models: The moving average (EMA) of the weights for every decay.
        ema: The first of them, by which the model is judged.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int,
        settings: TrainingSettings,
        feed: Feed,
        decay: Decay | None = None,
        hidden_rate: float = 1.0,
    ) -> None:
        device = feed.device
        self.spec, self.settings, self.feed, self.device, self.decay = spec, settings, feed, device, decay
        self.prediction = prediction(settings.prediction)
        self.model = build(spec, seed).to(device)
        self.ema_models: dict[float, Network] = {
            decay: copy.deepcopy(self.model).eval().requires_grad_(False) for decay in settings.ema
        }
        self.ema = self.ema_models[settings.ema[0]]
        # The fused kernel exists for these device types only.
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, settings, hidden_rate),
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
            # TF32 has float32's range with 10 bits of mantissa; set it for matrix products and convolutions together.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        self.step = 0

    def train_to(self, step: int) -> float:
        """Train up to a step.

        Args:
            step: The number of steps after which to stop, counted from the start of training.

        Returns:
            The mean training loss of the steps of this call; 0 when there were none.

        Raises:
            DivergedError: If the loss is not finite; checked every `FINITE_CHECK_STEPS` steps and at the end.
        """
        total, steps = torch.zeros((), device=self.device), 0
        while self.step < step:
            total += self._train_step()
            self.step += 1
            steps += 1
            if (self.step % FINITE_CHECK_STEPS == 0 or self.step == step) and not math.isfinite(total.item()):
                raise DivergedError(f"diverged: the training loss is {total.item()} by step {self.step}")
        return total.item() / steps if steps else 0.0

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
            group["lr"] = self.settings.learning_rate * group["rate"] * self.lr_multiplier()
        self.optimizer.step()
        self._update_ema()
        return loss.detach()

    def lr_multiplier(self) -> float:
        """The multiplier of the learning rate at the present step; it depends on the step only."""
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
        """The state of training without the step, on the CPU: `model.*`, `ema-DECAY.*`, and AdamW's `exp_avg.*`, `exp_avg_sq.*`."""
        state: dict[str, Tensor] = {}
        for part, module in self._parts().items():
            state |= {f"{part}.{name}": value for name, value in module.named_parameters()}
        for name, parameter, moments in self._moments():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(parameter))
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the state of `tensors()` at a step; raises ToolkitError when it belongs to another architecture."""
        expected = self.tensors()
        if {n: v.shape for n, v in expected.items()} != {n: v.shape for n, v in tensors.items()}:
            raise ToolkitError("the checkpoint belongs to another architecture; remove it to train the trial anew")
        with torch.no_grad():
            for part, module in self._parts().items():
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"{part}.{name}"])
        for name, parameter, _ in self._moments():
            self.optimizer.state[parameter] = {
                # The fused kernel needs the moments in the same memory order as the parameter.
                moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"])
                for moment in ("exp_avg", "exp_avg_sq")
            } | {"step": torch.tensor(float(step), device=self.device)}
        self.step = step

    def _parts(self) -> dict[str, Network]:
        return {"model": self.model} | {ema_name(decay): ema for decay, ema in self.ema_models.items()}

    def _moments(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, self.optimizer.state.get(parameter, {})


INPUTS = ("embedding.", ".time_in.", ".labels.")
"""Parts of the names of layers whose inputs do not grow with the width: images, sinusoids and labels."""


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix that sums over as many inputs as the model is wide, or proportionally many.

    These are the linear layers and convolutions behind the input layers, adaLN's and the last one included. Others are biases,
    scales, input layers and depthwise kernels, which sum over a window of one channel.
    """
    return parameter.ndim > 1 and parameter.shape[1] > 1 and not any(part in name for part in INPUTS)


def _groups(model: Network, settings: TrainingSettings, hidden_rate: float) -> list[dict[str, Any]]:
    """The parameters by their learning rate, `rate` × the study's; a single group where all have the same."""
    if hidden_rate == 1.0:
        return [{"params": list(model.parameters()), "rate": 1.0}]
    by_kind: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        by_kind[is_hidden_matrix(name, parameter)].append(parameter)
    hidden = {"params": by_kind[True], "rate": hidden_rate, "weight_decay": settings.weight_decay / hidden_rate}
    return [{"params": by_kind[False], "rate": 1.0}, hidden]


def ema_name(decay: float) -> str:
    """The name of a decay's moving average in a checkpoint."""
    return f"ema-{float(decay)!r}"


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
