"""An ablation's tables: ours with intervals and claims, what they cost, and the published numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

import space.published as printed
from analysis.ablation.attribution import SHAPLEY, factorial_effects, shapley
from analysis.ablation.comparison import compare, gain_at_equal_cost, ladder
from analysis.ablation.frames import SCORES, AblationFrames, Block
from nas.stats.paired import attainable_p, lower_is_better, pairs_needed
from space.document import nearest
from space.errors import RunError, ToolkitError

ALPHA = 0.05

COSTS = {"GFLOPs": "gflops", "train GFLOPs": "train_gflops", "params (M)": "params_m"}
"""Columns of what an architecture costs, and their names in the frames."""

WIDTHS = {"channels": "channels", "FFN ratio": "ratio"}
"""What a control may have solved again."""

PRINTED = ("fid", "sfid", "is", "precision", "recall")


@dataclass(frozen=True)
class AblationTable:
    """One table: a title, a frame with a row a variant, and what has to be known to read it."""

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...]
    compared: pd.DataFrame | None = None
    """What `analysis.compare` gave, for a figure; None for a table that compares with no baseline."""


def ablation_tables(run: AblationFrames, metric: str | None = None) -> list[AblationTable]:
    """A table a block and control, and for every block with a matched control one of the gain that is left at equal cost.

    Columns of a table: variant; the metric's mean, sd and n; difference to the baseline with its 95 % interval; p (exact
    sign-flip) and p Holm, p t and p t Holm (paired t); the verdict; in a ladder the step to the row before, with interval, p
    and verdict; GFLOPs, training GFLOPs, parameters, steps a second; and the published scores, marked † where they were
    measured otherwise. One seed a row gives neither intervals nor tests, and the notes say so. Raises RunError when nothing is
    complete yet, ToolkitError for a metric that is not measured.
    """
    metric = metric or run.metric
    if metric not in SCORES:
        raise ToolkitError(f"'{metric}' is not measured of a trial{nearest(metric, SCORES)}")
    if run.seeds.empty or not run.seeds[metric].notna().any():
        raise RunError(f"no trial of {run.name} has a {metric} yet, so there is nothing to compare; run the study on")
    tables: list[AblationTable] = []
    for block in run.blocks:
        for control in run.controls:
            rows = run.rows(block.name, control)
            if rows[metric].notna().any() and rows.loc[rows["baseline"], metric].notna().any():
                tables.append(_table(run, block, control, rows, metric))
        for control in run.controls:
            matched = run.seeds[(run.seeds["block"] == block.name) & (run.seeds["control"] == control)]
            if control != "raw" and matched[metric].notna().any():
                tables.append(_left(run, block, control, metric))
        if len(block.components) > 1 and block.design in ("ladder", "factorial"):
            tables += _attributed(run, block, metric)
        if not run.reports.empty and run.reports["rung"].max() > 1:
            tables.append(_by_rung(run, block, metric))
    return tables


def _table(run: AblationFrames, block: Block, control: str, rows: pd.DataFrame, metric: str) -> AblationTable:
    compared = compare(rows, block.baseline, metric, looks=run.looks)
    frame = compared.rename(columns={"mean": metric, "p_value": "p", "p_holm": "p Holm", "p_t": "p t", "p_t_holm": "p t Holm"})
    frame = frame.rename(columns={"ci_low": "low", "ci_high": "high"})
    chain = [name for name in block.chain if name in set(compared["variant"])]
    if len(chain) > 1:
        steps = ladder(rows, chain, metric, looks=run.looks).set_index("variant")
        frame = frame.join(steps[[*_STEPS]].rename(columns=_STEPS), on="variant")
    names = COSTS if control == "raw" else WIDTHS | COSTS
    costs = rows.groupby("variant")[[*names.values(), "steps_per_s"]].mean()
    costs = costs.rename(columns={name: title for title, name in names.items()} | {"steps_per_s": "steps/s"})
    frame = frame.join(costs, on="variant")
    beside, notes = _published(run, block, rows, metric)
    if beside is not None:
        frame = frame.join(beside, on="variant")
    title = f"{_name(run, block)}: {metric} ({block.design}, {_control(control)})"
    return AblationTable(title, frame, (*_reading(run, block, compared, metric), *notes), compared)


_STEPS = {
    "step": "step",
    "step_low": "step low",
    "step_high": "step high",
    "step_p_t_holm": "step p t Holm",
    "step_verdict": "step verdict",
}


def _name(run: AblationFrames, block: Block) -> str:
    return f"{run.name}, {block.name}" if block.name else run.name


def _control(control: str) -> str:
    matched = {"flop-matched": "at the baseline's GFLOPs", "param-matched": "at the baseline's parameters"}
    return matched.get(control, "as given")


def _left(run: AblationFrames, block: Block, control: str, metric: str) -> AblationTable:
    # Of the seeds that all rows were to have: those added while looking would need other intervals.
    own = run.seeds[(run.seeds["block"] == block.name) & (run.seeds["seed"] < run.first_seeds)]
    frame = gain_at_equal_cost(own, block.baseline, metric, control)
    note = f"share is the part of the raw gain over {block.baseline} that is left {_control(control)}, with Fieller's 95 % interval"
    frame = frame.rename(columns={"p_t_holm": "p t Holm"})
    title = f"{_name(run, block)}: what is left of the gain in {metric} {_control(control)}"
    return AblationTable(title, frame, (note, *_first(run)))


def _attributed(run: AblationFrames, block: Block, metric: str) -> Iterator[AblationTable]:
    """What each component of a ladder or factorial is worth; nothing as long as no seed has gone through all rows."""
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
        notes = (*(() if exact else (note,)), *_first(run))
        yield AblationTable(f"{title}: what each component adds to {metric}, {how}", frame, notes)
    if block.design == "factorial":
        with suppress(ToolkitError):
            effects = factorial_effects(rows, factors, metric)
            effects["effect"] = [_plain(name) for name in effects["effect"]]
            names = {"effect": "variant", "ci_low": "low", "ci_high": "high", "p_holm": "p Holm", "p_t_holm": "p t Holm"}
            frame = effects.drop(columns=["p_value", "p_t"]).rename(columns=names)
            note = "An effect is the mean with the component less that without; × is half of how much one changes the other's."
            yield AblationTable(f"{title}: effects and interactions in {metric}", frame, (note, *_first(run)))


def _plain(name: str) -> str:
    """A component, or an interaction of two, by the names of the study."""
    return " × ".join(part.removeprefix("has.") for part in name.split(" × "))


def _first(run: AblationFrames) -> tuple[str, ...]:
    return ("Of the seeds that every row was to have; those added while looking are left out here.",) if run.looks else ()


def _by_rung(run: AblationFrames, block: Block, metric: str) -> AblationTable:
    """What every row had reached at every rung; a table that is printed step by step stands beside it."""
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
    return AblationTable(f"{_name(run, block)}: {metric} at every rung", frame, ("Rungs of one trial are no independent runs.",))


def _in_steps(table: printed.PublishedTable, label: str) -> list[printed.PublishedRow]:
    """The rows that are printed under a name, by how long they were trained."""
    found = [row for row in table.rows if label in (row.label, row.printed) and row.train_steps_k]
    return sorted(found, key=lambda row: float(row.train_steps_k))


def _reading(run: AblationFrames, block: Block, compared: pd.DataFrame, metric: str) -> Iterator[str]:
    """What has to be known to read the numbers."""
    better = "lower" if lower_is_better(metric) else "higher"
    others = compared[compared["variant"] != block.baseline]
    pairs = int(others["pairs"].max()) if len(others) else 0
    yield from _interim(run)
    if pairs < 2:
        yield f"{metric}: {better} is better. One seed a row: no intervals, no tests and no marks, as seeds alone differ too."
        return
    least = int(others["pairs"].min())
    count = f"{pairs}" if least == pairs else f"{least} to {pairs}"
    yield f"{metric}: {better} is better. Differences are to {block.baseline}, seed by seed ({count} pairs), with 95 % intervals."
    if run.looks:
        yield (
            "Seeds were added while differences were open: intervals and p-values are of a group-sequential design with looks from "
            f"{run.looks[0]} to {run.looks[-1]} pairs, valid under peeking."
        )
        if run.margin is not None:
            yield f"Seeds were no longer added where the interval lay within ±{run.margin:g}: too small to matter."
    else:
        exact = attainable_p(pairs, len(others))
        more = "" if exact <= ALPHA else f" ({pairs_needed(len(others), ALPHA)} pairs would get below {ALPHA})"
        yield (
            f"p is the exact sign-flip test's; with Holm's correction over {_count(len(others), 'comparison')} it reaches "
            f"{exact:.2g} at best{more}. p t is the paired t test's, which takes differences to be normal; "
            f"the verdict goes by p t Holm < {ALPHA}."
        )
    if run.replanned:
        yield "The ablation was changed after results were there (rows, seeds, design or metric): no p-value here allows for that."


def _interim(run: AblationFrames) -> Iterator[str]:
    """That there are trials still to come, or that some have failed."""
    trials = run.seeds.drop_duplicates("trial")["state"]
    failed = int((trials == "FAILED").sum())
    ended = int((trials == "COMPLETE").sum()) + failed
    if ended < run.planned:
        yield f"Interim: {ended} of {run.planned} planned trials have ended, and p-values hold for the planned number alone."
    if failed:
        yield f"{_count(failed, 'trial')} FAILED; their seeds are left out of those rows' pairs."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


Rows = dict[str, printed.PublishedRow]


def _published(run: AblationFrames, block: Block, rows: pd.DataFrame, metric: str) -> tuple[pd.DataFrame | None, Iterator[str]]:
    """The printed scores by variant, and the notes on how they were measured."""
    if block.published is None:
        return None, iter(())
    table = printed.published_table(block.published)
    labels = rows.drop_duplicates("variant").set_index("variant")["label"]
    found: Rows = {}
    for variant, label in labels.items():
        # Of a training that is printed at several steps, the last is what a whole budget stands beside.
        alike = _in_steps(table, label) or [row for row in table.rows if row.label == label]
        if alike:
            found[str(variant)] = alike[-1]
    differing = sorted({name for row in found.values() for name in row.protocol.differences(run.protocol)})
    mark = "†" if differing or metric not in PRINTED else ""
    columns: dict[str, dict[str, str]] = {}
    for name in ("gflops", *PRINTED, "steps_per_s"):
        values = {variant: _printed(row, name) for variant, row in found.items()}
        if any(values.values()):
            columns[f"{_SHORT[name]} printed{mark if name != 'gflops' else ''}"] = values
    return pd.DataFrame(columns, index=pd.Index(labels.index)), _on_print(run, table, found, differing, metric)


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


def _on_print(
    run: AblationFrames, table: printed.PublishedTable, found: Rows, differing: Sequence[str], metric: str
) -> Iterator[str]:
    if not found:
        yield f"No row has a counterpart in {table.title}."
        return
    yield f"Printed: {table.title}, one training run a row, without error bars."
    if metric not in PRINTED:
        yield f"† The printed scores are no {metric}: compare the order of rows, not numbers."
    if differing:
        first = next(iter(found.values())).protocol
        told = [f"{name.replace('_', ' ')} {getattr(first, name)}, here {getattr(run.protocol, name)}" for name in differing]
        yield f"† Measured otherwise: {'; '.join(told)}."
    if any(row.digitised for row in found.values()):
        yield "Some printed numbers were measured off a picture (about ±0.3 FID)."
