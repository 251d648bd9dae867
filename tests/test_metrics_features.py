"""Kernel distance, and nearest neighbours, of sets of features."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from test_metrics_frechet import distance, random_features

from gamix_jax.errors import InputError
from gamix_jax.metrics.frechet import FeatureStatistics
from gamix_jax.metrics.kernel import kernel_distance, squared_mmd
from gamix_jax.metrics.manifold import manifold


def test_squared_mmd_is_the_plain_formula():
    x, y = random_features(0, 20, 3), random_features(1, 30, 3)
    xx, yy, xy = (
        polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1)
        for a, b in ((x, x), (y, y), (x, y))
    )
    expected = (
        sum(xx[i, j] for i in range(20) for j in range(20) if i != j) / (20 * 19)
        + sum(yy[i, j] for i in range(30) for j in range(30) if i != j) / (30 * 29)
        - 2 * xy.mean()
    )
    np.testing.assert_allclose(squared_mmd(x, y), expected, rtol=1e-9)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20_000, 8))
    estimate = kernel_distance(x, y, subset_size=100)
    # Two of its standard errors in 95 %; this seed is one draw.
    assert abs(estimate.value) < 3 * estimate.standard_error
    # Against E of the formula in one dimension: for x ~ N(0, 1) and y ~ N(m, 1), the
    # kernel 1 + 3 xy + 3 x^2 y^2 + x^3 y^3 gives the squared differences of moments.
    shifted = kernel_distance(x[:, :1], 0.5 + y[:, :1], subset_size=100)
    moments = lambda m: np.array([m, m**2 + 1, m**3 + 3 * m])
    expected = np.array([3, 3, 1]) @ (moments(0.5) - moments(0)) ** 2
    assert abs(shifted.value - expected) < 3 * shifted.standard_error
    assert shifted.value > 10 * shifted.standard_error
    assert estimate == kernel_distance(x, y, subset_size=100)
    assert estimate != kernel_distance(x, y, subset_size=100, seed=1)


@pytest.mark.parametrize(("count", "size"), [(80, 40), (320, 40), (320, 1000)])
def test_kernel_distance_error_is_the_spread_of_draws(count, size):
    """For sets that subsets share many images of, sets of unlike size, and whole sets."""
    rng = np.random.default_rng(0)
    estimates = [
        kernel_distance(
            rng.normal(size=(80, 4)),
            0.7 + rng.normal(size=(count, 4)),
            subsets=10,
            subset_size=size,
        )
        for _ in range(150)
    ]
    values, errors = np.array(estimates).T
    # A variance of 150 values has a standard error of sqrt(2 / 150) = 0.115 of itself;
    # three of them, and 5 % for the bias of a first-order formula.
    assert abs(np.mean(errors**2) / np.var(values) - 1) < 0.4


def plain_manifold(real, fake):
    """By scikit-learn's neighbours: precision, recall, density, coverage."""
    radius = lambda x, k: (
        NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]
    )
    between = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    precision = np.mean(np.any(between <= radius(real, 3)[:, None], axis=0))
    recall = np.mean(np.any(between <= radius(fake, 3)[None], axis=1))
    inside = between < radius(real, 5)[:, None]
    return precision, recall, inside.sum() / (5 * len(fake)), inside.any(1).mean()


@pytest.mark.parametrize("block", [2**24, 100])
def test_manifold_is_the_plain_one(block, monkeypatch):
    monkeypatch.setattr("gamix_jax.metrics.manifold.BLOCK", block)
    rng = np.random.default_rng(0)
    real = 100 + rng.normal(size=(120, 3))
    fake = 100.8 + 0.8 * rng.normal(size=(90, 3))
    estimates = manifold(real, fake)
    expected = plain_manifold(real, fake)
    assert all(0.1 < x < 0.95 for x in expected)
    np.testing.assert_allclose([x.value for x in estimates], expected, rtol=1e-12)
    for estimate, x, count in zip(
        (estimates.precision, estimates.recall, estimates.coverage),
        np.array(expected)[[0, 1, 3]],
        (90, 120, 120),
        strict=True,
    ):
        binomial = np.sqrt(x * (1 - x) / count)
        np.testing.assert_allclose(estimate.standard_error, binomial, rtol=1e-12)


