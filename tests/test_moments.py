"""Moments of the aggregate with covariance and with memory, and the full form of its KL divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special
from sklearn.datasets import load_digits
from test_mixture import parts, random_mixture

from gamix_jax import losses
from gamix_jax.mixture import (
    GaussianMixture,
    aggregate_moments,
    components_used,
    remembered_moments,
)

N, D = 16, 4


def test_covariance_and_full_kl():
    q = random_mixture()
    moments = jax.jit(lambda q: aggregate_moments(q, covariance=True))(q)
    m, within, between = oracles.aggregate_moments(*parts(q))
    covariance = oracles.covariance(*parts(q))
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.between, between, rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(covariance), within + between, rtol=1e-12)
    full = losses.aggregate_kl(moments, covariance="full")
    # the correlations are shrunk by 4 D eps = 2e-6
    np.testing.assert_allclose(full, oracles.full_kl(m, covariance), rtol=2e-5)
    without = aggregate_moments(q)
    assert without.covariance is None
    np.testing.assert_allclose(
        losses.aggregate_kl(moments), losses.aggregate_kl(without), rtol=1e-5
    )


def test_full_kl_gradient_matches_differences(x64):
    q = random_mixture(shape=(3,), components=2, dimensions=2, dtype=np.float64)
    gradient = jax.grad(
        lambda q: losses.aggregate_kl(
            aggregate_moments(q, covariance=True), covariance="full"
        )
    )(q)

    def oracle(*p):
        m, _, _ = oracles.aggregate_moments(*p)
        return oracles.full_kl(m, oracles.covariance(*p))

    for i, (field, value) in enumerate(zip(parts(gradient), parts(q), strict=True)):
        function = lambda x: oracle(
            *(x if j == i else p for j, p in enumerate(parts(q)))
        )
        np.testing.assert_allclose(field, oracles.gradient(function, value), atol=1e-7)


def test_full_kl_under_pmap_is_that_of_the_undivided_batch():
    q = random_mixture()
    split = jax.tree.map(lambda x: x.reshape(8, N // 8, *x.shape[1:]), q)

    def full(shift, q, axis_name=None):
        q = q.replace(mean=q.mean + shift.reshape(1, 1, D))
        moments = aggregate_moments(q, axis_name, covariance=True)
        return losses.aggregate_kl(moments, covariance="full")

    whole = jax.value_and_grad(full)(jnp.zeros(D), q)
    mapped = jax.pmap(
        lambda shift, q: jax.lax.pmean(
            jax.value_and_grad(full)(shift, q, "batch"), "batch"
        ),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
    )(jnp.zeros(D), split)
    for ours, expected in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "dimensions", "rank"),
    [
        *((4, 128, 4), (16, 512, 16), (8, 8, 1), (300, 128, 1), (3, 64, 3), (1, 4, 1)),
        *((4096, 3, 1), (20_000, 2, 1)),
    ],
)
def test_full_kl_is_finite_where_the_covariance_is_singular(count, dimensions, rank):
    """Fewer images than dimensions, or all on a line, with variances of e^-30: Cholesky's method alone gives NaN."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dimensions))
    q = GaussianMixture(
        jnp.zeros((count, 1)),
        jnp.asarray(mean, jnp.float32)[:, None],
        jnp.full((count, 1, dimensions), -30.0),
    )

    def kls(q):
        moments = aggregate_moments(q, covariance=True)
        return losses.aggregate_kl(moments, covariance="full"), losses.aggregate_kl(
            moments
        )

    (full, diagonal), gradient = jax.jit(
        jax.value_and_grad(lambda q: kls(q), has_aux=True)
    )(q)
    assert np.isfinite(full)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
    if count > 1:
        # Null directions cost -1/2 log a each, but for what rounding adds to a.
        null = dimensions - min(rank, count - 1)
        shrinkage = (4 * dimensions + 256) * np.finfo(np.float32).eps
        # The others are eigenvalues of at most D.
        found, most = full - diagonal, -0.5 * null * np.log(shrinkage)
        assert found < most + 0.15 * null
        assert found > most - 0.15 * null - 0.5 * (dimensions - null) * np.log(
            dimensions
        )


