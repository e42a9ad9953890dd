"""Train, score, search, schedule, record and export.

    import nas

    study = nas.load_study("studies/quickstart_search.yaml")
    run = nas.run_study(study, "runs/quickstart-search")
    run = nas.read_run("runs/quickstart-search")

The names here are imported when they are first used, so `import nas` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.execution.runner import run_study
    from nas.runs.run import read_run
    from nas.study.load import load_study

__all__ = ["load_study", "read_run", "run_study"]

_HOMES = {"load_study": "nas.study.load", "read_run": "nas.runs.run", "run_study": "nas.execution.runner"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("udit-nas")
    raise AttributeError(f"module 'nas' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
