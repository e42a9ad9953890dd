import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from nas.evaluation import metrics
from nas.evaluation.metrics import fid, inception_score, kid, precision_recall
from space.errors import DataError
from tests.nas.evaluation.features import normal, streamed

with safe_open(Path(__file__).parents[2] / "golden" / "metrics.safetensors", "np") as file:
    GOLDEN = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    EXPECTED = {name: json.loads(value) for name, value in file.metadata().items()}
"""Features and logits, and the ADM suite's results for them."""

REAL, MADE, LOGITS = GOLDEN["features.reference"], GOLDEN["features.generated"], GOLDEN["logits.generated"]


def squared_distances(a, b):
    return np.array([[((x - y) ** 2).sum() for y in b] for x in a])


def naive_precision_recall(reference, generated, k):
    """Equation 1 of Kynkäänniemi et al., pair by pair."""

    def radii(points):
        return [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(squared_distances(points, points))]

    between = squared_distances(generated, reference)
    precision = np.mean([any(d <= r for d, r in zip(row, radii(reference), strict=True)) for row in between])
    made_radii = radii(generated)
    recall = np.mean([any(d <= r for d, r in zip(row, made_radii, strict=True)) for row in between.T])
    return precision, recall


def naive_kid(a, b):
    def kernel(x, y):
        return (sum(x * y) / len(x) + 1) ** 3

    def within(points):
        return np.mean([kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j])

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


# The reference numbers of the ADM suite.


def test_fid_equals_the_reference():
    assert fid(REAL, MADE) == pytest.approx(EXPECTED["fid"], rel=1e-6)
    assert fid(streamed(REAL, 100), streamed(MADE, 7, 400)) == pytest.approx(EXPECTED["fid"], rel=1e-6)


def test_inception_score_equals_the_reference_and_counts_the_last_split():
    size = EXPECTED["inception_split_size"]
    assert len(LOGITS) % size
    assert inception_score(LOGITS, split_size=size) == pytest.approx(EXPECTED["inception_score"], rel=1e-9)


