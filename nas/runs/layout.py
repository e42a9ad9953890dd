"""The names of the files of a run directory, each said once."""

from __future__ import annotations

from pathlib import Path

LEDGER = "ledger.jsonl"
LOCK = "lock"
"""Which process has the run; an empty file that is locked."""

TRIALS = "trials"
CHECKPOINT = "checkpoint.safetensors"
"""In a trial's folder: its state to resume from."""

LAST_RUNG = "last-rung.safetensors"
"""In a trial's folder: its state at the last rung, kept when the finish trains on."""

HUNG = "hung.txt"
"""In a trial's folder: why its worker ended itself, one line."""

ORIGIN = "of-run"
"""In a trial's folder of a mirror: the identity of the run that its checkpoint is of."""

EXPORTS = "export"
CARD, SAMPLES, EVALUATION = "card.md", "samples.png", "evaluation.json"
"""In the folder of an exported model, beside spec and weights."""

TRACKING = "tracking"
"""What trackers keep on this machine."""

RAY = ".ray"
"""Ray's own experiment state, which nothing reads."""

STUDY = "study.json"
"""The study as workers read it: in Ray's folder, or beside the ledger at a URI."""

UPLOADED = "uploaded"
"""In a mirror: an empty file that says that its run was at the URI once."""


def trial_name(number: int, digest: str) -> str:
    """`0007-ab12cd34ef56`: a trial's folder below `trials/`, and its model's below `export/`."""
    return f"{number:04d}-{digest}"


def checkpoint_path(run_folder: Path, trial: str) -> Path:
    """The checkpoint of a trial, by the trial's name."""
    return run_folder / TRIALS / trial / CHECKPOINT
