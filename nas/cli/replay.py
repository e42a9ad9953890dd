"""The command `nas replay`: other rungs and samplers over the recorded curves of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from nas.cli.command import Command
from nas.reporting.text import compute, unit_of
from nas.study.choices import Mode, SearcherKind
from space.errors import ToolkitError

if TYPE_CHECKING:
    from nas.replay.curves import Recorded
    from nas.replay.simulator import Arrival, MeanSd, Replay
    from nas.stats.ranks import Agreement
    from nas.study.budget import BudgetSettings


@click.command("replay", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--scheduler", type=click.Choice(get_args(Mode)), help="stop by default; `mode` of the budget.")
@click.option("--reduction-factor", type=click.IntRange(2), help="The run's by default, or a power of it.")
@click.option(
    "--rungs", type=click.IntRange(1), help="How many of the recorded rungs that fit, from the last down; all by default."
)
@click.option("--grace-rungs", type=click.IntRange(0), help="Rungs without judgement; 0 by default.")
@click.option("--brackets", default=1, show_default=True, type=click.IntRange(1), help="Groups judged by themselves.")
@click.option(
    "--sampler",
    default="random",
    show_default=True,
    type=click.Choice(["recorded", *get_args(SearcherKind)]),
    help="What is tried next: as recorded, in random order, or the architecture nearest to what a sampler proposes.",
)
@click.option("--trials", type=click.IntRange(1), help="How many of the recorded trials are tried; all by default.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Trials at a time.")
@click.option(
    "--clock",
    default="seconds",
    show_default=True,
    type=click.Choice(["seconds", "compute"]),
    help="How long a trial takes: as it took when recorded, or as its compute.",
)
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(1), help="Orders to average over.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="The best so many of a rung, for its regret.")
@click.option("--compare", is_flag=True, help="Replay stop and promote with reduction 2, 3, 4 and grace 0, 1 where they fit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay_command(
    run: Path,
    scheduler: Any,
    reduction_factor: int | None,
    rungs: int | None,
    grace_rungs: int | None,
    brackets: int,
    sampler: Any,
    trials: int | None,
    workers: int,
    clock: Any,
    repeats: int,
    seed: int,
    top: int,
    compare: bool,
    as_json: bool,
) -> None:
    """Replay other rungs and samplers over the full-length curves of a run, without training."""
    given = {"--scheduler": scheduler, "--reduction-factor": reduction_factor, "--grace-rungs": grace_rungs}
    chosen = [name for name, value in given.items() if value is not None]
    if compare and chosen:
        raise ToolkitError(f"--compare goes through {', '.join(given)} by itself; leave {' and '.join(chosen)} out")
    from nas.replay.curves import recorded
    from nas.replay.simulator import Arrival, Rules, candidates, replay_run
    from nas.runs.run import read_run

    record = recorded(read_run(run))
    rules = (
        candidates(record, rungs, brackets)
        if compare
        else [Rules(scheduler or "stop", reduction_factor, rungs, grace_rungs or 0, brackets)]
    )
    arrival = Arrival(sampler, workers, clock, trials, repeats, seed)
    replays = [replay_run(record, rule, arrival, top) for rule in rules]
    if as_json:
        click.echo(json.dumps(as_data(record, arrival, replays), indent=2, allow_nan=False))
        return
    click.echo(
        "\n".join(
            [*about(record, arrival, replays[0]), "", *(compared(record, replays) if compare else single(record, replays[0]))]
        )
    )


def as_data(record: Recorded, arrival: Arrival, replays: Sequence[Replay]) -> dict[str, Any]:
    """Replays as plain data: means and standard deviations over the repeats, without the individual repeats."""
    shown = []
    for replay in replays:
        facts = asdict(replay)
        del facts["outcomes"], facts["budget"]
        budget = replay.budget.model_dump(include={"mode", "reduction_factor", "grace_rungs", "brackets"})
        shown.append({**budget, **facts, "repeats": len(replay.outcomes)})
    return {
        "study": record.study.name,
        "recorded": len(record.curves) * record.study.replicates,
        "left_out": record.left_out,
        "pruned": record.pruned,
        "best": record.best,
        "full_macs": record.full_macs,
        **asdict(arrival),
        "replays": shown,
    }


def about(record: Recorded, arrival: Arrival, replay: Replay) -> list[str]:
    """Lines on the recorded run, and on the order and number of trials replayed."""
    replicates, budget = record.study.replicates, record.study.budget
    each = f", {replicates} replicates each" if replicates > 1 else ""
    lines = [
        f"{record.study.name}: {len(record.curves)} architectures{each}, recorded at {_count(budget.rungs, 'rung')} of reduction "
        f"{budget.reduction_factor}; all fully {compute(record.full_macs)}, best {record.study.metric} {record.best:.4f}"
    ]
    if record.left_out:
        lines.append(f"left out: {_count(record.left_out, 'trial')} without reports at every rung")
    if record.pruned:
        lines.append(
            f"{record.pruned} of them had been pruned, so the rest is the run's better part; record with budget.mode: none"
        )
    order = {"recorded": "in the recorded order", "random": "in random order"}.get(
        arrival.sampler, f"as {arrival.sampler} proposes"
    )
    figures = "one order" if len(replay.outcomes) == 1 else f"mean ± sd of {len(replay.outcomes)} orders"
    lines.append(f"{_count(replay.trials, 'trial')} tried {order} on {_count(arrival.workers, 'worker')}; {figures}")
    return lines


def single(record: Recorded, replay: Replay) -> list[str]:
    """All lines of one replay."""
    budget, (unit, factor) = replay.budget, unit_of(record.full_macs)
    lines = [
        f"scheduler       {budget.mode}, reduction {budget.reduction_factor}, {_count(budget.rungs, 'rung')}, "
        f"grace {budget.grace_rungs}, {_count(budget.brackets, 'bracket')}",
        f"compute spent   {_spread(replay.macs, '.4g', factor)} {unit}, {_percent(replay.share)} % of training all fully",
        f"regret          {_spread(replay.regret, '.4f')} in {record.study.metric}; "
        f"the best recorded was kept in {replay.kept:.0%} of the orders",
    ]
    if replay.hours is not None:
        lines.append(f"took            {_spread(replay.hours, '.3g')} hours")
    titles = ["rung", _trained(budget), "reported", *_TAU, f"top-{replay.top} regret"]
    rows = [
        [
            *(str(n), _mark(budget, rung.mark), _spread(rung.reported, ".4g")),
            *(*_agreement(rung.agreement), *_agreement(rung.across_seeds), f"{rung.top_regret:.4f}"),
        ]
        for n, rung in enumerate(replay.rungs, start=1)
    ]
    return [*lines, "", *_columns([titles, *rows]), "", *_luck(record)]


def compared(record: Recorded, replays: Sequence[Replay]) -> list[str]:
    """A table with one row per replay, the Pareto front of compute and regret marked; and one of the recorded rungs' agreement."""
    import numpy as np

    from nas.stats.pareto import fronts

    unit, factor = unit_of(record.full_macs)
    titles = [
        "",
        "scheduler",
        "reduction_factor",
        "rungs",
        "grace_rungs",
        "brackets",
        unit,
        "% of all",
        "regret",
        "kept",
        "hours",
    ]
    rows = []
    front = set(fronts(np.array([(replay.macs.mean, replay.regret.mean) for replay in replays]))[0])
    for number, replay in enumerate(replays):
        b = replay.budget
        settings = [
            b.mode,
            *(
                ["", str(b.rungs), "", ""]
                if b.mode == "none"
                else map(str, (b.reduction_factor, b.rungs, b.grace_rungs, b.brackets))
            ),
        ]
        hours = _spread(replay.hours, ".3g") if replay.hours else ""
        regret = _spread(replay.regret, ".4f")
        figures = [_spread(replay.macs, ".4g", factor), _percent(replay.share), regret, f"{replay.kept:.0%}", hours]
        rows.append(["*" if number in front else "", *settings, *figures])
    own, top = record.study.budget, replays[0].top
    across = record.agreements_across_seeds or [None] * own.rungs
    rungs = [
        [
            *(str(n), _mark(own, mark)),
            *(*_agreement(record.agreements[n - 1]), *_agreement(across[n - 1]), f"{record.top_regret(n - 1, top):.4f}"),
        ]
        for n, mark in enumerate(own.milestones, start=1)
    ]
    head = ["rung", _trained(own), *_TAU, f"top-{top} regret"]
    marks = "* no other has both less compute and less regret"
    return [*_columns([titles, *rows]), "", marks, "", *_columns([head, *rungs]), "", *_luck(record)]


