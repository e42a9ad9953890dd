"""Mean and covariance streamed in one pass, and the Fréchet distance between them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nas.evaluation import statistics
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from nas.evaluation.statistics import FeatureStatistics, Moments, frechet_distance
from space.errors import DataError
from tests.nas.evaluation.features import normal, streamed

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "metrics.safetensors")
REAL, MADE = GOLDEN["features.reference"], GOLDEN["features.generated"]


def covariance_of(seed, dimensions, rank):
    factor = normal(seed, dimensions, rank)
    return factor @ factor.T


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 3), (599,), (0, 300, 300), tuple(range(1, 600))])
@pytest.mark.parametrize("rows", [4096, 64])
def test_streaming_equals_one_pass(monkeypatch, cuts, rows):
    monkeypatch.setattr(statistics, "_ROWS", rows)
    found = streamed(REAL, *cuts)
    assert found.count == 600
    np.testing.assert_allclose(found.mean, REAL.mean(axis=0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(REAL.T), rtol=0, atol=1e-13)


@pytest.mark.parametrize("cuts", [(), (1, 5, 333), tuple(range(1, 600))])
def test_a_large_mean_costs_no_digits(cuts):
    """With the sum of squares instead, a mean of 1e6 would leave four digits of the covariance."""
    shifted = REAL + 1e6
    found = streamed(shifted, *cuts)
    np.testing.assert_allclose(found.covariance, np.cov(REAL.T), rtol=0, atol=1e-8)
    assert fid(shifted, MADE + 1e6) == pytest.approx(fid(REAL, MADE), rel=1e-6)


def test_handed_out_arrays_do_not_change():
    found = streamed(REAL[:300])
    mean, before = found.mean, found.mean.copy()
    found.update(REAL[300:] + 5)
    np.testing.assert_array_equal(mean, before)


def test_a_refused_batch_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(statistics, "_ROWS", 10)
    found, batch = streamed(REAL[:100]), REAL[100:].copy()
    batch[42, 3] = np.nan
    batch[77, 0] = np.inf
    with pytest.raises(DataError, match="row 142 of the features"):
        found.update(batch)
    assert found.count == 100
    np.testing.assert_array_equal(found.covariance, streamed(REAL[:100]).covariance)


def test_statistics_without_samples():
    with pytest.raises(DataError, match="at least 1 sample"):
        _ = FeatureStatistics().mean
    with pytest.raises(DataError, match="at least 2 samples, and there are 1"):
        _ = streamed(REAL[:1]).covariance


def test_statistics_of_other_dimensions():
    with pytest.raises(DataError, match="23 dimensions.*features of 24;"):
        streamed(REAL).update(REAL[:, 1:])


# The Fréchet distance.


def test_two_normals_on_a_line():
    """(μ₁ - μ₂)² + (σ₁ - σ₂)²."""
    a, b = Moments(np.array([1.0]), np.array([[4.0]])), Moments(np.array([-2.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 9, rel=1e-14)


def test_commuting_covariances():
    """With common eigenvectors, |μ₁ - μ₂|² + Σ (√λ₁ - √λ₂)²."""
    rotation, _ = np.linalg.qr(normal(0, 12, 12))
    first, second = np.random.default_rng(1).uniform(0, 9, (2, 12))
    a = Moments(np.zeros(12), rotation @ np.diag(first) @ rotation.T)
    b = Moments(np.full(12, 0.5), rotation @ np.diag(second) @ rotation.T)
    expected = 12 * 0.25 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_covariances_that_do_not_commute():
    """tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁Σ₂, which are real although the product is not symmetric."""
    first, second = covariance_of(0, 10, 20), covariance_of(1, 10, 15)
    eigenvalues = np.linalg.eigvals(first @ second)
    assert np.abs(first @ second - second @ first).max() > 1
    expected = np.trace(first + second) - 2 * np.sqrt(eigenvalues.real).sum()
    assert frechet_distance(Moments(np.zeros(10), first), Moments(np.zeros(10), second)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_covariances(scale):
    """A set in a subspace against itself, turned into the orthogonal subspace, and against a single point."""
    basis, _ = np.linalg.qr(normal(0, 40, 40))
    values = scale * np.arange(1.0, 21)
    a = Moments(np.zeros(40), basis[:, :20] * values @ basis[:, :20].T)
    b = Moments(np.zeros(40), basis[:, 20:] * values @ basis[:, 20:].T)
    point = Moments(np.zeros(40), np.zeros((40, 40)))
    assert frechet_distance(a, a) <= 1e-13 * values.sum()
    assert frechet_distance(a, b) == pytest.approx(2 * values.sum(), rel=1e-6)
    assert frechet_distance(a, point) == pytest.approx(values.sum(), rel=1e-12)


def test_a_set_is_at_distance_0_from_itself():
    assert 0 <= fid(REAL, REAL) < 1e-12
    assert fid(REAL, REAL + 2) == pytest.approx(4 * 24, rel=1e-10)


def test_too_few_samples_say_how_many_would_do():
    with pytest.raises(DataError, match=r"24 dimensions needs at least 25 samples, but the second set has 24"):
        fid(REAL, MADE[:24])
    with pytest.raises(DataError, match=r"at least 25 samples, but the first set has 3"):
        fid(streamed(REAL[:3]), MADE)
    with pytest.raises(DataError, match="no images"):
        fid(REAL, MADE[:0])
    assert fid(REAL, MADE[:25]) > 0
    # A reference file does not record its number of samples.
    assert frechet_distance(Moments(REAL[:9].mean(axis=0), np.cov(REAL[:9].T)), streamed(MADE)) > 0
    with pytest.raises(DataError, match="at least 25 samples, but the first set has 9"):
        frechet_distance(Moments(REAL[:9].mean(axis=0), np.cov(REAL[:9].T), count=9), streamed(MADE))


@pytest.mark.parametrize("metric", [fid, kid, precision_recall])
def test_other_dimensions_are_named(metric):
    with pytest.raises(DataError, match=r"24 .*\b23\b"):
        metric(REAL, MADE[:, :23])


def test_a_covariance_with_a_negative_eigenvalue_is_refused():
    rotation, _ = np.linalg.qr(normal(0, 6, 6))

    def moments(least):
        return Moments(np.zeros(6), rotation @ np.diag([least, 1.0, 2, 3, 4, 5]) @ rotation.T)

    with pytest.raises(DataError, match=r"covariance of the second set has the eigenvalue -0.001 beside 5"):
        frechet_distance(moments(1.0), moments(-1e-3))
    # An eigenvalue of the size of rounding errors counts as zero.
    assert frechet_distance(moments(0.0), moments(-1e-9)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("scale", [1e160, 1e307])
@pytest.mark.filterwarnings("error")
def test_overflow_is_an_error_and_not_a_warning(scale):
    with pytest.raises(DataError, match="first set are not finite.*scale"):
        fid(REAL * scale, MADE)
    with pytest.raises(DataError, match="KID overflows"):
        kid(REAL * scale, MADE)
    with pytest.raises(DataError, match="generated features are too large"):
        precision_recall(REAL, MADE * scale)
    with pytest.raises(DataError, match="too large"):
        precision_recall(np.full((5, 2), 1.7e308), REAL[:, :2])
    with pytest.raises(DataError, match="logits are too large"):
        inception_score(np.array([[-1.7e308, 1.7e308], [1.7e308, -1.7e308]]))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(3), np.eye(4), r"\(3,\).*\(4, 4\)"),
        (np.zeros((3, 1)), np.eye(3), r"\(3, 1\)"),
        (np.zeros(0), np.zeros((0, 0)), r"\(0,\)"),
        (np.array([0, np.nan]), np.eye(2), "NaN or infinity"),
        (np.zeros(2), np.diag([1, np.inf]), "NaN or infinity"),
        (np.zeros(2), np.array([[1, 0.5], [0.4, 1]]), "not symmetric"),
    ],
)
def test_moments_that_cannot_be(mean, covariance, message):
    with pytest.raises(DataError, match=message):
        Moments(mean, covariance)