def test_precision_and_recall_equal_the_reference():
    assert precision_recall(REAL, MADE) == (EXPECTED["precision_k3"], EXPECTED["recall_k3"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_features_of_low_precision_are_computed_in_float64(dtype):
    real, made = REAL.astype(dtype), MADE.astype(dtype)
    assert fid(real, made) == fid(real.astype(np.float64), made.astype(np.float64))
    assert kid(real, made) == kid(real.astype(np.float64), made.astype(np.float64))
    assert precision_recall(real, made) == precision_recall(real.astype(np.float64), made.astype(np.float64))
    logits = LOGITS.astype(dtype)
    assert inception_score(logits) == inception_score(logits.astype(np.float64))


def test_the_order_of_samples_does_not_matter():
    real, made = np.random.default_rng(0).permutation(REAL), np.random.default_rng(1).permutation(MADE)
    assert fid(real, made) == pytest.approx(fid(REAL, MADE), rel=1e-10)
    assert kid(real, made) == pytest.approx(kid(REAL, MADE), rel=1e-10)
    assert precision_recall(real, made) == precision_recall(REAL, MADE)
    logits = np.random.default_rng(2).permutation(LOGITS)
    assert inception_score(logits) == pytest.approx(inception_score(LOGITS), rel=1e-12)


# Inception score.


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_inception_score_of_uniform_logits_is_1(offset):
    assert inception_score(np.full((50, 8), offset)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [50.0, 1e4, 1e150])
@pytest.mark.filterwarnings("error")
def test_inception_score_of_certain_and_even_predictions_is_the_number_of_classes(size):
    assert inception_score(np.tile(np.eye(7) * size, (5, 1))) == pytest.approx(7, rel=1e-12)


def test_inception_score_averages_over_splits():
    logits = np.eye(4) * 1000
    # One class per split: no diversity. Two classes per split: 2.
    assert inception_score(logits, split_size=1) == pytest.approx(1)
    assert inception_score(logits, split_size=2) == pytest.approx(2)
    assert inception_score(logits, split_size=3) == pytest.approx((3 + 1) / 2)


def test_impossible_inception_scores():
    with pytest.raises(DataError, match="split_size is 0"):
        inception_score(LOGITS, split_size=0)
    with pytest.raises(DataError, match="at least 1 image"):
        inception_score(LOGITS[:0])


# Precision and recall, and KID, against their definitions pair by pair.


@pytest.mark.parametrize("block", [1, 5, 10, 30, 31, 2048])
def test_precision_and_recall_against_all_pairs(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    found = []
    for seed, k in ((0, 1), (1, 3), (2, 5)):
        real, made = normal(seed, 30, 3), normal(seed + 10, 31, 3) * 0.8 + 0.6
        found.append(precision_recall(real, made, k))
        assert found[-1] == naive_precision_recall(real, made, k)
    assert all(0 < share < 1 for result in found for share in result)


def test_precision_and_recall_far_from_0():
    assert precision_recall(REAL + 1e6, MADE + 1e6) == precision_recall(REAL, MADE)


@pytest.mark.parametrize("block", [5, 7, 2048])
def test_copies_lie_in_the_manifold_of_copies(monkeypatch, block):
    """Two copies of an image have radius 0 for k = 1, and a third is still inside, whatever a product rounds to."""
    monkeypatch.setattr(metrics, "_BLOCK", block)
    copies = np.repeat(normal(0, 120, 64) * 10 + 3, 2, axis=0)
    assert precision_recall(copies, copies[::-1][:120], k=1) == (1.0, 0.5)
    assert precision_recall(copies, copies + 1e-3, k=1) == (0.0, 0.0)


def test_precision_and_recall_of_a_collapsed_and_of_a_distant_set():
    real = normal(0, 200, 4)
    collapsed = real[:1] + normal(1, 200, 4) * 1e-4
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1
    assert recall <= 1 / 200
    assert precision_recall(real, real + 100) == (0, 0)
    assert precision_recall(real, real) == (1, 1)


def test_precision_and_recall_of_too_few():
    with pytest.raises(DataError, match="k = 3 need at least 4 images in each set, but 3 are generated"):
        precision_recall(REAL, MADE[:3])
    with pytest.raises(DataError, match="k = 5 need at least 6 images in each set, but 5 are reference"):
        precision_recall(REAL[:5], MADE, k=5)
    with pytest.raises(DataError, match="k is 0"):
        precision_recall(REAL, MADE, k=0)
    assert precision_recall(REAL[:4], MADE[:4]).precision <= 1


@pytest.mark.parametrize("block", [1, 4, 20, 21, 2048])
def test_kid_against_all_pairs(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    a, b = normal(0, 20, 6), normal(1, 23, 6) + 0.3
    assert kid(a, b) == pytest.approx(naive_kid(a, b), rel=1e-11)
    assert kid(b, a) == pytest.approx(naive_kid(a, b), rel=1e-11)


def test_kid_is_unbiased():
    """Over many pairs of sets of one distribution the mean is 0 within its own error."""
    values = [kid(normal(2 * seed, 20, 4), normal(2 * seed + 1, 20, 4)) for seed in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(400)
    assert min(values) < 0 < max(values)


def test_kid_is_unbiased_for_images_in_equal_numbers_a_class():
    """Such images, here of 3 classes that lie far apart, lack pairs of one class; without their classes KID is too low."""
    means, classes = 2 * np.eye(3, 4), np.arange(12) % 3
    known, unknown = [], []
    for seed in range(300):
        real = normal(seed, 40, 4) + means[np.random.default_rng(seed).integers(0, 3, 40)]
        made = normal(1000 + seed, 12, 4) + means[classes]
        known.append(kid(real, made, classes))
        unknown.append(kid(real, made))
    assert abs(np.mean(known)) < 3 * np.std(known) / math.sqrt(300)
    assert np.mean(unknown) < -4 * np.std(unknown) / math.sqrt(300)


def test_the_classes_of_kid_change_nothing_where_they_say_nothing():
    real, made = normal(0, 20, 4), normal(1, 12, 4)
    plain = kid(real, made)
    assert kid(real, made, np.zeros(12, dtype=np.int64)) == pytest.approx(plain, rel=1e-12)
    assert kid(real, made, np.arange(12)) == plain, "one image a class has no pairs"


def test_kid_of_too_few():
    with pytest.raises(DataError, match="at least 2 images in each set, but the second has 1"):
        kid(REAL, MADE[:1])


# Inputs that all metrics refuse.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_with_their_row(value):
    broken = MADE.copy()
    broken[123, 5] = value
    for metric in (fid, kid, precision_recall):
        with pytest.raises(DataError, match="row 123 of the"):
            metric(REAL, broken)
    with pytest.raises(DataError, match="row 123 of the reference features"):
        precision_recall(broken, REAL)
    with pytest.raises(DataError, match="row 123 of the logits"):
        inception_score(broken)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (MADE[0], r"shape \(24,\).*\(N, D\)"),
        (MADE[None], r"shape \(1, 500, 24\)"),
        (MADE[:, :0], r"shape \(500, 0\)"),
        (MADE.astype(complex), "complex128.*real"),
        (MADE.astype(object), "object.*real"),
    ],
)
def test_arrays_that_are_no_features(array, message):
    for metric in (fid, kid, precision_recall):
        with pytest.raises(DataError, match=message):
            metric(REAL, array)