def _trained(budget: BudgetSettings) -> str:
    """The title of the column of rungs."""
    return "training TFLOPs" if budget.unit == "compute" else budget.unit


def _mark(budget: BudgetSettings, mark: int) -> str:
    return f"{mark / 1e12:.4g}" if budget.unit == "compute" else f"{mark:,}"


_TAU = ("tau within seeds", "95 % interval", "tau across seeds", "95 % interval")


def _luck(record: Recorded) -> list[str]:
    """What Kendall's τ and the regrets count as fidelity."""
    same = "tau within seeds and regret compare a rung with the end of the same trainings, so a training's luck counts as fidelity."
    if record.agreements_across_seeds is None:
        more = ["Replicates show how far two seeds agree: record 8 architectures or more with search.replicates=2 (16 trials)."]
    else:
        more = [
            "tau across seeds compares one seed's order at the rung with another's at the end; at the last rung it is the noise",
            "ceiling, the agreement of two full trainings.",
        ]
    return [same, *more]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text, titles first, as right-aligned columns; columns without an entry are left out."""
    widths = [max(map(len, column)) if any(column[1:]) else 0 for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True) if width) for row in rows]


def _spread(spread: MeanSd, form: str, unit: int = 1) -> str:
    sd = f" ± {spread.sd / unit:{'.2g' if form.endswith('g') else form}}" if spread.sd is not None else ""
    return f"{spread.mean / unit:{form}}{sd}"


def _percent(share: MeanSd) -> str:
    sd = f" ± {share.sd * 100:.1f}" if share.sd is not None else ""
    return f"{share.mean * 100:.1f}{sd}"


def _agreement(agreement: Agreement | None) -> list[str]:
    if agreement is None or agreement.tau is None:
        return ["", ""]
    return [f"{agreement.tau:.3f}", f"{agreement.low:.3f} to {agreement.high:.3f}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
