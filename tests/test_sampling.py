"""Where latent vectors of samples are drawn from, against SciPy's densities and known moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, truncnorm

from gamix_jax.errors import InputError
from gamix_jax.mixture import GaussianMixture, standard_normal
from gamix_jax.sampling import LatentSampler, _draw, fit_sampler, prior_sampler

DRAWS = 20_000


def mixture():
    return GaussianMixture(
        jnp.log(jnp.array([0.25, 0.75])),
        jnp.array([[3.0, 0.0], [-1.0, 2.0]]),
        jnp.log(jnp.array([[0.25, 1.0], [1.0, 4.0]])),
    )


def assert_moments(z, mean, covariance):
    """To five standard errors, those of Gaussians of that covariance."""
    error = np.sqrt(np.diag(covariance) / len(z))
    np.testing.assert_array_less(np.abs(z.mean(axis=0) - mean), 5 * error)
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) * 2 / len(z))
    np.testing.assert_array_less(np.abs(np.cov(z.T) - covariance), 5 * 2 * spread)


def test_the_prior_is_drawn_from():
    prior = mixture()
    z = np.asarray(prior_sampler(prior).draw(jax.random.key(0), DRAWS))
    mean, variance = (np.asarray(x) for x in prior.moments())
    between = np.asarray(prior.mean) - mean
    covariance = np.einsum("k,ki,kj->ij", [0.25, 0.75], between, between)
    covariance += np.diag(variance - np.diag(covariance))  # total variance
    assert_moments(z, mean, covariance)


def test_temperature_scales_the_noise_of_each_component():
    sampler, key = prior_sampler(mixture()), jax.random.key(1)
    one, half = (sampler.draw(key, 100, t) for t in (1.0, 0.5))
    cold = sampler.draw(key, 100, 1e-6)  # the component's mean
    np.testing.assert_allclose(half, (one + cold) / 2, atol=1e-5)
    assert {tuple(z) for z in np.round(cold).tolist()} == {(3.0, 0.0), (-1.0, 2.0)}


def test_truncation_bounds_the_noise():
    z = np.asarray(
        prior_sampler(standard_normal(3)).draw(jax.random.key(2), DRAWS, 2.0, 0.7)
    )
    assert np.abs(z).max() <= 2.0 * 0.7
    # SciPy's variance of a normal cut off at 0.7, times the temperature's square
    expected = truncnorm(-0.7, 0.7).var() * 4.0
    np.testing.assert_allclose(z.var(axis=0), expected, rtol=5 * np.sqrt(2 / DRAWS))


@pytest.mark.parametrize("full", [False, True])
def test_log_prob(full):
    rng = np.random.default_rng(0)
    mean, weights = rng.normal(size=(3, 4)), np.array([0.2, 0.3, 0.5])
    factor = np.exp(rng.normal(size=(3, 4)) * 0.3)
    if full:
        factor = np.tril(rng.normal(size=(3, 4, 4)), -1) + np.stack(
            [np.diag(x) for x in factor]
        )
    z = rng.normal(size=(7, 4))
    square = [f @ f.T if full else np.diag(f**2) for f in factor]
    expected = logsumexp(
        [
            multivariate_normal(m, s).logpdf(z)
            for m, s in zip(mean, square, strict=True)
        ],
        b=weights[:, None],
        axis=0,
    )
    sampler = LatentSampler(
        *(jnp.asarray(x, jnp.float32) for x in (np.log(weights), mean, factor))
    )
    found = sampler.log_prob(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_a_fitted_mixture_has_the_moments_of_the_codes():
    """Expectation maximisation keeps the mean and the covariance of the data exactly, at any iteration."""
    rng = np.random.default_rng(0)
    codes = np.concatenate(
        [
            rng.normal(size=(4000, 3)) * [0.3, 1, 2] + [4, 0, 0],
            rng.normal(size=(4000, 3)),
        ]
    )
    sampler = fit_sampler(codes, seed=0)
    assert sampler.factor.shape == (10, 3, 3)
    z = np.asarray(sampler.draw(jax.random.key(0), DRAWS))
    assert_moments(z, codes.mean(axis=0), np.cov(codes.T))
    again = fit_sampler(codes, seed=0)
    np.testing.assert_array_equal(again.mean, sampler.mean)


def test_one_component_is_the_gaussian_of_the_codes_moments():
    """Of its own, but for the 1e-6 that scikit-learn adds to variances."""
    codes = np.random.default_rng(0).normal(size=(50, 3)) * [0.1, 1, 2] + [4, 0, 0]
    sampler = fit_sampler(codes, seed=0, components=1)
    (factor,) = np.asarray(sampler.factor, np.float64)
    covariance = np.cov(codes.T, bias=True) + 1e-6 * np.eye(3)
    # float32 rounds each number by 2^-24 of it, 6e-8, so the products' sums by twice that
    # of what the variances allow.
    np.testing.assert_allclose(sampler.mean[0], codes.mean(axis=0), rtol=1e-7)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    found = factor @ factor.T / scale
    np.testing.assert_allclose(found, covariance / scale, rtol=0, atol=1.3e-7)


def test_few_codes_make_few_components():
    codes = np.random.default_rng(0).normal(size=(30, 5))
    assert fit_sampler(codes, seed=0).mean.shape == (3, 5)


@pytest.mark.parametrize(("temperature", "truncation"), [(0.0, None), (1.0, -1.0)])
def test_bad_noise_is_refused(temperature, truncation):
    with pytest.raises(InputError, match="must be positive"):
        prior_sampler(mixture()).draw(jax.random.key(0), 1, temperature, truncation)


def test_many_draws_do_not_take_a_factor_each():
    """Of 50,000 draws in 64 dimensions these are 50,000 * 64 * 64 * 4 bytes = 819 MB."""
    sampler = LatentSampler(jnp.zeros(10), jnp.zeros((10, 64)), jnp.zeros((10, 64, 64)))
    lowered = _draw.lower(sampler, jax.random.key(0), 50_000, 1.0, None)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 819e6 / 4


def test_kl_lower_bound_is_a_lower_bound_that_the_true_density_reaches():
    """Of a correlated Gaussian q in closed form, KL(q || N(0, I)) = (tr C + m.m - D - log det C) / 2; another r loses KL(q || r)."""
    mean = np.array([0.5, -1.0, 0.0])
    factor = np.array([[1.5, 0, 0], [0.8, 0.6, 0], [-0.3, 0.2, 0.9]])
    covariance = factor @ factor.T
    exact = (np.trace(covariance) + mean @ mean - 3) / 2 - np.log(
        factor.diagonal()
    ).sum()
    q = LatentSampler(jnp.zeros(1), jnp.array(mean)[None], jnp.array(factor)[None])
    z = q.draw(jax.random.key(0), DRAWS)
    value, error = q.kl_lower_bound(z)
    assert abs(value - exact) < 4 * error < 0.1
    # Of the same variances without correlations r loses the correlations' -1/2 log det.
    scales = np.sqrt(covariance.diagonal())
    alone = LatentSampler(q.log_weights, q.mean, jnp.array(scales)[None])
    lost = np.log(scales).sum() - np.log(factor.diagonal()).sum()
    value, error = alone.kl_lower_bound(z)
    assert lost > 0.5
    assert abs(value - (exact - lost)) < 4 * error < 0.1
