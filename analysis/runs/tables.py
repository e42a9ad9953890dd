"""The ranking of a run's trials, and tables as text."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.markup import check_format, drop_empty_columns, is_missing, latex_grid, markdown_grid, on_one_line
from analysis.runs.data import RunData, require_loaded
from nas.runs.run import TrialResult
from nas.study.metrics import METRICS, SCORES, lower_is_better
from nas.study.nuisance import NUISANCE, SECTION
from space.differences import diff
from space.paths import PER_STAGE_PATHS
from space.resize import Scale
from space.spec import ModelSpec

DIFFERS_FROM = "differs from"
"""How the name of the column of `architecture_texts` begins."""

_ORDER = ["COMPLETE", "PRUNED", "RUNNING", "FAILED"]


def ranking_table(data: RunData) -> pd.DataFrame:
    """All trials, one row each: complete trials by loss, then the others by the rung they reached.

    Args:
        data: The result of `analysis.load`.

    Returns:
        trial; state; the metric by which the run is ranked, mostly val_loss (at the full budget, of COMPLETE trials only); last
        (of the others, the value at the last rung they reached, which compares with the same rung only); rung; GFLOPs,
        train GFLOPs, params (M), images/s and memory (MiB); the training settings that were tuned, such as
        `learning_rate (nuisance)`; what separates the architecture from the study's model, in the column of `architecture_texts`;
        reason (of a failure).
    """
    require_loaded(data)
    architectures = architecture_texts(data)
    trials, metric = data.trials, data.run.metric
    rising = lower_is_better(metric)
    order = trials["state"].map(_ORDER.index)
    last = [_last(trial, metric) for trial in data.run.trials.values()]
    ranked = trials.assign(_order=order, _last=pd.Series(last, index=trials.index, dtype=float)).sort_values(
        ["_order", metric, "rung", "_last"], ascending=[True, rising, False, rising]
    )
    complete = ranked["state"] == "COMPLETE"
    return pd.DataFrame(
        {
            "trial": ranked["trial"],
            "state": ranked["state"],
            metric: ranked[metric],
            "last": ranked["_last"].where(~complete),
            "rung": ranked["rung"],
            "GFLOPs": ranked["gflops"],
            "train GFLOPs": ranked["train_gflops"],
            "params (M)": ranked["params_m"],
            "images/s": ranked["images_per_s"],
            "memory (MiB)": ranked["peak_memory_mib"],
            str(architectures.name): ranked["trial"].map(architectures),
            **{nuisance_column(path): ranked[f"param.{path}"] for path in NUISANCE if f"param.{path}" in ranked},
            "reason": ranked["reason"],
        }
    ).reset_index(drop=True)


def nuisance_column(path: str) -> str:
    """The title of a training setting that was tuned beside the architectures, as tables have it."""
    return f"{path.removeprefix(SECTION)} (nuisance)"


def _last(trial: TrialResult, metric: str) -> float:
    """The value of a metric at the last rung that a trial reached; NaN where it was not measured there."""
    value = trial.search_reports[-1].value(metric) if trial.search_reports else None
    return math.nan if value is None else value


def architecture_texts(data: RunData) -> pd.Series:
    """What separates each trial's architecture from the study's model, such as `channels 96; depths encoder-1 3, bottleneck 4`.

    Args:
        data: The result of `analysis.load`.

    Returns:
        Texts by the trials' numbers; `nothing` for the study's model. The name says what they are compared with: the preset, or
        the study's model of that preset where the study scales it or sets values of it.
    """
    require_loaded(data)
    study = data.study
    own = "the study's " if study.model.set or study.model.scale != Scale() else ""
    texts = {number: _differences(study.base, trial.spec) for number, trial in data.run.trials.items()}
    return pd.Series(texts, dtype=object, name=f"{DIFFERS_FROM} {own}{study.model.preset} in")


def _differences(base: ModelSpec, spec: ModelSpec) -> str:
    texts: list[str] = []
    path = ""
    for one in diff(base, spec):
        inner, _, stage = one.path.rpartition(".")
        if inner not in PER_STAGE_PATHS:
            path = ""
            texts.append(f"{one.path} {_plain(one.new)}")
        elif inner == path:
            texts[-1] += f", {stage} {_plain(one.new)}"
        else:
            path = inner
            texts.append(f"{inner} {stage} {_plain(one.new)}")
    return "; ".join(texts) or "nothing"


def _plain(value: Any) -> str:
    """A value as a study writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def render(table: pd.DataFrame, form: str) -> str:
    """A table as text.

    Args:
        table: A frame such as `ranking_table` returns.
        form: `md`, `latex` (booktabs) or `csv`. CSV keeps every digit.

    Raises:
        ToolkitError: The format is another one.
    """
    check_format(form)
    if form == "csv":
        return str(on_one_line(table).to_csv(index=False))
    text = cells(table)
    return latex_grid(text) if form == "latex" else markdown_grid(text) + "\n"


_METRIC_OF = {
    **{metric: metric for metric in SCORES},
    "last": "val_loss",
    "params_m": "params_m",
    "train_gflops": "train_gflops",
    "step_seconds": "step_seconds",
    "GFLOPs": "gflops",
    "gflops": "gflops",
    "train GFLOPs": "train_gflops",
    "params (M)": "params_m",
    "images/s": "images_per_s",
    "memory (MiB)": "peak_memory_mib",
}
"""By column: the metric in it, which says with how many digits it is printed."""


def _digits(column: str) -> int | None:
    return METRICS[_METRIC_OF[column]].digits if column in _METRIC_OF else None


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table as text, rounded for reading; missing values are empty, and a column without any value is left out."""
    text = pd.DataFrame({name: [_cell(value, _digits(str(name))) for value in column] for name, column in table.items()})
    return drop_empty_columns(text)


def _cell(value: Any, digits: int | None) -> str:
    if is_missing(value):
        return ""
    if digits is None:
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{value:.{digits}f}"
