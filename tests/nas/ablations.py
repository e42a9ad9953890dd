"""Ablation studies for tests: small models, and losses that are scripted."""

import copy

import numpy as np
import yaml

from nas.study.load import load_study
from tests.conftest import TINY

VARIANTS = [
    {"name": "+ cosine", "set": {"attention.similarity": "cosine"}},
    {"name": "+ RoPE", "set": {"attention.position": "rope2d"}},
    {"name": "+ conv", "set": {"feed_forward.kind": "conv", "feed_forward.reparam": False}},
]
PLAIN = {"attention.similarity": "dot", "attention.position": "none", "feed_forward.kind": "mlp"}


def ablation(folder, *changes, **block):
    """A study of three toggles over a plain model; keywords are keys of `ablation`."""
    data = copy.deepcopy(TINY)
    del data["search"], data["finish"]
    data["model"]["set"] |= PLAIN
    data["budget"] = {"steps": 2}
    data["ablation"] = {"design": "add-one-in", "baseline": "plain", "variants": VARIANTS, "seeds": 3} | block
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_study(path, list(changes))


def effects(study, control="raw", sd=0.01, noise=0.01, **by_name):
    """A loss for `scripted.carry_out`: a seed's own level, an effect a variant, and noise."""
    rows = [row for row in study.rows if row.control == control]
    shifts = {row.spec.digest: by_name.get(row.variant.removeprefix("+ "), 0.0) for row in reversed(rows)}

    def loss(plan, rung):
        level = np.random.default_rng(plan.seed).normal(0, sd)
        own = np.random.default_rng([plan.seed, int(plan.spec.digest, 16) % 2**32]).normal(0, noise)
        return float(1 + level + own + shifts.get(plan.spec.digest, 0.0))

    return loss