def test_mistaken_forms_are_refused():
    moments = aggregate_moments(random_mixture())
    with pytest.raises(ValueError, match="with their covariance"):
        losses.aggregate_kl(moments, covariance="full")
    with pytest.raises(ValueError, match='needs variance="total"'):
        losses.aggregate_kl(moments, "between", "full")
    with pytest.raises(ValueError, match="not 'banded'"):
        losses.aggregate_kl(moments, covariance="banded")


def test_pooled_moments_are_those_of_the_pooled_mixture():
    a, b = (random_mixture(seed, shape=(8,)) for seed in (0, 1))
    a = a.replace(mean=a.mean + 1.0)
    first, second = (aggregate_moments(q, covariance=True) for q in (a, b))
    pooled = first.pool(second, 0.25)
    # b once and a three times: the same weights
    whole = jax.tree.map(lambda x, y: np.concatenate([x, x, x, y]), a, b)
    expected = aggregate_moments(whole, covariance=True)
    for ours, value in zip(*map(jax.tree.leaves, (pooled, expected)), strict=True):
        np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-6)


def stream(batches, decay, covariance=False):
    """The remembered moments after each of the batches [steps, N, D] of means, with variances of 1e-6."""
    shape = (*batches.shape[:2], 1, batches.shape[2])
    q = GaussianMixture(
        jnp.zeros(shape[:-1]), batches.reshape(shape), jnp.full(shape, -14.0)
    )
    first = aggregate_moments(jax.tree.map(lambda x: x[0], q), covariance=covariance)

    def step(memory, indexed):
        index, q = indexed
        weight = jnp.maximum(1.0 - decay, 1.0 / (1.0 + index))
        memory = remembered_moments(q, memory, weight)
        return memory, memory

    start = jax.tree.map(jnp.zeros_like, first)
    _, moments = jax.jit(
        lambda q: jax.lax.scan(step, start, (jnp.arange(len(batches)), q))
    )(q)
    return moments


def test_memory_takes_the_bias_of_small_batches_away():
    """DESIGN.md section 1: N = 10 gives 0.110 nats a dimension at the optimum; with memory below 0.01."""
    steps = 4000
    batches = jax.random.normal(jax.random.key(0), (steps, 10, 8))
    formula = -0.5 * (special.digamma(9 / 2) + np.log(2 / 10))
    kl = jax.vmap(lambda moments: losses.aggregate_kl(moments, "between") / 8)
    alone, remembered = (
        np.asarray(kl(stream(batches, decay)), np.float64) for decay in (0.0, 0.95)
    )
    assert abs(alone.mean() - formula) < 4 * alone.std() / np.sqrt(steps)
    assert alone.mean() > 0.1
    assert remembered[100:].mean() < 0.01


def test_memory_on_real_data():
    """Digits, whitened to moments of N(0, I) in 8 dimensions, in batches of 10: all of the KL is bias."""
    pixels = load_digits().data.astype(np.float64)
    pixels -= pixels.mean(0)
    u = np.linalg.svd(pixels, full_matrices=False)[0][:, :8] * np.sqrt(len(pixels))
    order = np.random.default_rng(0).permuted(
        np.tile(np.arange(len(u)), (12, 1)), axis=1
    )
    batches = u[order.reshape(-1)[: 2150 * 10]].reshape(-1, 10, 8).astype(np.float32)
    for form in ("diagonal", "full"):
        kl = jax.vmap(lambda moments: losses.aggregate_kl(moments, covariance=form) / 8)
        alone, remembered = (
            np.asarray(kl(stream(jnp.asarray(batches), decay, covariance=True)))
            for decay in (0.0, 0.99)
        )
        assert alone.mean() > 0.05  # normal data would give 0.110; these are not
        assert remembered[500:].mean() < 0.01


