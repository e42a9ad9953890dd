"""The errors of the toolkit, under one base class; each message is one sentence for the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Location = tuple[str | int, ...]
"""The keys and positions that lead to a value in plain data."""


class ToolkitError(Exception):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, where, and how to mend it. The command line prints it without a traceback and exits
    with code 2. Completed work is kept.
    """


class SpecError(ToolkitError, ValueError):
    """An architecture that cannot be built; the message names the nearest valid value."""


class StudyError(ToolkitError, ValueError):
    """A study file that cannot be run."""


class Mistakes(StudyError):
    """Mistakes that are told together: pairs of the keys that lead to one and its sentence; the message is the first sentence."""

    def __init__(self, each: Sequence[tuple[Location, str]]) -> None:
        super().__init__(each[0][1])
        self.each = tuple(each)

    def __reduce__(self) -> tuple[type[Mistakes], tuple[Any]]:
        return type(self), (self.each,)


class DataError(ToolkitError):
    """Training data that is missing, damaged or of another shape than the model needs."""


class RunError(ToolkitError):
    """A run directory that cannot be used: another study's, damaged, locked or unwritable."""
