"""GaussianMixture and aggregate moments against float64 oracles, quadrature and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from gamix_jax.mixture import GaussianMixture, aggregate_moments

N, K, D = 16, 3, 4


def random_mixture(seed=0, shape=(N,), components=K, dimensions=D, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return GaussianMixture(
        logits=rng.normal(size=(*shape, components)).astype(dtype),
        mean=rng.normal(size=(*shape, components, dimensions)).astype(dtype),
        log_var=rng.normal(scale=0.7, size=(*shape, components, dimensions)).astype(
            dtype
        ),
    )


def parts(mixture):
    return mixture.logits, mixture.mean, mixture.log_var


def test_log_prob_matches_scipy():
    q = random_mixture()
    z = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    expected = oracles.log_prob(z, *parts(q))
    # float32: D terms of size up to ~10, each rounded to 6e-8 relative
    np.testing.assert_allclose(
        jax.jit(lambda q, z: q.log_prob(z))(q, z), expected, atol=1e-5, rtol=1e-6
    )


def test_log_prob_gradient_matches_differences(x64):
    q = random_mixture(shape=(2,), components=2, dimensions=3, dtype=np.float64)
    z = np.random.default_rng(1).normal(size=(2, 3))
    for i, value in enumerate(parts(q)):
        function = lambda x: oracles.log_prob(
            z, *(x if j == i else p for j, p in enumerate(parts(q)))
        ).sum()
        ours = jax.grad(lambda *p: GaussianMixture(*p).log_prob(z).sum(), argnums=i)(
            *parts(q)
        )
        # central differences of step 1e-6: error about 1e-16 / 1e-6 + 1e-12
        np.testing.assert_allclose(ours, oracles.gradient(function, value), atol=1e-8)


def test_log_prob_broadcasts_over_leading_axes():
    q = random_mixture()
    z = np.random.default_rng(1).normal(size=(5, N, D)).astype(np.float32)
    together = q.log_prob(z)
    assert together.shape == (5, N)
    np.testing.assert_allclose(together, [q.log_prob(one) for one in z], rtol=1e-6)


def test_density_integrates_to_one():
    q = random_mixture(shape=(1,), dimensions=2)
    grid = np.linspace(-12, 12, 601)
    points = (
        np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
        .reshape(-1, 1, 2)
        .astype(np.float32)
    )
    density = np.exp(np.asarray(q.log_prob(points), np.float64))
    # trapezoid of a smooth function of scale >= 0.3 on a grid of step 0.04: error far
    # below float32's
    assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1.0, abs=1e-5)


def test_moments_match_samples_and_the_law_of_total_variance():
    q = random_mixture()
    mean, variance = q.moments()
    weights = oracles.softmax(q.logits)[..., None]
    expected_mean = (weights * q.mean).sum(1)
    second = (weights * (np.exp(np.float64(q.log_var)) + np.float64(q.mean) ** 2)).sum(
        1
    )
    np.testing.assert_allclose(mean, expected_mean, atol=1e-6)
    np.testing.assert_allclose(variance, second - expected_mean**2, rtol=1e-5)


def test_sample_has_the_mixture_s_moments():
    q, count = random_mixture(shape=(2,)), 40_000
    z = np.asarray(
        jax.vmap(q.sample)(jax.random.split(jax.random.key(0), count)), np.float64
    )
    assert z.shape == (count, 2, D)
    mean, variance = (np.asarray(x) for x in q.moments())
    # four standard errors: of a mean, sqrt(variance / n); of a variance, from the
    # sample's own fourth moment
    assert np.all(np.abs(z.mean(0) - mean) < 4 * np.sqrt(variance / count))
    squares = (z - mean) ** 2
    assert np.all(
        np.abs(squares.mean(0) - variance) < 4 * squares.std(0) / np.sqrt(count)
    )


def test_sample_draws_components_by_weight():
    weights, count = np.array([0.7, 0.2, 0.1]), 20_000
    q = GaussianMixture(
        np.log(weights), np.array([[-10.0], [0.0], [10.0]]), np.zeros((3, 1))
    )
    z = np.asarray(jax.vmap(q.sample)(jax.random.split(jax.random.key(1), count)))[:, 0]
    found = np.array([np.mean(z < -5), np.mean(np.abs(z) <= 5), np.mean(z > 5)])
    assert np.all(
        np.abs(found - weights) < 4 * np.sqrt(weights * (1 - weights) / count)
    )


def test_stratified_sample_draws_from_every_component():
    q, count = random_mixture(shape=()), 40_000
    z = np.asarray(
        jax.vmap(q.stratified_sample)(jax.random.split(jax.random.key(2), count)),
        np.float64,
    )
    assert z.shape == (count, K, D)
    deviation = np.exp(0.5 * np.float64(q.log_var))
    assert np.all(np.abs(z.mean(0) - q.mean) < 4 * deviation / np.sqrt(count))
    # the variance of a normal's sample variance is 2 s^4 / n
    assert np.all(np.abs(z.var(0) / deviation**2 - 1) < 4 * np.sqrt(2 / count))


def test_stratified_sample_is_reparametrised():
    q = random_mixture(shape=())
    noise = q.replace(
        mean=jnp.zeros((K, D)), log_var=jnp.zeros((K, D))
    ).stratified_sample(jax.random.key(0))
    grad = jax.grad(lambda q: q.stratified_sample(jax.random.key(0)).sum())(q)
    np.testing.assert_allclose(grad.mean, np.ones((K, D)))
    # dz / ds = eps exp(s / 2) / 2
    np.testing.assert_allclose(
        grad.log_var, 0.5 * noise * np.exp(0.5 * q.log_var), rtol=1e-5
    )


def test_aggregate_moments_match_the_oracle():
    q = random_mixture()
    moments = jax.jit(aggregate_moments)(q)
    for ours, expected in zip(
        (moments.mean, moments.within, moments.between),
        oracles.aggregate_moments(*parts(q)),
        strict=True,
    ):
        assert ours.shape == (D,)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_aggregate_moments_average_over_all_leading_axes():
    q = random_mixture(shape=(2, 4, 2))
    flat = jax.tree.map(lambda x: x.reshape(16, *x.shape[3:]), q)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        aggregate_moments(q),
        aggregate_moments(flat),
    )


def test_aggregate_variance_is_that_of_the_aggregate_mixture():
    """Law of total variance: the aggregate is itself one mixture of N K Gaussians."""
    q = random_mixture()
    weights = oracles.softmax(q.logits).reshape(-1) / N
    whole = GaussianMixture(
        np.log(weights), q.mean.reshape(-1, D), q.log_var.reshape(-1, D)
    )
    moments, (mean, variance) = aggregate_moments(q), whole.moments()
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.within + moments.between, variance, rtol=1e-5)


def test_aggregate_moments_under_pmap_are_those_of_the_undivided_batch():
    q = random_mixture()
    split = jax.tree.map(lambda x: x.reshape(8, N // 8, *x.shape[1:]), q)
    mapped = jax.pmap(lambda q: aggregate_moments(q, "batch"), axis_name="batch")(split)
    whole = aggregate_moments(q)
    for ours, expected in zip(
        jax.tree.leaves(mapped), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(
            ours, np.broadcast_to(expected, ours.shape), rtol=1e-5, atol=1e-6
        )
    local = jax.vmap(aggregate_moments)(split)
    # Averaging local variances instead would lose the variance of the local means.
    lost = whole.between - np.mean(local.between, axis=0)
    np.testing.assert_allclose(lost, np.var(local.mean, axis=0), rtol=1e-4)
    assert np.all(lost > 0.05)


@pytest.mark.parametrize("extreme", [-30.0, 30.0])
@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_finite_at_the_extremes(extreme, logit):
    q = random_mixture()
    q = q.replace(
        log_var=jnp.full_like(q.log_var, extreme),
        logits=jnp.asarray(q.logits).at[:, 0].set(logit),
    )
    z = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)

    def total(q):
        return (
            q.log_prob(z).sum()
            + sum(x.sum() for x in q.moments())
            + q.stratified_sample(jax.random.key(0)).sum()
        )

    values, gradients = jax.value_and_grad(total)(q)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((values, gradients)))


def test_bfloat16_parameters_are_computed_in_float32():
    q = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_mixture())
    z = jnp.ones((N, D), jnp.bfloat16)
    results = (
        q.log_prob(z),
        q.moments(),
        q.sample(jax.random.key(0)),
        aggregate_moments(q),
    )
    assert {x.dtype for x in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), q)
    np.testing.assert_array_equal(q.log_prob(z), exact.log_prob(jnp.ones((N, D))))


def test_check_grads(x64):
    q = random_mixture(shape=(2,), components=2, dimensions=2, dtype=np.float64)
    z = np.random.default_rng(1).normal(size=(2, 2))

    @jax.jit
    def smooth(q):
        return q.log_prob(z), q.moments(), aggregate_moments(q, covariance=True)

    check_grads(smooth, (q,), order=2)

    # The component drawn does not change under so small a step.
    @jax.jit
    def draws(q):
        key = jax.random.key(0)
        return q.sample(key, (3,)), q.stratified_sample(key, (3,))

    check_grads(draws, (q,), order=2)


def test_wrong_shapes_are_named():
    q = random_mixture()
    with pytest.raises(AssertionError, match=r"\(16, 7\).*\(16, 3, 4\)"):
        q.log_prob(np.zeros((N, 7), np.float32))
    with pytest.raises(AssertionError, match=r"\(16, 3, 4\).*\(16, 3, 5\)"):
        q.replace(log_var=np.zeros((N, K, 5), np.float32)).moments()
    with pytest.raises(AssertionError, match=r"\(16, 2\).*\(16, 3\)"):
        aggregate_moments(q.replace(logits=np.zeros((N, 2), np.float32)))
