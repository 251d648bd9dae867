"""Symmetries that hold for every mixture, by hypothesis, and an independent implementation (numpyro)."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from test_mixture import parts, random_mixture

from gamix_jax import bounds, losses
from gamix_jax.mixture import GaussianMixture, aggregate_moments, components_used

N, T, K, D = 5, 2, 3, 2
# Compiled once; a deadline would time that.
settings = hypothesis.settings(max_examples=50, deadline=None, derandomize=True)


def arrays(shape, most):
    return hypothesis.extra.numpy.arrays(
        np.float32, shape, elements=st.floats(-most, most, width=32)
    )


mixtures = st.builds(
    GaussianMixture, arrays((N, K), 8), arrays((N, K, D), 4), arrays((N, K, D), 5)
)
draws = arrays((T, N, K, D), 5)
likelihoods = arrays((T, N, K), 10)


@jax.jit
def of_images(q, z, log_likelihood):
    """Everything that has a value for each image."""
    return {
        "log_prob": q.log_prob(z[:, :, 0]).T,
        "moments": q.moments(),
        "collapse": losses.collapse_penalty(q),
        "elbo": losses.mixture_elbo(log_likelihood, q, z),
        "siwae": losses.mixture_siwae(log_likelihood, q, z),
        "kl": losses.posterior_kl(q, z),
    }


@jax.jit
def of_batch(q):
    """Everything that has one value for the batch and does not depend on which component is which."""
    moments = aggregate_moments(q, covariance=True)
    return {
        "moments": moments,
        "diagonal": losses.aggregate_kl(moments),
        "full": losses.aggregate_kl(moments, covariance="full"),
        "bounds": bounds.aggregate_kl_bounds(q),
        "information": bounds.mutual_information_bounds(q),
    }


def assert_close(found, expected):
    # float32: sums of ten terms of size up to e^5 + 4^2, of which some cancel
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3),
        found,
        expected,
    )


@settings
@hypothesis.given(mixtures, draws, likelihoods, st.permutations(range(K)))
def test_components_may_be_permuted(q, z, log_likelihood, order):
    order = np.array(order)
    permuted = jax.tree.map(lambda x: x[:, order], q)
    expected = of_images(q, z, log_likelihood)
    found = of_images(permuted, z[:, :, order], log_likelihood[:, :, order])
    # log_prob of the draw that was first
    expected["log_prob"] = found["log_prob"] = None
    assert_close(found, expected)
    assert_close(of_batch(permuted), of_batch(q))


@settings
@hypothesis.given(mixtures, draws, likelihoods, st.floats(0.01, 0.99))
def test_a_component_may_be_split(q, z, log_likelihood, share):
    """Into two of the same place and width that share its weight."""

    def doubled(x, axis):
        return np.concatenate([x, np.take(x, [0], axis)], axis)

    logits = doubled(q.logits, 1)
    logits[:, 0] += np.log(share)
    logits[:, -1] += np.log(1 - share)
    split = GaussianMixture(logits, doubled(q.mean, 1), doubled(q.log_var, 1))
    expected = of_images(q, z, log_likelihood)
    found = of_images(split, doubled(z, 2), doubled(log_likelihood, 2))
    assert_close(found, expected)
    assert_close(of_batch(split), of_batch(q))


@settings
@hypothesis.given(mixtures, draws, likelihoods, st.permutations(range(N)))
def test_the_batch_may_be_permuted(q, z, log_likelihood, order):
    order = np.array(order)
    permuted = jax.tree.map(lambda x: x[order], q)
    expected = jax.tree.map(lambda x: x[order], of_images(q, z, log_likelihood))
    assert_close(of_images(permuted, z[:, order], log_likelihood[:, order]), expected)
    assert_close(of_batch(permuted), of_batch(q))
    assert_close(components_used(permuted), components_used(q))


@settings
@hypothesis.given(
    mixtures, draws, arrays((D,), 3), st.floats(0.25, 4, width=32), st.booleans()
)
def test_densities_move_and_stretch_with_z(q, z, shift, scale, mirrored):
    """log q of a z + b under the mixture moved the same way is log q(z) - D log |a|; between scales by a^2."""
    factor = -scale if mirrored else scale
    moved = q.replace(
        mean=factor * q.mean + shift, log_var=q.log_var + np.float32(2 * np.log(scale))
    )
    zeros = np.zeros((T, N, K), np.float32)
    before = of_images(q, z, zeros)["log_prob"]
    after = of_images(moved, (factor * z + shift).astype(np.float32), zeros)["log_prob"]
    # Distances in units of a deviation, e^-2.5 at least, are rounded: their squares are
    # up to 1e4 and wrong by 1e-5 of it.
    np.testing.assert_allclose(after, before - D * np.log(scale), rtol=1e-4, atol=0.02)
    moments, stretched = (of_batch(x)["moments"] for x in (q, moved))
    np.testing.assert_allclose(
        stretched.mean, factor * moments.mean + shift, rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(
        stretched.covariance, factor**2 * moments.covariance, rtol=1e-3, atol=2e-3
    )
    # Information does not ask for units.
    np.testing.assert_allclose(
        of_batch(moved)["information"][0],
        of_batch(q)["information"][0],
        rtol=1e-3,
        atol=2e-3,
    )


@pytest.mark.slow
def test_against_numpyro(x64):
    """log_prob and its gradients of MixtureSameFamily, float64: the same up to rounding."""
    q = random_mixture(dtype=np.float64)
    z = np.random.default_rng(1).normal(size=(16, 4))

    def theirs(logits, mean, log_var):
        with jax.numpy_rank_promotion("allow"):
            normal = dist.Normal(mean, jnp.exp(0.5 * log_var)).to_event(1)
            return dist.MixtureSameFamily(
                dist.Categorical(logits=logits), normal
            ).log_prob(z)

    np.testing.assert_allclose(q.log_prob(z), theirs(*parts(q)), rtol=1e-12)
    ours = jax.grad(lambda *p: GaussianMixture(*p).log_prob(z).sum(), (0, 1, 2))
    expected = jax.grad(lambda *p: theirs(*p).sum(), (0, 1, 2))
    for a, b in zip(ours(*parts(q)), expected(*parts(q)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@settings
@hypothesis.given(arrays((N, 1, D), 4), arrays((N, 1, D), 5), arrays((T, N, D), 5))
def test_one_component_is_a_gaussian(mean, log_var, z):
    """Density, moments and KL divergence of K = 1 against scipy's normal, float64."""
    q = GaussianMixture(np.zeros((N, 1), np.float32), mean, log_var)
    m, s = np.float64(mean[:, 0]), np.float64(log_var[:, 0])
    log_prob, moments, kl = of_gaussian(q, z)
    expected = stats.norm.logpdf(np.float64(z), m, np.exp(0.5 * s)).sum(-1)
    # squares of distances of up to 9 in units of e^-2.5 at least
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-4)
    # numbers below 1e-38 are flushed to 0
    np.testing.assert_allclose(moments[0], m, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(moments[1], np.exp(s), rtol=1e-5)
    expected = np.sum((m**2 + np.exp(s) - 1 - s) / 2, axis=-1)
    np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-6)


@jax.jit
def of_gaussian(q, z):
    return q.log_prob(z), q.moments(), losses.posterior_kl(q, z[:, :, None])
