"""An ablation's run as tidy frames: one row a variant, control and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas.runs.records import Report, State
from nas.runs.run import Run, TrialResult
from nas.stats.sequential import looks
from space.errors import RunError
from space.published import Protocol

SCORES = ("val_loss", "fid", "sfid", "inception_score", "precision", "recall", "kid")
"""What is measured of a trial; all but the first only with `evaluation.fid`."""


@dataclass(frozen=True)
class AblationBlock:
    """A block of an ablation: its name, its design, the variant that the others are compared with, and the table beside it."""

    name: str
    design: str
    baseline: str
    chain: tuple[str, ...]
    """A ladder's rows from the baseline up, each adding to the one before; empty for other designs."""
    components: tuple[str, ...]
    """What the design puts together."""
    published: str | None


@dataclass(frozen=True)
class AblationFrames:
    """An ablation's frames.

    `seeds` has one row a (block, variant, control, seed): block, variant, control, family, baseline (whether the others are
    compared with it), label (of the row of the published table), trial, state, the scores after the whole budget (missing unless
    COMPLETE), gflops, train_gflops, params_m, channels, ratio (of the feed-forward), train_tflops, steps_per_s, images_per_s,
    peak_memory_mib, and for every component a column `has.…`. Rows of equal architecture share their trials. `reports` has the
    same at every rung, with rung (from 1) and step.

    GFLOPs and TFLOPs are multiply-accumulates / 1e9 and / 1e12.
    """

    name: str
    metric: str
    blocks: tuple[AblationBlock, ...]
    controls: tuple[str, ...]
    seeds: pd.DataFrame
    reports: pd.DataFrame
    looks: tuple[int, ...] | None
    """The numbers of pairs at which it was decided on more, where seeds were added while the run went on."""
    protocol: Protocol
    replanned: bool
    """Whether the ablation was changed after results were there, which p-values do not allow for."""
    first_seeds: int
    """Seeds below this one are those that every row was to be trained with."""
    margin: float | None
    """How large a difference may be to be settled as too small to matter, where seeds were added."""
    planned: int
    """How many trials there are to be at least."""

    @property
    def has_results(self) -> bool:
        """Whether any trial has what the ablation is about."""
        return not self.seeds.empty and bool(self.seeds[self.metric].notna().any())

    def rows(self, block: str, control: str = "raw", first: bool = False) -> pd.DataFrame:
        """The rows of a block under a control, the baseline's own (raw) ones included; of all seeds, or of those all rows share."""
        found = self.seeds[self.seeds["block"] == block]
        if first:
            found = found[found["seed"] < self.first_seeds]
        return found[(found["control"] == control) | found["baseline"]].reset_index(drop=True)


def ablation_frames(run: Run) -> AblationFrames:
    """The frames of an ablation in memory; raises RunError for a search."""
    study = run.study
    assert study is not None, "a run begins with its study"
    ablation = study.ablation
    if ablation is None:
        raise RunError(f"{study.name} is a search, which has no variants to compare; its frames are trials and reports")
    trials: dict[str, dict[int, TrialResult]] = {}
    for trial in run.trials.values():
        trials.setdefault(trial.digest, {})[trial.seed] = trial
    seeds = list(_rows(study, trials, last=True))
    reports = list(_rows(study, trials, last=False))
    columns = ["block", "variant", "control", "family", "baseline", "label", "seed", "trial", "state", *SCORES]
    most = max([ablation.seeds.max, *(len(own) for own in trials.values())])
    return AblationFrames(
        name=study.name,
        metric=ablation.metric,
        blocks=tuple(_block(study, block) for block in ablation.blocks),
        controls=ablation.controls,
        seeds=pd.DataFrame(seeds, columns=None if seeds else columns),
        reports=pd.DataFrame(reports, columns=None if reports else [*columns, "rung", "step", "train_tflops"]),
        # An earlier plan may have trained more seeds than are asked for now.
        looks=looks(ablation.seeds.min, most) if ablation.seeds.sequential else None,
        protocol=_protocol(run),
        replanned=run.replanned,
        first_seeds=study.training.seed + ablation.seeds.min,
        margin=ablation.seeds.margin,
        planned=len({row.spec.digest for row in study.rows}) * ablation.seeds.min,
    )


def _rows(study: Any, trials: dict[str, dict[int, TrialResult]], last: bool) -> Iterator[dict[str, Any]]:
    for row in study.rows:
        batch_size = study.training.batch_size
        components = sorted({name for other in study.rows if other.block == row.block for name in other.components})
        about = {
            "block": row.block,
            "variant": row.variant,
            "control": row.control,
            "family": row.family,
            "baseline": row.is_baseline,
            "label": row.label,
        }
        has = {f"has.{name}": name in row.components for name in components}
        for seed, trial in sorted(trials.get(row.spec.digest, {}).items()):
            facts = {"seed": seed, "trial": trial.number, "state": trial.state.value}
            found = trial.search_reports[-1:] if last else trial.search_reports
            if last and not found:
                yield about | facts | _measured(trial, None, batch_size) | has
            for report in found:
                measured = _measured(trial, report, batch_size, complete=not last or trial.state is State.COMPLETE)
                where = {} if last else {"rung": report.rung + 1, "step": report.step}
                yield about | facts | where | measured | has


def _measured(trial: TrialResult, report: Report | None, batch_size: int, complete: bool = True) -> dict[str, Any]:
    missing = float("nan")
    found = {"val_loss": report.val_loss, **report.scores} if report and complete else {}
    speed = report.images_per_s if report else missing
    return {
        **{name: found.get(name, missing) for name in SCORES},
        "gflops": trial.cost.gflops,
        "train_gflops": trial.cost.train_gflops,
        "params_m": trial.cost.params_m,
        "channels": trial.spec.channels,
        "ratio": trial.spec.feed_forward.ratio,
        "train_tflops": report.macs / 1e12 if report else 0.0,
        "steps_per_s": speed / batch_size,
        "images_per_s": speed,
        "peak_memory_mib": report.peak_memory_mib if report else missing,
    }


def _block(study: Any, block: Any) -> AblationBlock:
    own = [row for row in study.rows if row.block == block.name and row.control == "raw"]
    chain = [row.variant for row in own if row.is_baseline or row.previous] if block.design == "ladder" else []
    components = dict.fromkeys(name for row in own for name in row.components)
    return AblationBlock(block.name, block.design, block.baseline, tuple(chain), tuple(components), block.published)


def _protocol(run: Run) -> Protocol:
    """How the run trained and scored, for what is printed to be compared with."""
    assert run.study is not None
    study, header = run.study, run.study.data.header()
    side = 8 * header.shape[1]
    imagenet = "imagenet" in header.source.lower() or "imagenet" in Path(study.data.source).name.lower()
    fid = study.evaluation.fid
    return Protocol(
        data=f"ImageNet {side}×{side}" if imagenet else Path(study.data.source).name,
        batch_size=study.training.batch_size,
        train_steps=study.budget.steps,
        samples=fid.samples if fid else None,
        sampling_steps=fid.steps if fid else None,
        guidance=fid.guidance if fid else None,
    )