def test_manifold_at_its_ends():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 16)).astype(np.float32)
    assert [estimate.value for estimate in manifold(x, x)] == [1, 1, 1, 1]
    far = manifold(x, 1000 + x)
    assert all(estimate == (0, 0) for estimate in far)
    # One image many times is one point: its balls are without extent.
    one = np.tile(x[:1], (50, 1))
    collapsed = manifold(x, one)
    assert collapsed.precision.value == 1
    np.testing.assert_allclose(collapsed.recall.value, 1 / 300)


def test_edges_of_the_balls():
    """By hand, in one dimension; the edge counts for precision and recall alone."""
    real, fake = np.arange(6.0)[:, None], np.repeat([8.0, 10.0], 3)[:, None]
    # Third neighbours of 0..5 are 3, 2, 2, 2, 2, 3 away: 8 is at the edge of 5's ball,
    # 10 beyond it. All fakes' are 2 away: no real is that near.
    # Fifth neighbours are 5, 4, 3, 3, 4, 5 away: 8 lies in 5's ball and at the edge of
    # 4's, 10 at the edge of 5's: 3 fakes in one ball each.
    values = [estimate.value for estimate in manifold(real, fake)]
    np.testing.assert_allclose(values, [1 / 2, 0, 3 / (5 * 6), 1 / 6], rtol=1e-12)
    # Precision and recall are each other's with the sets exchanged.
    swapped = manifold(fake, real)
    assert (swapped.precision.value, swapped.recall.value) == (0, 1 / 2)


def test_copies_are_at_no_distance(monkeypatch):
    """Of points far from the others, whose distances cancel most; each has 3 copies, so that its ball for k = 3 is a point."""
    # Products of one row are rounded in another way than those of many.
    monkeypatch.setattr("gamix_jax.metrics.manifold.BLOCK", 160)
    points = 1e3 * np.random.default_rng(0).normal(size=(40, 101))
    copies = manifold(np.repeat(points, 4, axis=0), np.tile(points[:30], (4, 1))[:-1])
    assert copies.precision.value == 1
    assert copies.recall.value == 30 / 40


def test_manifold_of_equal_distributions():
    """Density 1 and coverage 1 - 2^-5 in expectation (Naeem et al. 2020, for as many of both)."""
    rng = np.random.default_rng(0)
    values = np.array(
        [
            [estimate.value for estimate in manifold(*rng.normal(size=(2, 300, 4)))]
            for _ in range(40)
        ]
    )
    mean, error = values.mean(0), values.std(0) / np.sqrt(40)
    assert abs(mean[2] - 1) < 4 * error[2]
    # 1 - 299!/294! / (599!/594!): the same before the limit of large N
    coverage = 1 - np.prod(np.arange(295, 300) / np.arange(595, 600))
    assert abs(mean[3] - coverage) < 4 * error[3]


def test_bad_features_are_named():
    x = np.zeros((30, 4))
    for measure in (kernel_distance, manifold, distance):
        with pytest.raises(InputError, match="4 and of 5 dimensions"):
            measure(x, np.zeros((30, 5)))
        with pytest.raises(InputError, match=r"or more of each set, not 3\."):
            measure(x, x[:3])
        with pytest.raises(InputError, match="of 1 of 30 images are not finite"):
            measure(x, np.where(np.eye(30, 4) * np.arange(4) == 2, np.nan, x))
    with pytest.raises(InputError, match=r"not \[30\]"):
        manifold(x, x[:, 0])
    with pytest.raises(InputError, match="5 and of 4 dimensions"):
        FeatureStatistics(4).add(np.zeros((30, 5)))
    with pytest.raises(InputError, match="wants two images"):
        FeatureStatistics(4).moments()
