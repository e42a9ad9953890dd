"""How widely samplers spread their proposals where little of a space is feasible, and how good the best of them is.

With noise as loss there is nothing to learn, so a sampler that proposes the same again and again only follows where it began. The
spread is the mean Gower distance between the last 6 of 12 proposals. The loss is that of the best of 24 proposals, as its rank
among 10,000 random feasible points (0 is the best of all), for an additive objective and for the distance from a hidden one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations

import numpy as np

from nas.runs.records import State
from nas.search.optuna_searcher import OptunaSearcher
from nas.study.settings import SearchSettings
from space import Domain, Range, SearchSpace, preset
from space.array import Array
from space.costs.points import Column, Points
from space.costs.table import CostTable
from space.domains.near import distances
from space.domains.space import Params

DEPTHS = {"each": {"int": [1, 2]}}
QUICKSTART = {
    "channels": [16, 24],
    "depths": DEPTHS,
    "heads": [2, 4],
    "attention.downsampler": ["pixel-shuffle", "dwconv", "dwconv-shortcut"],
    "attention.similarity": ["dot", "cosine"],
    "attention.position": ["none", "rope2d"],
    "feed_forward.kind": ["mlp", "conv"],
    "feed_forward.ratio": [2, 4],
    "feed_forward.reparam": {"when": {"feed_forward.kind": "conv"}, "choice": [False, True]},
}
WIDE = QUICKSTART | {
    "channels": {"int": [8, 64], "step": 4},
    "depths": {"each": {"int": [1, 4]}},
    "feed_forward.ratio": [1, 2, 3, 4],
}
SPACES = {
    "quickstart": (QUICKSTART, {"gflops": (0.015, 0.045), "params_m": (None, 4)}),
    "5 %": (WIDE, {"gflops": (0.03, 0.045)}),
    "1 %": (WIDE, {"gflops": (0.03, 0.0327)}),
    "0.1 %": (WIDE, {"gflops": (0.03, 0.03025)}),
}
"""By name: domains and constraints; the names of the narrow ones are about their feasible shares."""

Loss = Callable[[Params], float]


def space_of(name: str) -> SearchSpace:
    """A space of the table."""
    domains, bounds = SPACES[name]
    constraints = {metric: Range(min=low, max=high) for metric, (low, high) in bounds.items()}
    return SearchSpace(preset("u-dit-toy"), {path: Domain.model_validate(domain) for path, domain in domains.items()}, constraints)


def feasible_points(space: SearchSpace, count: int, seed: int = 0) -> tuple[Points, float]:
    """About `count` random feasible points of a space, and its feasible share."""
    rng = np.random.default_rng(seed)
    points = space.points(rng, 200_000)
    rows = np.flatnonzero(space.violation(CostTable(points)) == 0)
    return points.take(rows[:count]), len(rows) / points.count


def proposals(space: SearchSpace, kind: str, loss: Loss, trials: int, seed: int, share: float) -> list[Params]:
    """The points that a sampler proposes one after the other, each trained with the given loss before the next is asked for."""
    settings = SearchSettings.model_validate({"space": {"heads": [1]}, "trials": trials, "sampler": {"kind": kind, "seed": seed}})
    searcher, seen, proposed = OptunaSearcher(space, settings, share), set[str](), list[Params]()

    def rejects(params: Params) -> dict[str, float] | None:
        spec = space.spec_or_none(params)
        if spec is None:
            return {"spec": 1.0}
        return space.violations(spec) or ({} if spec.digest in seen else None)

    for number in range(trials):
        suggestion = searcher.suggest(number, rejects)
        if suggestion is None:
            break
        seen.add(space.spec(suggestion.params).digest)
        proposed.append(suggestion.params)
        searcher.tell(number, State.COMPLETE, [loss(suggestion.params)], [])
    return proposed


def spread(space: SearchSpace, points: list[Params]) -> float:
    """The mean Gower distance between points, per parameter: 0 for the same point, 1 where every parameter is at other ends."""
    pairs = [float(distances(space, column(space, one), 1, other)[0]) for one, other in combinations(points, 2)]
    return float(np.mean(pairs)) / len(space.parameters)


def column(space: SearchSpace, params: Params) -> dict[str, Column]:
    """One point as columns."""
    columns = {}
    for parameter in space.parameters:
        choices, active = parameter.domain.choice, parameter.name in params
        value = params.get(parameter.name, parameter.domain.first)
        entry = value if choices is None else list(choices).index(value)
        columns[parameter.name] = Column(np.array([entry]), choices, np.array([active]))
    return columns


def objective(space: SearchSpace, kind: str, seed: int, among: Points) -> tuple[Loss, Array]:
    """A synthetic loss, and its sorted values at the points `among`: the distance from one of them, or a sum over parameters.

    The sum is of the distances of single parameters from the values of that point, with random weights.
    """
    rng = np.random.default_rng([seed, 1])
    target = among.params(int(rng.integers(among.count)))
    weights = {p.name: float(rng.exponential()) if kind == "additive" else 1.0 for p in space.parameters}

    def of(columns: dict[str, Column], count: int) -> Array:
        total = np.zeros(count)
        for parameter in space.parameters:
            total += weights[parameter.name] * distances(one_of(space, parameter.name), columns, count, target)
        return total

    return lambda params: float(of(column(space, params), 1)[0]), np.sort(of(among.columns, among.count))


def one_of(space: SearchSpace, name: str) -> SearchSpace:
    """A view of a space with one of its parameters."""
    view = SearchSpace.__new__(SearchSpace)
    view.parameters = tuple(parameter for parameter in space.parameters if parameter.name == name)
    return view


def noise(seed: int) -> Loss:
    """A loss that says nothing."""
    rng = np.random.default_rng([seed, 2])
    return lambda params: float(rng.uniform())


def main() -> None:
    """Print a row per space and sampler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=["tpe", "random"])
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    given = parser.parse_args()
    print(f"{'space':<12}{'feasible':>9}  {'sampler':<8}{'spread':>8}{'additive':>10}{'distance':>10}")
    for name in given.spaces:
        space = space_of(name)
        among, share = feasible_points(space, 10_000)
        for kind in given.kinds:
            seeds = range(given.seeds)
            wide = np.mean([spread(space, proposals(space, kind, noise(s), 12, s, share)[6:]) for s in seeds])
            ranks = []
            for form in ("additive", "distance"):
                reached = []
                for seed in seeds:
                    loss, known = objective(space, form, seed, among)
                    best = min(map(loss, proposals(space, kind, loss, 24, seed, share)))
                    reached.append(np.searchsorted(known, best) / len(known))
                ranks.append(np.mean(reached))
            print(f"{name:<12}{share:>9.2%}  {kind:<8}{wide:>8.3f}{ranks[0]:>10.4f}{ranks[1]:>10.4f}", flush=True)


if __name__ == "__main__":
    main()
