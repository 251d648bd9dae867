"""Frechet distance of sets of features."""

import numpy as np
import pytest
import scipy.linalg
from scipy import ndimage
from sklearn.datasets import load_digits

from gamix_jax.errors import InputError
from gamix_jax.metrics.frechet import BLOCKS, FeatureStatistics, frechet_distance


def statistics_of(features, batch=300):
    statistics = FeatureStatistics(features.shape[1])
    for start in range(0, len(features), batch):
        statistics.add(features[start : start + batch])
    return statistics


def distance(first, second):
    return frechet_distance(statistics_of(first), statistics_of(second)).value


def with_moments(mean, covariance, count=200, seed=0):
    """A sample whose mean and covariance are these, not only those of its distribution."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T)
    return mean + (np.linalg.cholesky(covariance) @ x).T


def random_features(seed, count=500, dimensions=8):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimensions, dimensions))
    return rng.normal(size=(count, dimensions)) @ mixing + rng.normal(size=dimensions)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_is_that_of_sqrtm(seed):
    x, y = random_features(seed), random_features(seed + 10, count=700)
    first, second = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(
        first + second - 2 * root
    )
    np.testing.assert_allclose(distance(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(distance(y, x), expected, rtol=1e-9)


def test_frechet_of_two_gaussians():
    """Closed forms: |m|^2 for a shift m; sum (s1 - s2)^2 of standard deviations where covariances commute."""
    rng = np.random.default_rng(0)
    shift, s1, s2 = rng.normal(size=5), rng.uniform(1, 3, 5), rng.uniform(1, 3, 5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for axes in (np.eye(5), rotation):
        first, second = ((axes * s**2) @ axes.T for s in (s1, s2))
        x = with_moments(np.zeros(5), first)
        y = with_moments(shift, first, seed=1)
        z = with_moments(shift, second, count=300, seed=2)
        np.testing.assert_allclose(distance(x, y), shift @ shift, rtol=1e-9)
        expected = shift @ shift + np.sum((s1 - s2) ** 2)
        np.testing.assert_allclose(distance(x, z), expected, rtol=1e-9)


def test_statistics_are_those_of_numpy():
    x = 1e4 + random_features(0, count=4321)  # a mean that would cancel
    mean, covariance = statistics_of(x).moments()
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.T), rtol=1e-9, atol=1e-10)
    kept = x[np.arange(len(x)) % BLOCKS != 3]
    mean, covariance = statistics_of(x).moments(without=3)
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(kept.T), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 7, 2000, 5000])
def test_statistics_do_not_depend_on_the_batches(batch):
    x = random_features(0, count=4321).astype(np.float32)
    expected = statistics_of(x).arrays()
    for name, array in statistics_of(x, batch).arrays().items():
        np.testing.assert_array_equal(array, expected[name])


def test_statistics_are_stored(tmp_path):
    x, y = random_features(0), random_features(1)
    statistics = statistics_of(x)
    np.savez(tmp_path / "statistics.npz", **statistics.arrays())
    with np.load(tmp_path / "statistics.npz") as arrays:
        restored = FeatureStatistics.from_arrays(arrays)
    other = statistics_of(y)
    assert restored.count == 500
    assert frechet_distance(restored, other) == frechet_distance(statistics, other)
    for damage in ({"sums": np.zeros((BLOCKS, 3))}, {"products": np.zeros(3)}):
        with pytest.raises(InputError, match="damaged or of another version"):
            FeatureStatistics.from_arrays(statistics.arrays() | damage)
    with pytest.raises(InputError, match="damaged or of another version"):
        FeatureStatistics.from_arrays({})


def test_images_go_on_where_they_stopped():
    """After what was stored, or looked at, at any count."""
    x = random_features(0, count=733)
    expected = statistics_of(x)
    statistics = FeatureStatistics.from_arrays(statistics_of(x[:503]).arrays())
    statistics.add(x[503:621])
    statistics.moments()
    statistics.add(x[621:])
    assert statistics.count == 733
    for without in (None, 2):
        for moment, other in zip(
            statistics.moments(without), expected.moments(without), strict=True
        ):
            np.testing.assert_allclose(moment, other, rtol=1e-12, atol=1e-12)


def test_singular_covariances():
    """Less images than dimensions; the oracle is the nuclear norm of the product of the centred samples."""
    x, y = random_features(0, 30, 100), random_features(1, 40, 100)
    centred = [(a - a.mean(0)) / np.sqrt(len(a) - 1) for a in (x, y)]
    overlap = np.linalg.norm(centred[0] @ centred[1].T, "nuc")
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + sum(np.sum(a**2) for a in centred)
    np.testing.assert_allclose(distance(x, y), expected - 2 * overlap, rtol=1e-8)
    same = np.ones((30, 100))
    assert distance(same, same) == 0
    # No spread at all: the other's variance, and the means.
    expected = np.trace(np.cov(x.T)) + np.sum((x.mean(0) - 1) ** 2)
    np.testing.assert_allclose(distance(x, same), expected, rtol=1e-9)
    np.testing.assert_allclose(distance(same, x), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [40, 600])
def test_a_set_is_at_no_distance_from_itself(count):
    x = random_features(0, count, 100)
    estimate = frechet_distance(statistics_of(x), statistics_of(x))
    # To half the digits of float64, of the trace: squares of eigenvalues have roots.
    limit = 1e-8 * np.trace(np.cov(x.T))
    assert 0 <= estimate.value < limit
    assert estimate.standard_error < limit


@pytest.mark.parametrize("count", [100, 400, 1600])
def test_halves_of_a_set_differ_as_one_over_n(count):
    """For N(0, I) in F dimensions, E = (2 F + F (F + 1) / 2) / N to first order: of the means, and a quarter of |S1 - S2|^2 (two Wisharts)."""
    rng = np.random.default_rng(count)
    values = [distance(*rng.normal(size=(2, count, 6))) for _ in range(200)]
    expected = (2 * 6 + 6 * 7 / 2) / count
    error = np.std(values) / np.sqrt(200)
    # Four standard errors, and the next order: about 6 / N of it.
    assert abs(np.mean(values) - expected) < 4 * error + 6 / count * expected


def test_frechet_rises_with_damage():
    images, labels = load_digits(return_X_y=True)
    real, half, labels = images[::2], images[1::2], labels[1::2]
    noise = np.random.default_rng(0).normal(size=half.shape)
    blurred = lambda sigma: ndimage.gaussian_filter(
        half.reshape(-1, 8, 8), (0, sigma, sigma)
    ).reshape(-1, 64)
    for damaged in (
        [blurred(sigma) for sigma in (0.4, 0.6, 0.8, 1.2)],
        [half + sigma * noise for sigma in (1, 2, 4, 8)],
        [half[labels >= dropped] for dropped in (2, 4, 6, 8)],
    ):
        values = [distance(real, x) for x in (half, *damaged)]
        assert np.all(np.diff(values) > 0), values


def test_jackknife_is_the_spread_of_draws():
    rng = np.random.default_rng(0)
    estimates = [
        frechet_distance(
            statistics_of(rng.normal(size=(300, 4))),
            statistics_of(0.5 + 1.5 * rng.normal(size=(200, 4))),
        )
        for _ in range(300)
    ]
    values, errors = np.array(estimates).T
    # Variances of 300 values, and of 300 times 9 degrees of freedom: standard error
    # sqrt(2 / 300 + 2 / 2700) = 0.086 of the ratio; three of them, and 5 % for the bias
    # of the jackknife, whose blocks are a tenth of the images.
    ratio = np.mean(errors**2) / np.var(values)
    assert abs(ratio - 1) < 0.31


def test_jackknife_of_pairs():
    """Reconstructions, in the order of their images: the common part does not count."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        x = rng.normal(size=(300, 4))
        paired, shuffled = (statistics_of(1 + y) for y in (x, rng.permutation(x)))
        first = statistics_of(x)
        ratios.append(
            frechet_distance(first, paired).standard_error
            / frechet_distance(first, shuffled).standard_error
        )
    # Shifted by 1, pairs are at a distance of exactly 4 whatever the draw.
    assert np.max(ratios) < 1e-6
