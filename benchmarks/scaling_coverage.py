"""How often the intervals of scaling curves hold the truth, and how often the better family is told rightly, on known curves.

Each case draws pairs of families that are about 1 % apart in E, A and α. Half of the noise is common to both, and the rungs of a
trial are correlated: 0.6 of the variance is the seed's, the rest has an autocorrelation of 0.8. In cases with a break the slope of
the curve changes within the budgets, by a factor and at a share of their range in log compute; families may break apart.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.scaling.crossings import probability_better
from analysis.scaling.fit import scaling_fit
from space.array import Array

Parameters = tuple[float, float, float]
"""E, A and α."""

LAW: Parameters = (0.3, 0.3, 0.5)
READ = (1, 2, 4, 10)
"""Where curves are read, in times of the largest budget."""
SURE = 0.9
"""A family is called better where its probability is at least this."""


@dataclass(frozen=True)
class Case:
    """One row: the curves of two families, and how they are measured."""

    name: str
    seeds: int
    budgets: int
    noise: float
    """The standard deviation of one run, relative."""
    breaks: tuple[float | None, float | None] = (None, None)
    """The share of the budgets' range after which each family breaks, in log compute."""
    factor: float = 0.4
    """What the slope is multiplied with at a break."""
    smooth: bool = False
    """Whether the slope changes over several doublings."""
    floor: bool = True

    @property
    def largest(self) -> float:
        """The largest budget; the smallest is 1, and each is twice the one before."""
        return float(2 ** (self.budgets - 1))

    def curve(self, family: int, law: Parameters, compute: Array) -> Array:
        """The true values of a family."""
        E, A, alpha = law
        share, E = self.breaks[family], E if self.floor else 0.0
        if share is None:
            return np.asarray(E + A * compute**-alpha)
        beyond = compute / self.largest**share
        bend = (1 + beyond**1.5) ** (1 / 1.5) if self.smooth else np.maximum(beyond, 1)
        return np.asarray(E + A * compute**-alpha * bend ** ((1 - self.factor) * alpha))

    def draw(self, draw: int) -> tuple[pd.DataFrame, list[Parameters]]:
        """The runs of a pair of families, "0" and "1", and their parameters."""
        rng = np.random.default_rng([draw, 7])
        compute = 2.0 ** np.arange(self.budgets)
        shared = self._noise(rng)
        signs, sizes = rng.choice([-1, 1], 3), rng.uniform(0.008, 0.012, 3)
        E, A, alpha = (value * (1 + change) for value, change in zip(LAW, signs * sizes, strict=True))
        laws, frames = [LAW, (E, A, alpha)], []
        for family, law in enumerate(laws):
            values = self.curve(family, law, compute) * (1 + self.noise * np.sqrt(0.5) * (shared + self._noise(rng)))
            wide = pd.DataFrame(values, columns=compute).rename_axis(index="seed", columns="train_tflops")
            frames.append(wide.stack().rename("val_loss").reset_index().assign(family=str(family)))
        return pd.concat(frames, ignore_index=True), laws

    def _noise(self, rng: np.random.Generator) -> Array:
        of_seed, normal = rng.standard_normal((self.seeds, 1)), rng.standard_normal((self.seeds, self.budgets))
        rest = normal.copy()
        for place in range(1, self.budgets):
            rest[:, place] = 0.8 * rest[:, place - 1] + 0.6 * normal[:, place]
        return np.asarray(np.sqrt(0.6) * of_seed + np.sqrt(0.4) * rest)


CASES = (
    Case("law", 6, 6, 0.01),
    Case("break inside", 6, 6, 0.01, (0.5, 0.5)),
    Case("break inside", 6, 8, 0.005, (0.5, 0.5)),
    Case("break near the end", 6, 6, 0.01, (0.9, 0.9)),
    Case("break near the end", 6, 8, 0.005, (0.9, 0.9)),
    Case("break near the end", 6, 6, 0.02, (0.9, 0.9)),
    Case("gets steeper", 6, 6, 0.01, (0.5, 0.5), factor=2),
    Case("one breaks near the end", 6, 6, 0.01, (None, 0.9)),
    Case("breaks apart", 6, 6, 0.01, (0.5, 0.75)),
    Case("law", 3, 4, 0.01),
    Case("break inside", 3, 5, 0.01, (0.5, 0.5)),
    Case("no floor", 6, 6, 0.01, floor=False),
    Case("gradual break", 6, 8, 0.005, (0.5, 0.5), smooth=True),
    Case("break at the end", 6, 6, 0.01, (1.0, 1.0)),
)


def measure(case: Case, draws: Sequence[int], resamples: int = 400) -> dict[str, float]:
    """The shares of a case over draws of it.

    Returns:
        `found`, the share of families with a lack of fit; `inside`, that of held-out budgets within their interval; `doubt`, the
        share of pairs of which the law of one is in doubt; by place of READ `cover_K`, the share of curves' intervals that hold the
        truth, `width_K`, their median width relative to the truth; and, of pairs in doubt or not, `sure_K`, the share of pairs with
        a probability of at least SURE, and `right_K`, the share of these that is right.
    """
    seen = defaultdict[str, list[float]](list)
    for draw in draws:
        frame, laws = case.draw(draw)
        fit = scaling_fit(frame, resamples=resamples)
        seen["found"] += list(fit.table["lack_of_fit"] <= 0.05)
        seen["inside"] += list(fit.table["inside"].dropna().astype(float))
        doubt = any(family.doubt for family in fit.families)
        seen["doubt"].append(doubt)
        for times in READ:
            at = times * case.largest
            truths = [float(case.curve(family, law, np.array([at]))[0]) for family, law in enumerate(laws)]
            for family, truth in zip(fit.families, truths, strict=True):
                low, high = np.percentile(family.curves[1].at(at), [2.5, 97.5])
                seen[f"cover_{times}"].append(low <= truth <= high)
                seen[f"width_{times}"].append((high - low) / truth)
            probability = probability_better(fit, "0", "1", at).probability
            sure = max(probability, 1 - probability) >= SURE
            right = (probability > 0.5) == (truths[0] < truths[1])
            for name in (f"{times}", *([f"{times}_doubt"] if doubt else [])):
                seen[f"sure_{name}"].append(sure)
                seen[f"right_{name}"] += [right] if sure else []
    return {name: float(np.median(values) if "width" in name else np.mean(values)) for name, values in seen.items()}


def main() -> None:
    """Print a row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--cases", nargs="+", default=sorted({case.name for case in CASES}))
    given = parser.parse_args()
    heads = [f"{head} {times}×" for head in ("cover", "sure → right") for times in READ[1:]]
    print("| case | seeds × budgets, noise | found | held out | " + " | ".join([*heads[:3], "width 2×", *heads[3:]]) + " |")
    print("| --- " * 11 + "|")
    for case in CASES:
        if case.name not in given.cases:
            continue
        share = measure(case, range(given.draws), given.resamples)
        cells = [f"{100 * share.get(name, np.nan):.0f}" for name in ("found", "inside", *(f"cover_{times}" for times in READ[1:]))]
        cells.append(f"{share['width_2']:.3f}")
        for times in READ[1:]:
            cells.append(f"{share[f'sure_{times}']:.2f} → {share.get(f'right_{times}', np.nan):.2f}")
        print(f"| {case.name} | {case.seeds} × {case.budgets}, {case.noise:.1%} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
