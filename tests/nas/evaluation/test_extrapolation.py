"""FID∞ against closed forms of normal distributions, against its definition, and where FID itself orders models wrongly."""

import numpy as np
import pytest

from nas.evaluation.extrapolation import fid_infinity
from nas.evaluation.metrics import fid
from nas.evaluation.statistics import FeatureStatistics, Moments
from space.errors import DataError
from tests.nas.evaluation.features import normal, streamed


def decaying(dimensions):
    """The variances of features whose spectrum decays, as that of a network's features does."""
    return np.exp(-4 * np.arange(dimensions) / dimensions)


def truth(dimensions):
    return Moments(np.zeros(dimensions), np.diag(decaying(dimensions)))


def shifted(seed, count, dimensions, distance):
    """The true spread about a mean that is off: its squared shift is the distance."""
    return normal(seed, count, dimensions) * np.sqrt(decaying(dimensions)) + np.sqrt(distance / dimensions)


def narrow(seed, count, dimensions, distance):
    """The true mean and too little spread, all standard deviations by one factor s: Σλ(1 - s)² is the distance."""
    factor = 1 - np.sqrt(distance / decaying(dimensions).sum())
    return normal(seed, count, dimensions) * np.sqrt(decaying(dimensions)) * factor


def by_definition(features, reference, seed):
    """The line through the means of FID by size, each of sets that are put together from the images themselves."""
    order = np.random.default_rng(seed).permutation(len(features))
    groups = [order[first::12] for first in range(12)]
    points, leaving_out_one = [(1 / len(features), fid(features, reference))], []
    for left_out in (1, 2, 3, 4, 6):
        sets = [np.delete(features, np.concatenate(groups[i : i + left_out]), axis=0) for i in range(0, 12, left_out)]
        found = [fid(one, reference) for one in sets]
        points.append((np.mean([1 / len(one) for one in sets]), np.mean(found)))
        leaving_out_one = leaving_out_one or found
    x, y = np.array(points).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return y.mean() - slope * x.mean(), np.sqrt(11 * np.var(leaving_out_one))


@pytest.mark.parametrize("count", [100, 127, 500])
def test_it_is_that_of_its_definition(count):
    made, real = normal(0, count, 8) * 0.8 + 0.1, streamed(normal(1, 900, 8) @ normal(2, 8, 8))
    assert fid_infinity(made, real, seed=3) == pytest.approx(by_definition(made, real, seed=3), rel=1e-6)


@pytest.mark.parametrize("model", [shifted, narrow])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_closed_form_within_its_error(model, seed):
    found = fid_infinity(model(seed, 600, 16, 0.4), truth(16))
    assert found.value == pytest.approx(0.4, abs=2.5 * found.standard_error)
    assert 0 < found.standard_error < 0.1


def test_of_the_same_distribution_it_is_about_0_where_fid_is_not():
    found, biased = (of(normal(5, 400, 24), Moments(np.zeros(24), np.eye(24))) for of in (fid_infinity, fid))
    assert abs(found.value) < 2.5 * found.standard_error
    assert biased > 5 * found.standard_error


def test_covariances_that_do_not_commute():
    real = Moments(np.zeros(6), np.cov(normal(0, 9, 6).T) + np.eye(6))
    mixed = Moments(np.full(6, 0.3), np.cov(normal(1, 9, 6).T) + np.eye(6))
    made = normal(2, 4000, 6) @ np.linalg.cholesky(mixed.covariance).T + mixed.mean
    found = fid_infinity(made, real)
    assert found.value == pytest.approx(fid(mixed, real), abs=2.5 * found.standard_error)


def differences(count, sets, better, worse):
    """(sets, 2): by how much FID and FID∞ of the better model are above those of the worse one."""
    real, found = truth(64), []
    for seed in range(sets):
        a, b = shifted(seed, count, 64, better), narrow(seed, count, 64, worse)
        found.append((fid(a, real) - fid(b, real), fid_infinity(a, real).value - fid_infinity(b, real).value))
    return np.array(found)


