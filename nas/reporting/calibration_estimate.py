"""Estimate of a calibration before it runs: protocols, trainings and hours; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas.reporting.ablation_estimate import planned_macs
from nas.reporting.estimate import hours
from nas.reporting.text import compute, line
from nas.runs.throughput import Throughput
from nas.study.calibration import TrainingProtocol
from nas.study.study import Study


def calibration_estimate(
    study: Study,
    planned: Sequence[tuple[TrainingProtocol, Study]],
    left: Mapping[str, int],
    notes: Sequence[str],
    throughput: Throughput | None = None,
) -> str:
    """Estimate a calibration.

    Args:
        study: The study that is calibrated.
        planned: The protocols and the ablations that train them, the reference among them.
        left: By the folder of a protocol that has begun: the multiply-accumulates that are left of it.
        notes: What is left out, and why.
        throughput: The measured throughput; None leaves the hours unknown.

    Returns:
        Lines of at most 100 columns, one fact per line.
    """
    facts = [("study", f"calibration of {study.name}")]
    total, to_come, trainings = 0, 0, 0
    for protocol, made in planned:
        assert made.ablation is not None, "protocols are trained by ablations"
        seeds, count = made.ablation.seeds.max, len(made.rows)
        macs = planned_macs(made, seeds)
        missing = left.get(protocol.folder, macs)
        total, to_come, trainings = total + macs, to_come + missing, trainings + seeds * count
        of = f"{count} architectures × {_seeds(made, seeds)}, {compute(macs)}"
        facts.append((protocol.name, "; ".join([of, *protocol.changes]) + (f"; {_to_come(missing)}" if missing != macs else "")))
    facts += [("left out", note) for note in notes]
    facts.append(("training", f"{trainings} trainings, {compute(total)}"))
    if left:
        facts.append(("left", f"{_to_come(to_come)}; the rest is done"))
    if to_come:
        facts.append(("hours", hours(to_come, trainings, throughput)))
    facts.append(("units", "FLOPs are multiply-accumulates"))
    return "\n".join(line(f"{label}  " if len(label) > 12 else label, text) for label, text in facts)


def _seeds(made: Study, seeds: int) -> str:
    first = made.training.seed
    return f"seed {first}" if seeds == 1 else f"seeds {first} to {first + seeds - 1}"


def _to_come(macs: int) -> str:
    return f"{compute(macs)} left to train" if macs else "nothing left to train"
