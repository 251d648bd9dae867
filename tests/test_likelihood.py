"""The discretised Laplace likelihood against SciPy in float64, and the evidence that is made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import laplace

from gamix_jax.likelihood import (
    discretised_laplace_log_prob,
    estimate_evidence,
    importance_weighted_log_probs,
)
from gamix_jax.mixture import GaussianMixture, standard_normal
from gamix_jax.steps import scale_images

LEVELS = np.arange(256, dtype=np.uint8)


def log_probs(mean, scale):
    """Of all levels of one pixel, [256]."""
    images = scale_images(jnp.asarray(LEVELS)).reshape(256, 1, 1, 1)
    return discretised_laplace_log_prob(images, jnp.full_like(images, mean), scale)


@pytest.mark.parametrize("scale", [3e-3, 0.02, 0.15, 2.0])
@pytest.mark.parametrize("mean", [-1.3, -0.999, 0.0, 0.1234, 1.0])
def test_agrees_with_scipy_and_sums_to_one(mean, scale):
    edges = (np.arange(257) - 0.5) / 127.5 - 1.0
    edges[0], edges[-1] = -np.inf, np.inf
    of = laplace(mean, scale)
    # From the nearer tail, or differences of numbers near 1 would be lost in float64 too.
    expected = np.where(
        edges[:-1] > mean, of.sf(edges[:-1]) - of.sf(edges[1:]), np.diff(of.cdf(edges))
    )
    found = np.asarray(log_probs(mean, scale), np.float64)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=2e-5)
    seen = expected > 1e-30
    # Float32: the distance over the scale has an error of 1e-7 times its size.
    np.testing.assert_allclose(
        found[seen],
        np.log(expected[seen]),
        rtol=2e-6,
        atol=1e-4 if scale < 0.01 else 2e-5,
    )


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e3])
def test_finite_with_gradients_at_the_extremes(scale):
    value, gradient = jax.value_and_grad(lambda mean: jnp.sum(log_probs(mean, scale)))(
        0.3
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient)


def evidence(samples, images=2):
    """Of a linear decoder in one latent dimension, one pixel an image; and log p(x) by quadrature in float64."""
    posterior = GaussianMixture(
        jnp.zeros((images, 1)),
        jnp.linspace(-0.5, 0.7, images).reshape(images, 1, 1),
        jnp.full((images, 1, 1), -1.0),
    )
    levels = jnp.arange(images, dtype=jnp.uint8) * 60 + 90
    x = scale_images(levels).reshape(images, 1, 1, 1)

    def decode(z):
        return 0.5 * z.reshape(*z.shape[:-1], 1, 1, 1)

    keys = jax.random.split(jax.random.key(3), images)
    arguments = (decode, posterior, standard_normal(1), x, keys, 0.2, samples)
    grid = np.linspace(-8, 8, 8001)
    joint = (
        np.exp(
            [
                np.asarray(
                    discretised_laplace_log_prob(
                        x[i][None], decode(jnp.asarray(grid)[:, None]), 0.2
                    )
                )
                for i in range(images)
            ]
        )
        * np.exp(-0.5 * grid**2)
        / np.sqrt(2 * np.pi)
    )
    return arguments, np.log(np.trapezoid(joint, grid, axis=1))


def test_importance_sampling_finds_the_evidence():
    arguments, exact = evidence(20_000)
    found = importance_weighted_log_probs(*arguments)
    # The weights' standard deviation is below their mean here: 1/sqrt(20,000) = 0.007.
    np.testing.assert_allclose(found, exact, atol=5 * 0.007)


def test_the_elbo_is_below_the_evidence_by_the_gap():
    """Averaged over 200 images that are alike in distribution, 16 draws each."""
    arguments, exact = evidence(64, images=2)
    decode, posterior, prior, images, _, scale, samples = arguments
    many = jax.tree.map(lambda x: jnp.repeat(x, 200, axis=0), (posterior, images))
    keys = jax.random.split(jax.random.key(0), 400)
    found = estimate_evidence(decode, many[0], prior, many[1], keys, scale, samples)
    elbo = np.asarray(found.reconstruction - found.kl).reshape(2, 200)
    assert np.all(elbo.mean(axis=1) < exact)
    log_prob = np.asarray(found.log_prob).reshape(2, 200)
    assert np.all(log_prob.mean(axis=1) > elbo.mean(axis=1))
    # KL(N(m, s) || N(0, 1)) in closed form, to five standard errors
    mean, variance = np.array([-0.5, 0.7]), np.exp(-1.0)
    kl = 0.5 * (variance + mean**2 - 1.0 + 1.0)
    draws = np.asarray(found.kl).reshape(2, 200)
    error = draws.std(axis=1) / np.sqrt(200)
    np.testing.assert_array_less(np.abs(draws.mean(axis=1) - kl), 5 * error)


def test_an_images_score_is_its_own():
    """Its key, not its place in a batch, makes its noise."""
    arguments, _ = evidence(8)
    decode, posterior, prior, images, keys, scale, samples = arguments
    both = importance_weighted_log_probs(*arguments)
    second = importance_weighted_log_probs(
        decode,
        jax.tree.map(lambda x: x[1:], posterior),
        prior,
        images[1:],
        keys[1:],
        scale,
        samples,
    )
    np.testing.assert_allclose(second, both[1:], rtol=1e-6)