def test_it_orders_two_models_that_fid_orders_wrongly():
    """FID favours the model with too little spread at equal numbers of samples, as its bias grows with a model's own spread."""
    plain, extrapolated = differences(256, 6, better=0.9, worse=1.0).mean(axis=0)
    assert plain > 0.05
    assert extrapolated < -0.05


@pytest.mark.slow
@pytest.mark.parametrize("count", [256, 500])
def test_it_orders_two_close_models_that_fid_orders_wrongly(count):
    found = differences(count, 80, better=0.97, worse=1.01)
    (plain, extrapolated), error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert plain > 5 * error[0], "FID is wrong beyond doubt"
    assert extrapolated == pytest.approx(0.97 - 1.01, abs=2.5 * error[1])
    assert extrapolated < -2.5 * error[1]


@pytest.mark.slow
@pytest.mark.parametrize("model", [shifted, narrow])
@pytest.mark.parametrize(("dimensions", "count"), [(16, 320), (32, 256)])
def test_its_error_is_that_of_repeated_sets(model, dimensions, count):
    found = [fid_infinity(model(seed, count, dimensions, 0.3), truth(dimensions)) for seed in range(250)]
    values, errors = np.array(found).T
    # Over 250 sets a standard deviation is known to within 5 %.
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.15)
    assert np.mean(np.abs(values - 0.3) < 2.2 * errors) > 0.9, "an interval of 95 % by Student's t with 11 degrees of freedom"


def of_classes(seed, count, distance):
    """Images of 8 features, of 4 classes in equal numbers whose means differ by much more than the images of a class do."""
    classes = np.arange(count) % 4
    return normal(seed, count, 8) + 3 * np.eye(4, 8)[classes] + distance, classes


def test_images_in_equal_numbers_a_class_are_left_out_in_equal_numbers():
    """Their FID is biased by the spread within classes only; random groups would take off the bias of independent images."""
    mixture = Moments(0.75 * np.eye(4, 8).sum(axis=0), np.eye(8) + 9 * np.cov(np.eye(4, 8).T, bias=True))
    found = {True: [], False: []}
    for seed in range(20):
        made, classes = of_classes(seed, 240, 0.1)
        for known, values in found.items():
            values.append(fid_infinity(made, mixture, classes if known else None))
    truth, (values, errors) = 8 * 0.01, np.array(found[True]).T
    assert values.mean() == pytest.approx(truth, abs=2.5 * values.std(ddof=1) / np.sqrt(20))
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.4)
    assert np.mean([one.value for one in found[False]]) < truth - 0.02


def test_it_is_the_same_each_time_and_of_any_precision():
    made, real = normal(0, 300, 12).astype(np.float32), truth(12)
    before = made.copy()
    first = fid_infinity(made, real)
    assert fid_infinity(made, real) == first
    assert fid_infinity(made.astype(np.float64), real) == first
    assert np.array_equal(made, before)
    other = fid_infinity(made, real, seed=1)
    assert other != first
    assert abs(other.value - first.value) < first.standard_error


def test_too_few_images_and_bad_features_are_refused():
    assert fid_infinity(normal(0, 48, 12), truth(12)).standard_error > 0
    with pytest.raises(
        DataError, match="over 12 features needs at least 48 images, and there are 47; add images, or use the kernel"
    ):
        fid_infinity(normal(0, 47, 12), truth(12))
    with pytest.raises(DataError, match="of 12 and of 11 dimensions"):
        fid_infinity(normal(0, 48, 12), truth(11))
    broken = normal(0, 48, 12)
    broken[31, 2] = np.nan
    with pytest.raises(DataError, match="row 31 of the features holds NaN"):
        fid_infinity(broken, truth(12))


def test_merged_statistics_are_those_of_all_samples():
    rows = normal(0, 70, 5) + 1e4
    parts = [streamed(rows[:20]), FeatureStatistics(), streamed(rows[20:21]), streamed(rows[21:])]
    for _ in range(2):
        whole = FeatureStatistics.merged(parts)
        assert whole.count == 70
        np.testing.assert_allclose(whole.mean, rows.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(whole.covariance, np.cov(rows.T), atol=1e-11)
    whole.update(rows)
    assert parts[0].count == 20
    np.testing.assert_array_equal(parts[0].covariance, streamed(rows[:20]).covariance)
