"""The names of the files and folders of a run directory, each defined once."""

from __future__ import annotations

from pathlib import Path

LEDGER = "ledger.jsonl"
LOCK = "lock"
"""Locked by the process that has the run open; holds that process's host and number until it is closed."""

TRIALS = "trials"
CHECKPOINT = "checkpoint.safetensors"
"""In a trial's folder: its state to resume from."""

LAST_RUNG = "last-rung.safetensors"
"""In a trial's folder: its state at the last rung, kept when the finish trains on."""

HUNG = "hung.txt"
"""In a trial's folder: one line that says why its worker ended itself."""

ORIGIN = "of-run"
"""In a trial's folder of a mirror: the identity of the run that its checkpoint belongs to."""

EXPORTS = "export"
CARD, SAMPLES, EVALUATION = "card.md", "samples.png", "evaluation.json"
"""In the folder of an exported model, beside spec and weights."""

CONFIRMATION = "confirm"
"""In the run directory of a search: the run by which its best trials are confirmed."""

EXPLANATION, SIMPLIFICATION = "explain", "simplify"
"""Beside it: the runs that take back the winner's differences one at a time, and that compare the winner without passengers."""

TRACKING = "tracking"
"""The files of trackers on this machine."""

RAY = ".ray"
"""Ray's experiment state, which nothing here reads."""

STUDY = "study.json"
"""The study for workers to read: in Ray's folder, or beside the ledger at a URI."""

UPLOADED = "uploaded"
"""In a mirror: an empty file that marks that the run has been at the URI."""


def trial_name(number: int, digest: str) -> str:
    """`0007-ab12cd34ef56`: the name of a trial's folder below `trials/`, and of its model's folder below `export/`."""
    return f"{number:04d}-{digest}"


def checkpoint_path(run_folder: Path, trial: str) -> Path:
    """The path of a trial's checkpoint, by the trial's name."""
    return run_folder / TRIALS / trial / CHECKPOINT
