"""Records of calibrations: what `nas calibrate` found about the protocols of a study, as a file that later runs look up."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from nas.study.calibration import protocol_digest, space_digest
from nas.study.study import Study
from space.errors import RunError
from space.files import replace_file
from space.frozen import Frozen

CALIBRATION = "calibration.json"
"""In the folder of a calibration, which holds a run directory per protocol."""


class RungFigures(Frozen):
    """What the scores at a rung tell of the architectures.

    Attributes:
        architectures, seeds: The scores that the figures are of: all architectures, with the seeds that all of them have.
        between_sd, seed_sd, within_sd, icc, icc_low, icc_high: As in `nas.stats.reliability.Reliability`.
        difference: The difference to be told apart: the SD between architectures, or with a reference the part that agrees with it.
        seeds_needed: Paired seeds that show this difference between two architectures with a power of 80 %; None: no number does.
        price: `seeds_needed` times the multiply-accumulates of a training.
        half_tau: Kendall's τ between halves of the seeds; None where scores are equal.
        reference_tau: Kendall's τ to the reference; None without one.
    """

    architectures: int
    seeds: int
    between_sd: float
    seed_sd: float
    within_sd: float
    icc: float
    icc_low: float
    icc_high: float
    difference: float
    seeds_needed: int | None
    price: float | None
    half_tau: float | None
    reference_tau: float | None


class CalibratedRung(Frozen):
    """A protocol up to a rung.

    Attributes:
        protocol: The protocol's name.
        changes: Its changes to the study, as `key=value`.
        digest: Of the protocol up to this rung, as of `nas.study.calibration.protocol_digest`.
        rung: From 1.
        last: Whether it is the protocol's last rung.
        macs: Multiply-accumulates of a training up to this rung, the mean over trainings.
        planned: The number of trainings.
        failed: How many of them have no score here.
        figures: What the scores tell; None where too few trainings have one, or all scores are equal.
        better_p: The p-value of the claim that the price is below that of the study's own last rung, times the number of claims;
            None where this is not asked.
    """

    protocol: str
    changes: tuple[str, ...]
    digest: str
    rung: int
    last: bool
    macs: float
    planned: int
    failed: int
    figures: RungFigures | None = None
    better_p: float | None = None


class Calibration(Frozen):
    """What a calibration found.

    Attributes:
        study: The name of the calibrated study.
        space: The digest of its architectures, as of `nas.study.calibration.space_digest`.
        metric: What was scored.
        architectures: The digests of those that were trained.
        reference: The compute, the steps or the images of the reference; None without one.
        rows: A row per protocol and rung, the study's own protocol first.
        protocol, rung: What is recommended.
        verdict: Why, in a sentence.
    """

    study: str
    space: str
    metric: str
    architectures: tuple[str, ...]
    reference: int | None
    rows: tuple[CalibratedRung, ...]
    protocol: str
    rung: int
    verdict: str


def write_calibration(found: Calibration, folder: Path) -> Path:
    """Write a calibration into its folder and return the file; raises OSError when it cannot be written."""
    path = folder / CALIBRATION
    with replace_file(path) as file:
        file.write(found.model_dump_json(indent=1).encode())
    return path


def read_calibration(folder: Path) -> Calibration:
    """The calibration in a folder; raises RunError when there is none, or it is damaged."""
    path = folder / CALIBRATION
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; `nas calibrate STUDY` writes it") from None
    except ValidationError:
        raise RunError(
            f"{path} is damaged, or of another version; the same `nas calibrate` again trains nothing and writes it anew"
        ) from None


def known_calibration(study: Study, root: Path) -> tuple[str, RungFigures, bool] | None:
    """The calibration under a run root that has a study's protocol, budget and metric, with the most trainings behind its figures.

    Calibrations of the same architectures go before those of others. Damaged ones are skipped.

    Returns:
        The calibration's folder, the figures of the study's protocol, and whether its architectures are those of the study's space.
    """
    digest, space = protocol_digest(study), space_digest(study)
    found: list[tuple[str, RungFigures, bool]] = []
    for path in sorted(root.glob(f"*/{CALIBRATION}")) if root.is_dir() else []:
        with suppress(RunError):
            calibration = read_calibration(path.parent)
            same = calibration.space == space
            if calibration.metric != study.metric:
                continue
            found += [(path.parent.name, row.figures, same) for row in calibration.rows if row.digest == digest and row.figures]
    return max(found, key=lambda one: (one[2], one[1].architectures * one[1].seeds), default=None)


def known_spread(study: Study, root: Path) -> str:
    """A sentence on what the calibration of a study's protocol says of the spread of its scores; empty where none is known."""
    known = known_calibration(study, root)
    if known is None:
        return ""
    name, figures, same = known
    icc, low, high = (max(0.0, value) for value in (figures.icc, figures.icc_low, figures.icc_high))
    needed = "no number of seeds tells" if figures.seeds_needed is None else f"{figures.seeds_needed} seeds tell"
    where = "" if same else ", of other architectures"
    where += ", with the study's own training settings" if study.nuisance else ""
    return (
        f"at one seed, {icc:.0%} [{low:.0%}, {high:.0%}] of the variance of scores is the architectures' and the rest a seed's "
        f"(SD {figures.within_sd:.2g}); {needed} two architectures one SD apart (calibration {name}{where})"
    )
