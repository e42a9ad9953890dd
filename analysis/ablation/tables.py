"""An ablation's tables: the results with intervals and verdicts, the costs, and the published numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

import space.published as printed
from analysis.ablation.attribution import SHAPLEY, factorial_effects, shapley
from analysis.ablation.comparison import compare, gain_at_equal_cost
from analysis.ablation.notes import claimed_by, reading
from analysis.runs.ablation import AblationBlock, AblationFrames
from analysis.runs.data import RunData, require_loaded
from nas.runs.records import State
from nas.stats.verdicts import RULE
from nas.study.metrics import SCORES
from space.document import nearest
from space.errors import RunError, ToolkitError

COSTS = {"GFLOPs": "gflops", "train GFLOPs": "train_gflops", "params (M)": "params_m"}
"""The columns of an architecture's costs, and their names in the frames."""

WIDTHS = {"channels": "channels", "FFN ratio": "ratio"}
"""The columns of the widths that a control may have changed, and their names in the frames."""

PRINTED = ("fid", "sfid", "is", "precision", "recall")
"""The metrics that the papers print."""


@dataclass(frozen=True)
class AblationTable:
    """One table: a title, a frame with a row per variant, and the notes that its reading needs."""

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...]
    compared: pd.DataFrame | None = None
    """The result of `analysis.compare`, for a figure; None for a table without a comparison with the baseline."""


def ablation_tables(data: RunData, metric: str | None = None, rule: str = RULE) -> list[AblationTable]:
    """The tables of an ablation.

    Args:
        data: The result of `analysis.load`.
        metric: The metric to compare; the study's by default.
        rule: The rule of the verdicts, as for `compare`.

    Returns:
        Per block: a table for each control; for each matched control a table of the gain that is left at equal cost; for a
        ladder or a factorial the attribution to its components; and a table by rung where there are several. Columns of a
        table of comparisons: variant; the metric's mean, sd and n; planned seeds and pairs; difference to the baseline with its
        95 % interval; p (exact sign-flip) and p Holm, p rule and p rule Holm (of the rule that the verdict rests on); the
        verdict; in a ladder the step to the row before, with interval, p and verdict; the exaggeration of a claim; the rule;
        GFLOPs, training GFLOPs, parameters, steps per second; and the published scores, marked † where they were measured
        otherwise. One seed per row gives neither intervals nor tests, and the notes say so.

    Raises:
        RunError: The run is a search, or no trial has a value of the metric yet.
        ToolkitError: The metric is not measured, or the rule is unknown.
    """
    require_loaded(data)
    run = data.ablation
    metric = metric or run.metric
    if metric not in SCORES:
        raise ToolkitError(f"'{metric}' is not measured of a trial{nearest(metric, SCORES)}")
    if run.seeds.empty or not run.seeds[metric].notna().any():
        raise RunError(f"no trial of {run.name} has a {metric} yet, so there is nothing to compare; continue the run")
    tables: list[AblationTable] = []
    for block in run.blocks:
        for control in run.controls:
            rows = run.rows(block.name, control)
            if rows[metric].notna().any() and rows.loc[rows["baseline"], metric].notna().any():
                tables.append(_table(run, block, control, rows, metric, rule))
        for control in run.controls:
            matched = run.seeds[(run.seeds["block"] == block.name) & (run.seeds["control"] == control)]
            if control != "raw" and matched[metric].notna().any():
                tables.append(_gain_left(run, block, control, metric, rule))
        if len(block.components) > 1 and block.design in ("ladder", "factorial"):
            tables += _attributed(run, block, metric)
        if not run.reports.empty and run.reports["rung"].max() > 1:
            tables.append(_by_rung(run, block, metric))
    return tables


def _table(run: AblationFrames, block: AblationBlock, control: str, rows: pd.DataFrame, metric: str, rule: str) -> AblationTable:
    rows = _measured(rows, metric)
    known = set(rows["variant"])
    chain = [name for name in block.chain if name in known]
    compared = compare(rows, block.baseline, metric, looks=run.looks, rule=rule, order=chain if len(chain) > 1 else ())
    frame = compared.rename(columns={"mean": metric} | _TITLES)
    frame = frame.drop(columns=[name for name in frame if name in _UNTITLED])
    names = COSTS if control == "raw" else WIDTHS | COSTS
    costs = rows.groupby("variant")[[*names.values(), "steps_per_s"]].mean()
    costs = costs.rename(columns={name: title for title, name in names.items()} | {"steps_per_s": "steps/s"})
    frame = frame.join(costs, on="variant")
    published, notes = _published(run, block, rows, metric)
    if published is not None:
        frame = frame.join(published, on="variant")
    title = f"{_name(run, block)}: {metric} ({block.design}, {_control(control)})"
    return AblationTable(title, frame, (*reading(run, block.baseline, compared, rows, metric), *notes), compared)


