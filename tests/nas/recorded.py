"""Full-length curves to replay, without a ledger."""

import numpy as np

from nas.replay.curves import Curve, Recorded
from space.costs.table import CostTable
from tests.nas.scripted import loss_of

VARIED = [
    "search.space={channels: [8, 16, 24, 32], heads: [1, 2], feed_forward.kind: [mlp, conv], feed_forward.ratio: {float: [1, 4]}}",
    "search.constraints={gflops: {max: 0.02}}",
    "search.sampler.kind=random",
    "search.trials=24",
    "budget.rungs=5",
]
ALL_FULLY = [*VARIED, "budget.mode=none"]
TWO = ["search.objectives=[{metric: val_loss}, {metric: gflops}]"]


def seeded_loss(plan, rung):
    """Losses whose order changes from rung to rung and from seed to seed."""
    return loss_of(plan, rung) + 0.05 * (plan.seed + 1) * (rung + 1) * (int(plan.spec.digest, 16) % 3 - 1)


def of_losses(study, losses, seconds=None, seed=0):
    """Architectures of the study's space with given losses (N, rungs), recorded without a ledger."""
    losses = np.asarray(losses, dtype=float)
    space = study.search_space
    points = space.points(np.random.default_rng(seed), 30 * len(losses))
    points = points.take(np.flatnonzero(space.violation(CostTable(points)) == 0))
    milestones = study.budget.milestones
    found = []
    for row, own in enumerate(losses):
        taken = tuple(macs / 1e6 for macs in milestones) if seconds is None else tuple(seconds[row])
        values = tuple((float(loss),) for loss in own)
        found.append(Curve(points.params(row), (values,), (milestones,), (taken,), (tuple(own.tolist()),)))
    return Recorded(study, tuple(found))


def noisy(study, count, noise, seed=0):
    """Curves that fall, with a noise that falls with them."""
    rng = np.random.default_rng(seed)
    rungs = np.arange(1, study.budget.rungs + 1)
    return of_losses(study, rng.uniform(size=(count, 1)) + 1 / rungs + rng.normal(size=(count, len(rungs))) * noise / rungs)
