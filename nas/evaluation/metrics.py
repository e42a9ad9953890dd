"""The metrics of generated images, as pure functions of features and logits: FID, inception score, precision and recall, KID.

All arithmetic is in float64. sFID is `fid` of spatial features, which come from an early layer and keep their positions
(Nash et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.statistics import (
    FeatureRows,
    FeatureStatistics,
    Matrix,
    Moments,
    Statistics,
    checked_features,
    frechet_distance,
)
from space.errors import DataError

_BLOCK = 2048
"""Rows and columns of the pairwise matrices that are in memory at a time: 32 MiB each in float64."""

_LARGEST = 1e300
"""Larger squared norms could overflow when added or multiplied."""


class PrecisionRecall(NamedTuple):
    """The share of generated images that look real, and the share of real images that the model could generate."""

    precision: float
    recall: float


def fid(a: FeatureRows | Statistics, b: FeatureRows | Statistics) -> float:
    """The Fréchet inception distance (Heusel et al. 2017); symmetric. It is FID of pooled features and sFID of spatial ones.

    Args:
        a: Features (N, D), or their statistics.
        b: Features (M, D), or their statistics.

    Raises:
        DataError: Features are not finite, the dimensions differ, or a set has D images or fewer.
    """
    return frechet_distance(_statistics(a), _statistics(b))


def inception_score(logits: FeatureRows, split_size: int = 5000) -> float:
    """exp E KL(p(y|x) ‖ p(y)), averaged over consecutive splits; between 1 and K (Salimans et al. 2016).

    A smaller last split counts as much as the others, as in the ADM suite, so `split_size` should divide N.

    Args:
        logits: Classifier logits (N, K).
        split_size: Images per split.

    Raises:
        DataError: There are no logits, they are not finite, or the split size is below 1.
    """
    logits = checked_features(logits, "logits", columns="K")
    if split_size < 1:
        raise DataError(f"split_size is {split_size}; give 1 or more, 5000 being usual")
    if not len(logits):
        raise DataError("an inception score needs at least 1 image, and there are no logits")
    with np.errstate(over="ignore", invalid="ignore"):
        score = float(np.mean([_split_score(logits[i : i + split_size]) for i in range(0, len(logits), split_size)]))
    if not math.isfinite(score):
        raise DataError("the inception score overflows; the logits are too large to be a classifier's")
    return score


def precision_recall(reference: FeatureRows, generated: FeatureRows, k: int = 3) -> PrecisionRecall:
    """Precision and recall of generated images against reference images (Kynkäänniemi et al. 2019).

    A set's manifold is the union of balls around its members, each reaching to its member's k-th nearest fellow (equation 1).
    Precision is the share of generated images in the reference manifold; recall is the share of reference images in the generated
    manifold. Time grows with N² + M² + NM, memory with N + M.

    Args:
        reference: Features (N, D).
        generated: Features (M, D).
        k: The number of the nearest neighbour that sets a ball's radius.

    Raises:
        DataError: Features are not finite or too large to square, the dimensions differ, or a set has fewer than k + 1 images.
    """
    reference, generated = _pair(reference, generated, "reference", "generated")
    if k < 1:
        raise DataError(f"k is {k}; give the number of nearest neighbours, 1 or more, 3 being usual")
    for features, what in ((reference, "reference"), (generated, "generated")):
        if len(features) <= k:
            raise DataError(
                f"precision and recall with k = {k} need at least {k + 1} images in each set, but {len(features)} are {what}"
            )
    # A common shift does not change distances, but a large common mean would cost precision.
    with np.errstate(over="ignore"):
        centre = reference.mean(axis=0, dtype=np.float64)
    real, made = _Points(reference, centre, "reference"), _Points(generated, centre, "generated")
    real_radii, made_radii = _squared_radii(real, k), _squared_radii(made, k)
    precise, recalled = np.zeros(len(made), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows in _blocks(len(made)):
        for columns in _blocks(len(real)):
            squared = _squared_distances(made, rows, real, columns)
            precise[rows] |= (squared <= real_radii[columns]).any(axis=1)
            recalled[columns] |= (squared <= made_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def kid(a: FeatureRows, b: FeatureRows, classes: NDArray[np.int64] | None = None) -> float:
    """The kernel inception distance: unbiased MMD² with kernel (x·y/D + 1)³; symmetric (Bińkowski et al. 2018, equation 4).

    It is taken over all pairs instead of random subsets, so it needs no seed. Being unbiased, it may be negative for two sets of
    one distribution. It is usually printed times 1000. (Kernel: section 4 of the paper.)

    Where the images are of every class in given numbers, pairs of one class are rarer than among independent images, and the mean
    over all pairs would be too low by an amount that grows with how much the model's classes differ; so those pairs then count as
    much as in the classes' mixture. That needs 2 images of each class; with fewer, all pairs count alike.

    Args:
        a: Features (N, D).
        b: Features (M, D).
        classes: The classes of b's images (M,), where their numbers were given beforehand; None for independent images.

    Raises:
        DataError: Features are not finite or too large for the kernel, the dimensions differ, or a set has fewer than 2 images.
    """
    a, b = _pair(a, b, "first", "second")
    for features, what in ((a, "first"), (b, "second")):
        if len(features) < 2:
            raise DataError(f"KID needs at least 2 images in each set, but the {what} has {len(features)}")
    with np.errstate(over="ignore", invalid="ignore"):
        distance = _mean_kernel_within(a) + _mean_kernel_of_classes(b, classes) - 2 * _mean_kernel_between(a, b)
    if not math.isfinite(distance):
        raise DataError("KID overflows; scale the features to about 1")
    return distance


def _statistics(a: FeatureRows | Statistics) -> Statistics:
    if isinstance(a, FeatureStatistics | Moments):
        return a
    statistics = FeatureStatistics()
    statistics.update(a)
    if not statistics.count:
        raise DataError("FID needs more images than feature dimensions, and one set has no images")
    return statistics


def _pair(a: FeatureRows, b: FeatureRows, name_a: str, name_b: str) -> tuple[FeatureRows, FeatureRows]:
    """Both sets; raises DataError unless they are finite and of one dimension."""
    a, b = checked_features(a, f"{name_a} features"), checked_features(b, f"{name_b} features")
    if a.shape[1] != b.shape[1]:
        raise DataError(
            f"the {name_a} features have {a.shape[1]} dimensions and the {name_b} ones {b.shape[1]}; "
            "take both from one feature extractor"
        )
    return a, b


def _split_score(logits: FeatureRows) -> float:
    """The inception score of one split, in logarithms throughout, since a probability may be too small for a float."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_marginal = np.logaddexp.reduce(log_p, axis=0) - math.log(len(log_p))
    return math.exp(float((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean()))


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def _pairs_within(count: int) -> Iterator[tuple[slice, slice]]:
    """Each unordered pair of blocks once."""
    blocks = _blocks(count)
    return ((rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:])


class _Points:
    """Features relative to a centre, converted to float64 block by block, and their squared norms (N,)."""

    def __init__(self, features: FeatureRows, centre: Matrix, what: str) -> None:
        self.features, self.centre = features, centre
        with np.errstate(over="ignore", invalid="ignore"):
            self.norms = np.concatenate([np.square(self.block(rows)).sum(axis=1) for rows in _blocks(len(features))])
        if not (self.norms < _LARGEST).all():
            raise DataError(f"the {what} features are too large to take distances of; scale them to about 1")

    def __len__(self) -> int:
        return len(self.features)

    def block(self, rows: slice) -> Matrix:
        return np.asarray(self.features[rows].astype(np.float64) - self.centre)


def _squared_distances(a: _Points, rows: slice, b: _Points, columns: slice) -> Matrix:
    """|x - y|² = |x|² + |y|² - 2x·y for a block of pairs, as one matrix product.

    The product's rounding error is at most about D·ε·(|x|² + |y|²), and smaller distances are set to 0. Otherwise a copy of an
    image could lie outside the radius of 0 that an image with copies has.
    """
    x, y = a.block(rows), b.block(columns)
    norms = a.norms[rows, None] + b.norms[columns]
    squared = norms - 2 * (x @ y.T)
    squared[squared <= (x.shape[1] + 4) * np.finfo(np.float64).eps * norms] = 0.0
    return np.asarray(squared)


def _squared_radii(points: _Points, k: int) -> Matrix:
    """(N,): the squared distance of each point to its k-th nearest fellow."""
    nearest = np.full((len(points), k), np.inf)
    for rows, columns in _pairs_within(len(points)):
        squared = _squared_distances(points, rows, points, columns)
        if rows == columns:
            np.fill_diagonal(squared, np.inf)  # a point is not its own neighbour
        else:
            nearest[columns] = _smallest(nearest[columns], squared.T)
        nearest[rows] = _smallest(nearest[rows], squared)
    return np.asarray(nearest.max(axis=1))


def _smallest(nearest: Matrix, candidates: Matrix) -> Matrix:
    """The k smallest numbers in each row of both matrices together, where `nearest` has k columns."""
    k = nearest.shape[1]
    return np.partition(np.concatenate([nearest, candidates], axis=1), k - 1, axis=1)[:, :k]


def _kernel(a: FeatureRows, b: FeatureRows) -> NDArray[np.float64]:
    base = a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1
    return np.asarray(base * base * base)


def _mean_kernel_within(a: FeatureRows) -> float:
    """The mean over the n(n - 1) ordered pairs of different rows; by symmetry, a block off the diagonal counts twice."""
    sums = []
    for rows, columns in _pairs_within(len(a)):
        kernel = _kernel(a[rows], a[columns])
        if rows == columns:
            np.fill_diagonal(kernel, 0.0)
        sums.append(float(kernel.sum()) * (1 if rows == columns else 2))
    return _total(sums) / (len(a) * (len(a) - 1))


def _mean_kernel_of_classes(a: FeatureRows, classes: NDArray[np.int64] | None) -> float:
    """The mean kernel of two independent images, from images of classes in given numbers.

    With means M over all pairs of different images and m_c over those of class c, of which n_c of n images are, it is
    M(n - 1)/n + Σ m_c n_c/n². With one class this is M.
    """
    mean = _mean_kernel_within(a)
    if classes is None:
        return mean
    each, counts = np.unique(classes, return_counts=True)
    if counts.min() < 2:
        return mean
    alike = _total([_mean_kernel_within(a[classes == one]) * int(count) for one, count in zip(each, counts, strict=True)]) / len(a)
    return (mean * (len(a) - 1) + alike) / len(a)


def _mean_kernel_between(a: FeatureRows, b: FeatureRows) -> float:
    sums = [float(_kernel(a[rows], b[columns]).sum()) for rows in _blocks(len(a)) for columns in _blocks(len(b))]
    return _total(sums) / (len(a) * len(b))


def _total(sums: list[float]) -> float:
    """The sum without intermediate rounding, or infinity."""
    return math.fsum(sums) if all(map(math.isfinite, sums)) else math.inf