_TITLES = {
    "ci_low": "low",
    "ci_high": "high",
    "p_value": "p",
    "p_holm": "p Holm",
    "p_rule": "p rule",
    "p_rule_holm": "p rule Holm",
    "step_low": "step low",
    "step_high": "step high",
    "step_p_rule_holm": "step p rule Holm",
    "step_verdict": "step verdict",
    "step_exaggeration": "step exaggeration",
}

_UNTITLED = {
    "verdict_without_failures",
    "step_planned",
    "step_pairs",
    "step_p",
    "step_p_holm",
    "step_p_rule",
    "step_verdict_without_failures",
}
"""Columns of `compare` that a table leaves out; its notes tell of them."""


def _measured(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows without complete trials that were scored without the metric: those have not failed."""
    return rows[rows[metric].notna() | (rows["state"] == State.FAILED.value)]


def _name(run: AblationFrames, block: AblationBlock) -> str:
    return f"{run.name}, {block.name}" if block.name else run.name


def _control(control: str) -> str:
    matched = {"flop-matched": "at the baseline's GFLOPs", "param-matched": "at the baseline's parameters"}
    return matched.get(control, "as given")


def _gain_left(run: AblationFrames, block: AblationBlock, control: str, metric: str, rule: str) -> AblationTable:
    # Only the seeds planned for all rows: those added while looking would need other intervals.
    frame = gain_at_equal_cost(_measured(run.ended(block.name, first=True), metric), block.baseline, metric, control, rule=rule)
    note = f"share is the part of the raw gain over {block.baseline} that is left {_control(control)}, with Fieller's 95 % interval"
    note += "; it is given where the raw gain is claimed."
    corrected = claimed_by(frame, 2 * len(frame), "raw and matched differences")
    frame = frame.rename(columns={"p_rule_holm": "p rule Holm"})
    title = f"{_name(run, block)}: what is left of the gain in {metric} {_control(control)}"
    return AblationTable(title, frame, (note, corrected, *_planned_seeds_note(run)))


def _attributed(run: AblationFrames, block: AblationBlock, metric: str) -> Iterator[AblationTable]:
    """The attribution to the components of a ladder or factorial; nothing until a seed has completed all rows."""
    rows = run.rows(block.name, first=True)
    factors = [f"has.{name}" for name in block.components]
    chain = rows[rows["variant"].isin(block.chain)] if block.chain else rows
    title = _name(run, block)
    with suppress(ToolkitError):
        shares = shapley(chain, factors, metric)
        shares["component"] = [_plain(name) for name in shares["component"]]
        exact = shares["kind"].iloc[0] == SHAPLEY
        how = "averaged over every order (Shapley)" if exact else "in the ladder's order"
        frame = shares.drop(columns="kind").rename(columns={"component": "variant", "ci_low": "low", "ci_high": "high"})
        note = "share is of the total difference between all components and none; another order would credit them otherwise."
        notes = (*(() if exact else (note,)), _BY_T, *_planned_seeds_note(run))
        yield AblationTable(f"{title}: what each component adds to {metric}, {how}", frame, notes)
    if block.design == "factorial":
        with suppress(ToolkitError):
            effects = factorial_effects(rows, factors, metric)
            effects["effect"] = [_plain(name) for name in effects["effect"]]
            names = {"effect": "variant", "ci_low": "low", "ci_high": "high", "p_holm": "p Holm", "p_t_holm": "p t Holm"}
            frame = effects.drop(columns=["p_value", "p_t"]).rename(columns=names)
            note = "An effect is the mean with the component minus that without; × is half the change of one effect by the other."
            yield AblationTable(f"{title}: effects and interactions in {metric}", frame, (note, _BY_T, *_planned_seeds_note(run)))


_BY_T = "Intervals and p-values are of the paired t test over seeds, by which nothing is marked here."


def _plain(name: str) -> str:
    """The study's name of a component, or of an interaction of two."""
    return " × ".join(part.removeprefix("has.") for part in name.split(" × "))


def _planned_seeds_note(run: AblationFrames) -> tuple[str, ...]:
    return ("Only the seeds planned for every row count here; those added while looking are left out.",) if run.looks else ()


def _by_rung(run: AblationFrames, block: AblationBlock, metric: str) -> AblationTable:
    """The metric of every row at every rung, beside the printed numbers where the published table has as many steps."""
    reports = run.reports[(run.reports["block"] == block.name) & (run.reports["control"] == "raw")]
    grouped = reports.groupby(["variant", "rung"], sort=False)
    frame = grouped[metric].agg(["mean", "std", "count"]).rename(columns={"mean": metric, "std": "sd", "count": "n"})
    frame = frame.join(grouped[["step", "train_tflops"]].mean()).rename(columns={"step": "steps", "train_tflops": "TFLOPs"})
    rungs = int(reports["rung"].max())
    if block.published is not None:
        table, labels = printed.published_table(block.published), reports.drop_duplicates("variant").set_index("variant")["label"]
        by_steps = {name: _in_steps(table, str(label)) for name, label in labels.items()}
        known = [by_steps[name][rung - 1] if len(by_steps[name]) == rungs else None for name, rung in frame.index]
        frame["steps printed"] = [f"{row.train_steps_k}K" if row else "" for row in known]
        frame["FID printed†"] = [row.scores.get("fid", "") if row else "" for row in known]
    frame = frame[frame["n"] > 0].reset_index().rename(columns={"variant": "row"})
    frame.insert(0, "variant", [f"{row}, rung {rung}" for row, rung in zip(frame.pop("row"), frame.pop("rung"), strict=True)])
    return AblationTable(f"{_name(run, block)}: {metric} at every rung", frame, ("The rungs of a trial are not independent runs.",))


def _in_steps(table: printed.PublishedTable, label: str) -> list[printed.PublishedRow]:
    """The rows that are printed under a name, in order of training steps."""
    rows = [row for row in table.rows if label in (row.label, row.printed) and row.train_steps_k]
    return sorted(rows, key=lambda row: float(row.train_steps_k))


Rows = dict[str, printed.PublishedRow]
"""Published rows by variant."""


def _published(
    run: AblationFrames, block: AblationBlock, rows: pd.DataFrame, metric: str
) -> tuple[pd.DataFrame | None, Iterator[str]]:
    """The printed scores by variant, or None where there are none, and the notes on how they were measured."""
    if block.published is None:
        return None, iter(())
    table = printed.published_table(block.published)
    labels = rows.drop_duplicates("variant").set_index("variant")["label"]
    by_variant: Rows = {}
    for variant, label in labels.items():
        # A training printed at several steps is compared at the last of them, as our numbers are after the whole budget.
        alike = _in_steps(table, label) or [row for row in table.rows if row.label == label]
        if alike:
            by_variant[str(variant)] = alike[-1]
    differing = sorted({name for row in by_variant.values() for name in row.protocol.differences(run.protocol)})
    mark = "†" if differing or metric not in PRINTED else ""
    columns: dict[str, dict[str, str]] = {}
    for name in ("gflops", *PRINTED, "steps_per_s"):
        values = {variant: _printed(row, name) for variant, row in by_variant.items()}
        if any(values.values()):
            columns[f"{_SHORT[name]} printed{mark if name != 'gflops' else ''}"] = values
    return pd.DataFrame(columns, index=pd.Index(labels.index)), _printed_notes(run, table, by_variant, differing, metric)


_SHORT = {
    "gflops": "GFLOPs",
    "fid": "FID",
    "sfid": "sFID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "steps_per_s": "steps/s",
}


def _printed(row: printed.PublishedRow, name: str) -> str:
    return str(getattr(row, name)) if name in ("gflops", "steps_per_s") else row.scores.get(name, "")


def _printed_notes(
    run: AblationFrames, table: printed.PublishedTable, by_variant: Rows, differing: Sequence[str], metric: str
) -> Iterator[str]:
    if not by_variant:
        yield f"No row has a counterpart in {table.title}."
        return
    yield f"Printed: {table.title}, one training run per row, without error bars."
    if metric not in PRINTED:
        yield f"† The printed scores are not {metric}: compare the order of the rows, not the numbers."
    if differing:
        first = next(iter(by_variant.values())).protocol
        differences = [f"{name.replace('_', ' ')} {getattr(first, name)}, here {getattr(run.protocol, name)}" for name in differing]
        yield f"† Measured otherwise: {'; '.join(differences)}."
    if any(row.digitised for row in by_variant.values()):
        yield "Some printed numbers were measured from a figure (about ±0.3 FID)."