@pytest.mark.parametrize("decay", [0.99, 0.999])
def test_full_kl_stays_finite_with_memory(decay):
    """Means on a line away from 0, variances of e^-14: the covariance is rounded at each of 3,000 steps."""
    rng = np.random.default_rng(0)
    line, offset = rng.normal(size=8), 3.0 * rng.normal(size=8)
    means = rng.normal(size=(3000, 10, 1)) * line + offset
    moments = stream(jnp.asarray(means, jnp.float32), decay, covariance=True)
    full = jax.vmap(lambda m: losses.aggregate_kl(m, covariance="full"))(moments)
    assert np.all(np.isfinite(full))


def test_gradient_with_memory_is_unbiased():
    """Its mean over batches of 4 is the gradient at the moments of all data, not (1 - decay) of it, nor (N - 1) / N."""
    q = random_mixture(shape=(64,), components=2)
    memory = aggregate_moments(q, covariance=True)
    form = lambda moments: losses.aggregate_kl(moments, covariance="full")

    def loss(scale, q, weight=None):
        q = q.replace(mean=q.mean * scale.reshape(1, 1, D))
        if weight is None:
            return form(aggregate_moments(q, covariance=True))
        return form(remembered_moments(q, memory, weight))

    expected = jax.grad(loss)(jnp.ones(D), q)
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(64), (50, 1)), axis=1).reshape(-1, 4)
    batches = jax.tree.map(lambda x: x[order], q)
    # So small a weight that the values are those of all data at every step.
    found = jax.jit(
        jax.vmap(jax.grad(loss), in_axes=(None, 0, None)), static_argnums=2
    )(jnp.ones(D), batches, 1e-5)
    # Each image is seen 50 times, so the mean is exact up to the weight and rounding.
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=1e-3, atol=1e-3)
    one = jax.grad(loss)(jnp.ones(D), q, 1.0)
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)


def test_weight_one_forgets_the_memory():
    q = random_mixture()
    memory = aggregate_moments(random_mixture(1), covariance=True)
    found = remembered_moments(q, memory, 1.0)
    for ours, value in zip(
        *map(jax.tree.leaves, (found, aggregate_moments(q, covariance=True))),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, value)


@pytest.mark.parametrize("gap", [50.0, 90.0, 200.0, 1e4])
def test_gradients_are_finite_where_a_weight_underflows(gap):
    """From a gap of 88 between logits on a float32 weight is 0, and x log x has an infinite slope there."""
    q = random_mixture().replace(logits=np.tile(np.float32([gap, 0, 0]), (N, 1)))
    for function in (losses.component_entropy, components_used):
        value, gradient = jax.value_and_grad(lambda q: jnp.sum(function(q)))(q)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_components_used():
    """Perplexity by scipy's entropy; 1 where one component does all, K where all are equal, whatever each image prefers."""
    q = random_mixture()
    mean = oracles.softmax(q.logits).mean(0)
    expected = np.exp(special.entr(mean).sum())
    np.testing.assert_allclose(components_used(q), expected, rtol=1e-6)
    split = jax.tree.map(lambda x: x.reshape(8, N // 8, *x.shape[1:]), q)
    mapped = jax.pmap(lambda q: components_used(q, "batch"), axis_name="batch")(split)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    each = 100.0 * np.eye(3, dtype=np.float32)[np.arange(15) % 3]
    assert components_used(
        q.replace(logits=each, mean=q.mean[:15], log_var=q.log_var[:15])
    ) == pytest.approx(3.0)
    alone = np.tile(np.float32([100.0, 0.0, 0.0]), (N, 1))
    assert components_used(q.replace(logits=alone)) == pytest.approx(1.0)
    entropy = losses.component_entropy(q)
    np.testing.assert_allclose(
        entropy, special.entr(oracles.softmax(q.logits)).sum(1), rtol=1e-5
    )
