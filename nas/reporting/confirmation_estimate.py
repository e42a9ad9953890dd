"""Estimate of the confirmation of a search: trainings, compute, and the difference that its seeds would show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nas.reporting.ablation_estimate import claims, planned_macs
from nas.reporting.estimate import hours
from nas.reporting.text import compute, line
from nas.runs.throughput import Throughput
from nas.study.calibration import calibration_architectures
from nas.study.confirmation import confirmation_study
from nas.study.study import Study
from space.costs.cost import cost


def confirmation_estimate(study: Study, root: Path, throughput: Throughput | None = None) -> str:
    """Estimate what a search's confirmation adds to it. Who will be confirmed is not known, so random candidates stand in.

    Args:
        study: A search with `confirm`.
        root: The run root. Its earlier runs give the SD of paired differences, from which the visible difference follows.
        throughput: The measured throughput; None leaves the hours unknown.

    Returns:
        Lines of at most 100 columns, one fact per line.

    Raises:
        StudyError: If the confirmation would be refused.
    """
    return "\n".join(line(label, text) for label, text in _facts(study, root, throughput))


def planned_confirmation(study: Study) -> float:
    """The training multiply-accumulates of a search's confirmation, with the least of its seeds."""
    return float(planned_macs(_stand_in(study), study.confirm.seeds.min)) if study.confirm else 0.0


def _stand_in(study: Study) -> Study:
    """The confirmation of random candidates."""
    assert study.confirm is not None, "asked of a study without confirm"
    baseline, best = study.hand_made[1].digest, study.confirm.best
    others = [spec for spec in calibration_architectures(study, best + 1) if spec.digest != baseline][:best]
    return confirmation_study(study, {f"candidate {number}": spec for number, spec in enumerate(others, start=1)})


def _facts(study: Study, root: Path, throughput: Throughput | None) -> Iterator[tuple[str, str]]:
    confirm = study.confirm
    assert confirm is not None, "asked of a study without confirm"
    name, baseline = study.hand_made
    stand_in, seeds = _stand_in(study), confirm.seeds
    rows = len(stand_in.rows)
    most, least = (planned_macs(stand_in, count) for count in (seeds.max, seeds.min))
    between = f"{seeds.min} to {seeds.max}" if seeds.sequential else f"{seeds.max}"
    amount = f"{compute(least)} to {compute(most)}" if seeds.sequential else compute(most)
    which = f"{rows - 1} best" if rows > 2 else "the best"
    yield (
        "confirm",
        f"{which} against {name}, {between} fresh seeds each: at most {rows * seeds.max} trainings, {amount} (not contained above)",
    )
    if outside := study.search_space.violations(baseline):
        reached = ", ".join(f"{metric} {getattr(cost(baseline), metric):.4g}" for metric in outside)
        yield "", f"{name} has {reached}, outside the search's constraints"
    yield "", f"scored on {study.evaluation.val_loss.images} held-out images that no trial of the search is judged by"
    yield from claims(stand_in, root)
    if study.explain:
        each = most / (rows * seeds.max)
        differences = study.explain.most
        trainings = 2 * (differences + 1) * study.explain.seeds.max + 3 * seeds.max
        yield (
            "explain",
            f"at most {trainings} trainings, {compute(trainings * each)}, where {differences} differences separate the winner from "
            f"{name}; nothing where no candidate is claimed to be better (not contained above)",
        )
    if throughput is not None:
        yield "more hours", hours(most, rows * seeds.max, throughput)
