"""The notes below an ablation's table: the metric, the rule of the verdicts, what failed, and how far to trust what is claimed."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.runs.ablation import AblationFrames
from nas.runs.records import State
from nas.stats.paired import attainable_p, pairs_needed
from nas.stats.pairing import seed_correlation
from nas.stats.verdicts import BETTER, RULES, SEQUENTIAL, WORSE
from nas.study.metrics import lower_is_better

ALPHA = 0.05


def reading(run: AblationFrames, baseline: str, compared: pd.DataFrame, rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """The notes on the metric, the intervals and the tests of a table.

    Args:
        run: The ablation's frames.
        baseline: The variant that the others are compared with.
        compared: The result of `compare`, with a ladder's steps where there are any.
        rows: What was compared: one row per variant and seed.
        metric: The metric.
    """
    better = "lower" if lower_is_better(metric) else "higher"
    others = compared[compared["variant"] != baseline]
    pairs = int(others["pairs"].max()) if len(others) else 0
    yield from _interim(run)
    yield from _unmeasured(run, metric)
    yield from _sampled(run, metric)
    if pairs < 2:
        yield f"{metric}: {better} is better. One seed per row: no intervals, no tests and no marks, as seeds differ too."
        return
    least = int(others["pairs"].min())
    count = f"{pairs}" if least == pairs else f"{least} to {pairs}"
    yield f"{metric}: {better} is better. Differences are to {baseline}, paired by seed ({count} pairs), with 95 % intervals."
    # The first step is the first rung's difference, and counts once.
    steps = int((compared["step"].notna().sum() if "step" in compared else 0) - 1)
    comparisons = len(others) + max(steps, 0)
    yield claimed_by(others, comparisons, "differences and steps" if steps > 0 else "")
    if run.looks:
        yield (
            "Seeds were added while differences were undecided: intervals and p-values are of a group-sequential design "
            f"with looks from {run.looks[0]} to {run.looks[-1]} pairs, valid under peeking."
        )
        if run.margin is not None:
            yield f"No seeds were added where the interval lay within ±{run.margin:g}: too small to matter."
    else:
        exact = attainable_p(pairs, comparisons)
        more = "" if exact <= ALPHA else f" ({pairs_needed(comparisons, ALPHA)} pairs would get below {ALPHA})"
        yield (
            f"p is that of the exact sign-flip test, which decides nothing: with Holm's correction over "
            f"{counted(comparisons, 'comparison')} it reaches {exact:.2g} at best{more}."
        )
    yield from _failures(compared)
    yield from _exaggeration(compared)
    known = seed_correlation(rows.pivot_table(index="variant", columns="seed", values=metric, sort=False).to_numpy(dtype=float))
    if known:
        yield f"Seeds: {known}."
    if run.replanned:
        yield "The ablation was changed after the first results (rows, seeds, design or metric): no p-value here allows for that."


def claimed_by(compared: pd.DataFrame, comparisons: int, what: str) -> str:
    """The rule of a table's verdicts, and the family that is corrected together."""
    rule = next((name for name in compared["rule"] if name), RULES["t"])
    normal = ", which assumes normal differences" if rule in (RULES["t"], SEQUENTIAL["t"]) else ""
    if comparisons < 2:
        return f"Verdicts are by the {rule}{normal}: a claim where p rule < {ALPHA}."
    kinds = f" ({what})" if what else ""
    return (
        f"Verdicts are by {rule}{normal}, with Holm's correction over all {comparisons} comparisons of this table{kinds}: a claim "
        f"where p rule Holm < {ALPHA}. The {100 * ALPHA:.0f} % for any false claim are this table's; over several it adds up."
    )


def _failures(compared: pd.DataFrame) -> Iterator[str]:
    """What failed trials did to the verdicts: they are counted against claims, each as the largest difference of its row."""
    kinds = [("", "")] + ([("step_", "the step to ")] if "step" in compared else [])
    for prefix, named in kinds:
        columns = [f"{prefix}{name}" for name in ("planned", "pairs", "verdict", "verdict_without_failures")]
        known = compared[["variant", *columns]].dropna().astype(dict.fromkeys(columns[:2], int))
        for variant, planned, pairs, verdict, without in known.itertuples(index=False):
            lost = f"{named}{variant}: {planned - pairs} of {planned} pairs failed"
            if verdict != without:
                yield (
                    f"{lost}; the others alone would say '{without}', but with the failures counted against it, each as the "
                    f"largest difference seen, it is '{verdict}'."
                )
            elif planned > pairs and not prefix:
                yield f"{lost}" + (f"; '{verdict}' holds with them counted against it." if verdict in (BETTER, WORSE) else ".")


def _exaggeration(compared: pd.DataFrame) -> Iterator[str]:
    """By how much claimed differences are too large on average."""
    names = [name for name in ("exaggeration", "step_exaggeration") if name in compared]
    factors = pd.concat([compared[name] for name in names]).dropna()
    if len(factors):
        least, most = (f"{100 * (factor - 1):.0f}" for factor in (factors.min(), factors.max()))
        span = "less than 1" if most == "0" else most if least == most else f"{least} to {most}"
        yield (
            f"Only large differences are claimed, so claimed ones are too large on average: by {span} % where the true ones are as "
            f"large as those seen, by more where they are smaller (type M error, at {ALPHA} over the number of comparisons)."
        )


def _interim(run: AblationFrames) -> Iterator[str]:
    """The notes on trials that have not ended, and on trials that failed."""
    trials = run.seeds.drop_duplicates("trial")["state"]
    failed = int((trials == State.FAILED.value).sum())
    ended = int((trials == State.COMPLETE.value).sum()) + failed
    if ended < run.planned:
        yield f"Interim: {ended} of {run.planned} planned trials have ended, and p-values hold for the planned number only."
    if failed:
        yield f"{counted(failed, 'trial')} FAILED; their seeds are left out of those rows' pairs, and count against claims."


def _unmeasured(run: AblationFrames, metric: str) -> Iterator[str]:
    """The note on complete trials that were scored without the metric, as by an earlier version."""
    trials = run.seeds.drop_duplicates("trial")
    lacking = int((trials[metric].isna() & (trials["state"] == State.COMPLETE.value)).sum())
    if lacking:
        yield f"{counted(lacking, 'complete trial')} had no {metric} measured; their seeds are left out of those rows' pairs."


def _sampled(run: AblationFrames, metric: str) -> Iterator[str]:
    """The notes on a metric of samples: what its spread is over, and whether the samples are enough to order models by it."""
    if run.sampled is None or metric == "val_loss":
        return
    sets = len(run.sampled.seeds)
    of = f"the mean over {sets} sampling seeds" if sets > 1 else "of one sampling seed"
    yield f"The {metric} of a training is {of}; every spread and interval here is over trainings."
    scored = run.seeds.drop_duplicates("trial").dropna(subset=metric)
    older = int(scored["fid_infinity"].isna().sum())
    if metric == "kid" and 0 < older < len(scored):
        yield (
            f"{older} of {len(scored)} trials have no fid_infinity: an earlier version scored them, whose kid was a little lower, "
            "as it did not allow for samples in equal numbers a class; train them anew in another run directory."
        )
    if biased := run.sampled.biased_order(metric):
        yield f"{biased[0].upper()}{biased[1:]}."


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 trial`, `2 trials`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"
