"""Features for the tests of metrics, and their statistics over batches."""

import numpy as np

from nas.evaluation.statistics import FeatureStatistics


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def streamed(features, *cuts):
    found = FeatureStatistics()
    for batch in np.split(features, cuts):
        found.update(batch)
    return found
