"""Mean and covariance of image features, accumulated in float64, and the Fréchet distance between two sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from space.errors import DataError

FeatureRows = NDArray[Any]
"""Real numbers (N, D), one row per image."""

Matrix = NDArray[np.float64]

_ROWS = 4096
"""Rows converted to float64 at a time, so that a large set in half precision is never held twice."""

_TOLERANCE = 1e-6
"""The relative asymmetry and negative eigenvalues that rounding a covariance to float32 may leave."""


@dataclass(frozen=True, eq=False)
class Moments:
    """A given mean (D,) and covariance (D, D), such as a reference file's; kept in float64.

    Raises:
        DataError: The shapes do not match, a number is not finite, or the covariance is not symmetric.
    """

    mean: Matrix
    covariance: Matrix
    count: int | None = None

    def __post_init__(self) -> None:
        mean, covariance = np.asarray(self.mean, dtype=np.float64), np.asarray(self.covariance, dtype=np.float64)
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size) or not mean.size:
            raise DataError(
                f"a mean of shape {mean.shape} and a covariance of shape {covariance.shape} do not belong together; "
                "the shapes must be (D,) and (D, D)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise DataError("a mean or covariance holds NaN or infinity; compute it again from finite features")
        if np.abs(covariance - covariance.T).max() > _TOLERANCE * np.abs(covariance).max():
            raise DataError("a covariance is not symmetric; compute it again from the features")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)


class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of features that arrive in batches; the first batch sets D.

    The memory is D² + D numbers in float64, however many samples arrive. Batches are centred before they are squared and combined
    by the pairwise formula (Chan, Golub & LeVeque 1983, equation 2.1), so a mean far from 0 does not cost precision.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Matrix | None = None
        self._scatter: Matrix | None = None  # Σ (x - mean)(x - mean)ᵀ

    def update(self, features: FeatureRows) -> None:
        """Add a batch of features.

        Args:
            features: (n, D) of any real type.

        Raises:
            DataError: The batch is not such an array, has another D than earlier batches, or holds NaN or infinity. None of it is
                added then. The row number in the message counts from the first batch on.
        """
        features = checked_features(features, "features", first_row=self.count)
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # frechet_distance refuses overflowed numbers
                mean = rows.mean(axis=0)
                rows -= mean
                self._add(len(rows), mean, rows.T @ rows)

    @classmethod
    def merged(cls, parts: Iterable[FeatureStatistics]) -> FeatureStatistics:
        """The statistics of all samples of several sets, which stay as they are; raises DataError when their D differ."""
        whole = cls()
        for part in parts:
            if part._mean is not None and part._scatter is not None:
                whole._add(part.count, part._mean.copy(), part._scatter.copy())
        return whole

    def _add(self, count: int, mean: Matrix, scatter: Matrix) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        if len(mean) != len(self._mean):
            raise DataError(
                f"features of {len(mean)} dimensions were added to features of {len(self._mean)}; take all from one extractor"
            )
        total = self.count + count
        difference = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(difference, difference * (self.count * count / total))
        self._mean += difference * (count / total)
        self.count = total

    @property
    def mean(self) -> Matrix:
        """(D,) float64; raises DataError before the first sample."""
        if self._mean is None:
            raise DataError("there are no features to take the mean of; add at least 1 sample")
        return self._mean.copy()

    @property
    def covariance(self) -> Matrix:
        """(D, D) float64 with divisor n - 1; raises DataError before the second sample."""
        if self._scatter is None or self.count < 2:
            raise DataError(f"a covariance needs at least 2 samples, and there are {self.count}")
        return self._scatter / (self.count - 1)


Statistics = FeatureStatistics | Moments
"""The parts of a set of features that a Fréchet distance needs: `mean`, `covariance` and `count`."""


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) between two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, equation 6).

    tr (Σ₁Σ₂)^½ is the trace of the root of Σ₁^½ Σ₂ Σ₁^½, which is the sum of the singular values of Σ₂^½ Σ₁^½. This form does not
    amplify rounding errors, so singular covariances are not a special case.

    Raises:
        DataError: The dimensions differ, a covariance is not finite or has a clearly negative eigenvalue, or a set of known count
            has no more samples than dimensions, which makes its covariance singular and the distance biased.
    """
    mean_a, mean_b = a.mean, b.mean
    if len(mean_a) != len(mean_b):
        raise DataError(
            f"statistics of {len(mean_a)} and of {len(mean_b)} dimensions cannot be compared; take both from one feature extractor"
        )
    for statistics, which in ((a, "first"), (b, "second")):
        if statistics.count is not None and statistics.count <= len(mean_a):
            raise DataError(
                f"a Fréchet distance over {len(mean_a)} dimensions needs at least {len(mean_a) + 1} samples, but the {which} set "
                f"has {statistics.count}; add samples, or use the kernel distance (KID)"
            )
    covariance_a, covariance_b = a.covariance, b.covariance
    root_a, root_b = root_factor(mean_a, covariance_a, "first"), root_factor(mean_b, covariance_b, "second")
    try:
        overlap = float(np.linalg.svd(root_b @ root_a.T, compute_uv=False).sum())
    except np.linalg.LinAlgError:
        raise DataError(
            "the singular values of the two covariances' product did not converge; scale the features to about 1"
        ) from None
    difference = mean_a - mean_b
    distance = float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
    if not np.isfinite(distance):
        raise DataError("the Fréchet distance overflows; scale the features to about 1")
    return max(distance, 0.0)  # rounding may make it negative for equal sets


def root_factor(mean: Matrix, covariance: Matrix, which: str) -> Matrix:
    """F (D, D) with FᵀF = Σ: the root Λ^½Uᵀ of the covariance, up to a rotation that does not change singular values.

    Args:
        mean: (D,).
        covariance: (D, D).
        which: The set's name in a message.

    Raises:
        DataError: A number is not finite, or the covariance has a clearly negative eigenvalue.
    """
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"the statistics of the {which} set are not finite; scale its features to about 1")
    try:
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    except np.linalg.LinAlgError:
        raise DataError(f"the eigenvalues of the {which} set's covariance did not converge; compute it again") from None
    if values[0] < -_TOLERANCE * np.abs(values).max():
        raise DataError(
            f"the covariance of the {which} set has the eigenvalue {values[0]:.3g} beside {values[-1]:.3g}, but a covariance has "
            "none below 0; compute it again from the features"
        )
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))).T)


def checked_features(array: FeatureRows, what: str, columns: str = "D", first_row: int = 0) -> FeatureRows:
    """The array, when it holds finite real numbers (N, D).

    Args:
        array: The features.
        what: The array's name in a message.
        columns: The name of the second axis in a message.
        first_row: The number of the first row in a message.

    Raises:
        DataError: The array has another shape or type, or a number is not finite.
    """
    array = np.asarray(array)
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"the {what} have shape {array.shape}; the shape must be (N, {columns}), one row an image")
    if array.dtype.kind not in "fiu":
        raise DataError(f"the {what} are of type {array.dtype}; they must be real numbers")
    for start in range(0, len(array), _ROWS):
        finite = np.isfinite(array[start : start + _ROWS]).all(axis=1)
        if not finite.all():
            row = first_row + start + int(np.argmin(finite))
            raise DataError(f"row {row} of the {what} holds NaN or infinity; find out what went wrong with that image")
    return array
