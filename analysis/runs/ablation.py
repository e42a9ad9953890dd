"""The tidy frames of an ablation's run: one row per variant, control and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas.runs.records import Report, State
from nas.runs.run import Run, TrialResult
from nas.stats.sequential import looks
from nas.study.metrics import SCORES
from nas.study.settings import FidSettings
from space.costs.cost import cost
from space.errors import RunError
from space.published import Protocol


@dataclass(frozen=True)
class AblationBlock:
    """A block of an ablation: variants that are compared with one baseline."""

    name: str
    design: str
    baseline: str
    """The variant that the others are compared with."""
    chain: tuple[str, ...]
    """A ladder's variants from the baseline up, each adding to the one before; empty for other designs."""
    components: tuple[str, ...]
    """The components that the design combines."""
    published: str | None
    """The name of the published table that the block reproduces."""


@dataclass(frozen=True)
class AblationFrames:
    """An ablation's frames and the facts of its plan that their reading needs.

    `seeds` has one row per (block, variant, control, seed). Columns: block, variant, control, family, baseline (whether the
    others are compared with it), label (of the row in the published table), seed, trial, state; the scores after the whole
    budget (missing unless COMPLETE); gflops, train_gflops, params_m, channels, ratio (of the feed-forward), train_tflops,
    steps_per_s, images_per_s, peak_memory_mib; and a boolean column `has.NAME` per component. Rows of equal architecture
    share their trials. `reports` has the same columns at every rung, with rung (from 1) and step.

    GFLOPs and TFLOPs are multiply-accumulates / 1e9 and / 1e12.
    """

    name: str
    metric: str
    blocks: tuple[AblationBlock, ...]
    controls: tuple[str, ...]
    seeds: pd.DataFrame
    reports: pd.DataFrame
    looks: tuple[int, ...] | None
    """The numbers of pairs at which the differences were looked at, where seeds were added during the run; else None."""
    protocol: Protocol
    replanned: bool
    """Whether the ablation was changed after the first results, which p-values do not allow for."""
    first_seeds: int
    """Every row is trained with the planned seeds, which are those below this number."""
    margin: float | None
    """A difference within ± this margin is too small to matter, and no seeds are added for it."""
    planned: int
    """The least number of trials that the plan asks for."""
    sampled: FidSettings | None
    """How the samples behind the scores were drawn; None where only the validation loss was measured."""

    @property
    def has_results(self) -> bool:
        """Whether any trial has a value of the ablation's metric."""
        return not self.seeds.empty and bool(self.seeds[self.metric].notna().any())

    def rows(self, block: str, control: str = "raw", first: bool = False) -> pd.DataFrame:
        """The rows of a block under a control, with the baseline's raw rows among them, of trials that have ended.

        A trial without a value has failed, and a seed without a trial has no row, as `analysis.compare` takes it.

        Args:
            block: The block's name; empty for an ablation without blocks.
            control: `raw`, or a control that matched the cost of the variants to the baseline's.
            first: Whether to keep only the planned seeds, which all rows share.
        """
        rows = self.ended(block, first)
        return rows[(rows["control"] == control) | rows["baseline"]].reset_index(drop=True)

    def ended(self, block: str, first: bool = False) -> pd.DataFrame:
        """The rows of a block under all controls, of trials that have ended; `first` as for `rows`."""
        rows = self.seeds[(self.seeds["block"] == block) & (self.seeds["state"] != State.RUNNING.value)]
        return rows[rows["seed"] < self.first_seeds] if first else rows


def ablation_frames(run: Run) -> AblationFrames:
    """The frames of an ablation; raises RunError for a search."""
    study = run.study
    ablation = study.ablation
    if ablation is None:
        raise RunError(f"{study.name} is a search, which has no variants to compare; its frames are trials and reports")
    trials: dict[str, dict[int, TrialResult]] = {}
    for trial in run.trials.values():
        trials.setdefault(trial.digest, {})[trial.seed] = trial
    seeds = list(_rows(study, trials, last=True))
    reports = list(_rows(study, trials, last=False))
    columns = ["block", "variant", "control", "family", "baseline", "label", "seed", "trial", "state", *SCORES]
    # An earlier plan may have trained more seeds than the present one asks for.
    most_seeds = max([ablation.seeds.max, *(len(by_seed) for by_seed in trials.values())])
    return AblationFrames(
        name=study.name,
        metric=ablation.metric,
        blocks=tuple(_block(study, block) for block in ablation.blocks),
        controls=ablation.controls,
        seeds=pd.DataFrame(seeds, columns=None if seeds else columns),
        reports=pd.DataFrame(reports, columns=None if reports else [*columns, "rung", "step", "train_tflops"]),
        looks=looks(ablation.seeds.min, most_seeds) if ablation.seeds.sequential else None,
        protocol=_protocol(run),
        replanned=run.replanned,
        first_seeds=study.training.seed + ablation.seeds.min,
        margin=ablation.seeds.margin,
        planned=len({row.spec.digest for row in study.rows}) * ablation.seeds.min,
        sampled=study.evaluation.fid,
    )


def _rows(study: Any, trials: dict[str, dict[int, TrialResult]], last: bool) -> Iterator[dict[str, Any]]:
    """The rows of `AblationFrames.seeds` (`last`: each trial's last report) or of `AblationFrames.reports`."""
    batch_size = study.training.batch_size
    for row in study.rows:
        components = sorted({name for other in study.rows if other.block == row.block for name in other.components})
        identity = {
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
            reports = trial.search_reports[-1:] if last else trial.search_reports
            if last and not reports:
                yield identity | facts | _measured(trial, None, batch_size) | has
            for report in reports:
                measured = _measured(trial, report, batch_size, complete=not last or trial.state is State.COMPLETE)
                stage = {} if last else {"rung": report.rung + 1, "step": report.step}
                yield identity | facts | stage | measured | has


def _measured(trial: TrialResult, report: Report | None, batch_size: int, complete: bool = True) -> dict[str, Any]:
    missing = float("nan")
    scores = {"val_loss": report.val_loss, **report.scores} if report and complete else {}
    speed = report.images_per_s if report else missing
    return {
        **{name: scores.get(name, missing) for name in SCORES},
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
    raw = [row for row in study.rows if row.block == block.name and row.control == "raw"]
    chain = [row.variant for row in raw if row.is_baseline or row.previous] if block.design == "ladder" else []
    components = dict.fromkeys(name for row in raw for name in row.components)
    return AblationBlock(block.name, block.design, block.baseline, tuple(chain), tuple(components), block.published)


def _protocol(run: Run) -> Protocol:
    """The protocol of training and scoring, to compare with that of published numbers."""
    study, header = run.study, run.study.header
    baseline = study.rows[0].spec
    steps = None if study.budget.unit == "compute" else study.budget.steps_of(cost(baseline), study.training.batch_size)[-1]
    side = 8 * header.shape[1]
    imagenet = "imagenet" in header.source.lower() or "imagenet" in Path(study.data.source).name.lower()
    fid = study.evaluation.fid
    return Protocol(
        data=f"ImageNet {side}×{side}" if imagenet else Path(study.data.source).name,
        batch_size=study.training.batch_size,
        train_steps=steps,
        samples=fid.samples if fid else None,
        sampling_steps=fid.steps if fid else None,
        guidance=fid.guidance if fid else None,
    )
