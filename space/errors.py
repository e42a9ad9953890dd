"""The errors of the toolkit, under one base class; each message is one sentence for the user."""


class ToolkitError(Exception):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, where, and how to mend it. The command line prints it without a traceback and exits
    with code 2. Completed work is kept.
    """


class SpecError(ToolkitError, ValueError):
    """An architecture that cannot be built; the message names the nearest valid value."""


class StudyError(ToolkitError, ValueError):
    """A study file that cannot be run."""


class DataError(ToolkitError):
    """Training data that is missing, damaged or of another shape than the model needs."""


class RunError(ToolkitError):
    """A run directory that cannot be used: another study's, damaged, locked or unwritable."""
