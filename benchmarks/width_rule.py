"""The best learning rate over four widths, with `training.width_rule: inverse` and without.

A small transformer of each width is trained on the embedded images at seven rates, 60 steps each. Printed are the validation
losses, the best rate, and the largest one that still learns. About two minutes on one core.
"""

from __future__ import annotations

import numpy as np
import torch

from nas.data.feed import Feed
from nas.data.settings import DataSettings
from nas.data.sources import open_data
from nas.evaluation.validation import ValidationGrid
from nas.study.settings import TrainingSettings, ValLossSettings
from nas.training.trainer import DivergedError, Trainer
from space import preset

WIDTHS = (32, 64, 128, 256)
"""The first is the reference."""

EXPONENTS = range(-10, -3)
"""Of the rates, which are powers of two."""

STEPS, IMAGES = 60, 128

LEARNS = 0.98
"""A loss below this is learning: a model that predicts nothing has one of 1."""

SMALL = {
    "depths": (1,),
    "block_layers": 1,
    "heads": 2,
    "stem": "linear",
    "patch": 4,
    "attention.tokens": "all",
    "attention.similarity": "dot",
    "feed_forward.kind": "mlp",
    "in_channels": 16,
    "input_size": 8,
    "num_classes": 10,
}


def loss(width: int, rate: float, rule: bool, feed: Feed, validation: Feed) -> float:
    """The validation loss after `STEPS` steps; infinite where training diverged."""
    settings = TrainingSettings(batch_size=16, learning_rate=rate, ema=(0.0,), warmup_steps=10)
    spec = preset("u-dit-toy").replace({**SMALL, "channels": width})
    trainer = Trainer(spec, 0, settings, feed, hidden_rate=WIDTHS[0] / width if rule else 1.0)
    try:
        trainer.train_to(STEPS)
    except DivergedError:
        return float("inf")
    return ValidationGrid(validation, ValLossSettings(images=IMAGES), trainer.prediction).loss(trainer.ema, 2 * IMAGES).mean


def main() -> None:
    """Print a table per rule."""
    torch.set_num_threads(1)
    data, cpu = open_data(DataSettings(source="fashion-mnist-10k", codec="pixel-unshuffle-4")), torch.device("cpu")
    feeds = Feed(data.train, cpu, False), Feed(data.validation, cpu, resident=False)
    print("| rule | width |", " | ".join(f"2^{power}" for power in EXPONENTS), "| best | largest that learns |")
    for rule in (False, True):
        # At the reference width both rules are the same.
        for width in WIDTHS[rule:]:
            losses = [loss(width, 2.0**power, rule, *feeds) for power in EXPONENTS]
            best = EXPONENTS[int(np.argmin(losses))]
            learns = [power for power, value in zip(EXPONENTS, losses, strict=True) if value < LEARNS]
            cells = [f"{value:.3f}" for value in losses]
            ends = [f"2^{best}", f"2^{learns[-1]}" if learns else "none"]
            print("|", " | ".join(["inverse" if rule else "none", str(width), *cells, *ends]), "|", flush=True)


if __name__ == "__main__":
    main()
