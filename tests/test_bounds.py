"""The bracket around the aggregate's KL divergence and mutual information."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from scipy import stats
from test_mixture import parts, random_mixture

from gamix_jax.bounds import aggregate_kl_bounds, mutual_information_bounds
from gamix_jax.losses import aggregate_kl, gaussian_kl
from gamix_jax.mixture import GaussianMixture, aggregate_moments

GRID = np.linspace(-40, 40, 80_001)
STEP = GRID[1] - GRID[0]


def all_bounds(q):
    return aggregate_kl_bounds(q), mutual_information_bounds(q)


def pairwise(mean, log_var):
    """KL divergence and Bhattacharyya distance of all pairs, [M, M] each, by quadrature in each dimension."""
    log_density = stats.norm.logpdf(
        GRID, np.float64(mean)[..., None], np.exp(0.5 * np.float64(log_var))[..., None]
    )
    density, root = np.exp(log_density), np.exp(0.5 * log_density)
    cross = np.einsum("idx,jdx->ijd", density, log_density) * STEP
    kl = np.einsum("iid->id", cross)[:, None] - cross
    bhattacharyya = -np.log(np.einsum("idx,jdx->ijd", root, root) * STEP)
    return kl.sum(-1), bhattacharyya.sum(-1)


def oracle(logits, mean, log_var):
    """Kolchinsky and Tracey's estimates of H(q) - mean H(components), of all and averaged within images."""
    count, components, dimensions = mean.shape
    weights = oracles.softmax(logits)
    distances = pairwise(mean.reshape(-1, dimensions), log_var.reshape(-1, dimensions))
    flat = weights.reshape(-1) / count
    whole = [-flat @ np.log(np.exp(-d) @ flat) for d in distances]
    within = [
        np.mean(
            [
                -weights[i]
                @ np.log(
                    np.exp(-d.reshape(count, components, count, components)[i, :, i])
                    @ weights[i]
                )
                for i in range(count)
            ]
        )
        for d in distances
    ]
    kl = np.mean(np.sum(weights * oracle_component_kl(mean, log_var), axis=1))
    return kl, whole, within


def oracle_component_kl(mean, log_var):
    variance = np.exp(np.float64(log_var))
    return np.sum(
        -np.log(variance) / 2 + (variance + np.float64(mean) ** 2 - 1) / 2, axis=-1
    )


@pytest.mark.parametrize("components", [1, 3])
def test_bounds_are_those_of_the_formulas(components):
    q = random_mixture(shape=(5,), components=components, dimensions=2)
    kl, (kl_whole, bd_whole), (kl_within, bd_within) = oracle(*parts(q))
    m, _, _ = oracles.aggregate_moments(*parts(q))
    moment_kl = oracles.full_kl(m, oracles.covariance(*parts(q)))
    expected_kl = (max(moment_kl, kl - kl_whole), kl - max(bd_within, bd_whole))
    expected_mi = (
        np.clip(bd_whole - kl_within, 0, np.log(5)),
        np.clip(min(kl_whole - bd_within, kl - bd_within - moment_kl), 0, np.log(5)),
    )
    # float32, and the shrinkage of the correlations by 1e-6
    np.testing.assert_allclose(jax.jit(aggregate_kl_bounds)(q), expected_kl, rtol=2e-5)
    np.testing.assert_allclose(
        jax.jit(mutual_information_bounds)(q), expected_mi, rtol=2e-5, atol=1e-6
    )


# (D, N, K) and 125 mixtures of each: D = 1..8, N = 2..64, K = 1..4
SHAPES = (
    *((1, 2, 1), (2, 5, 4), (3, 64, 1), (4, 16, 2)),
    *((5, 8, 3), (6, 32, 1), (7, 3, 4), (8, 64, 4)),
)


def many_mixtures(dimensions, images, components, count, seed):
    """Of all sorts: spread or close, wide or narrow, one weight for all, components and images that coincide."""
    rng = np.random.default_rng(seed)
    scale = lambda low, high: np.exp(rng.uniform(low, high, (count, 1, 1, 1)))
    logits = rng.normal(size=(count, images, components)) * scale(-2, 3)[..., 0]
    mean = rng.normal(size=(count, images, components, dimensions)) * scale(-6, 1.5)
    log_var = rng.uniform(-10, 1, (count, 1, 1, 1)) + rng.normal(
        size=mean.shape
    ) * scale(-6, 0.5)
    same = rng.random(count) < 0.2  # near-degenerate: all images the same
    mean[same], log_var[same] = mean[same][:, :1], log_var[same][:, :1]
    return GaussianMixture(*(x.astype(np.float32) for x in (logits, mean, log_var)))


def sampled(q, rng, count=800):
    """KL(q(z) || N(0, I)) and mutual information by Monte Carlo in float64, each with its standard error."""
    logits, mean, log_var = (np.float64(x) for x in parts(q))
    images, components, dimensions = mean.shape
    weights = oracles.softmax(logits)
    i = rng.integers(images, size=count)
    k = np.array([rng.choice(components, p=weights[j]) for j in i])
    deviation = np.exp(0.5 * log_var)
    z = mean[i, k] + deviation[i, k] * rng.normal(size=(count, dimensions))
    scaled = (z[:, None, None] - mean) / deviation
    log_normal = -0.5 * np.sum(
        scaled**2 + log_var + np.log(2 * np.pi), axis=-1
    ) + np.log(np.maximum(weights, 1e-300))
    of_image = np.logaddexp.reduce(log_normal, axis=-1)
    log_q = np.logaddexp.reduce(of_image, axis=-1) - np.log(images)
    values = (
        log_q - stats.norm.logpdf(z).sum(-1),
        of_image[np.arange(count), i] - log_q,
    )
    return [(x.mean(), x.std() / np.sqrt(count)) for x in values]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bracket_holds_the_truth(shape):
    q = many_mixtures(*shape, count=125, seed=sum(shape))
    bounds = jax.jit(jax.vmap(all_bounds))(q)
    scale = np.asarray(jax.vmap(lambda q: jnp.mean(gaussian_kl(q.mean, q.log_var)))(q))
    rng = np.random.default_rng(0)
    for i in range(125):
        truths = sampled(jax.tree.map(lambda x: x[i], q), rng)
        for (lower, upper), (truth, error) in zip(bounds, truths, strict=True):
            # four standard errors, and float32's rounding of the mean KL
            tolerance = 4 * error + 2e-6 * (1 + scale[i])
            assert lower[i] < truth + tolerance, i
            assert upper[i] > truth - tolerance, i


def test_the_bracket_is_tight_where_it_should_be():
    far = GaussianMixture(
        np.zeros((4, 1)), 100.0 * np.arange(4.0).reshape(4, 1, 1), np.zeros((4, 1, 1))
    )
    # Components that do not overlap: KL = mean KL - log N exactly.
    expected = np.mean(100.0**2 * np.arange(4) ** 2) / 2 - np.log(4)
    np.testing.assert_allclose(aggregate_kl_bounds(far), expected, rtol=1e-6)
    np.testing.assert_allclose(mutual_information_bounds(far), np.log(4), rtol=1e-6)
    one = random_mixture(shape=(1,), components=1)
    same = jax.tree.map(lambda x: np.tile(x, (4, *[1] * (x.ndim - 1))), one)
    expected = oracle_component_kl(one.mean, one.log_var)[0, 0]
    np.testing.assert_allclose(aggregate_kl_bounds(same), expected, rtol=1e-5)
    np.testing.assert_allclose(mutual_information_bounds(same), 0.0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_diagonal_below_full_below_true_kl(seed):
    """In two dimensions, by quadrature; strictly where dimensions are correlated."""
    q = random_mixture(seed, shape=(6,), components=2, dimensions=2)
    moments = aggregate_moments(q, covariance=True)
    diagonal, full = (
        float(aggregate_kl(moments, covariance=form)) for form in ("diagonal", "full")
    )
    axis = np.linspace(-12, 12, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.zeros(len(grid))
    for i, k in np.ndindex(6, 2):
        density += (
            oracles.softmax(q.logits)[i, k]
            / 6
            * stats.norm.pdf(
                grid,
                np.float64(q.mean[i, k]),
                np.exp(0.5 * np.float64(q.log_var[i, k])),
            ).prod(1)
        )
    log_prior = stats.norm.logpdf(grid).sum(1)
    ratio = np.log(np.maximum(density, 1e-300)) - log_prior
    truth = np.sum(density * ratio) * (axis[1] - axis[0]) ** 2
    assert diagonal < full < truth
    lower, upper = aggregate_kl_bounds(q)
    assert full <= lower + 1e-6
    assert lower - 1e-5 < truth < upper + 1e-5


def test_narrow_posteriors_of_a_perfect_aggregate_have_the_mean_kl_less_log_n():
    """Means of N(0, (1 - s) I) and variances s make q(z) of all data N(0, I); N images tell of themselves alone."""
    count, dimensions, s = 256, 64, 0.01
    normal = jax.random.normal(jax.random.key(0), (count, 1, dimensions))
    mean, log_var = jnp.sqrt(1 - s) * normal, jnp.full_like(normal, jnp.log(s))
    q = GaussianMixture(jnp.zeros((count, 1)), mean, log_var)
    kl = np.mean(oracle_component_kl(np.float64(mean), np.float64(log_var)))
    of_kl, of_information = all_bounds(q)
    np.testing.assert_allclose(of_kl, kl - np.log(count), rtol=2e-6)
    np.testing.assert_allclose(of_information, np.log(count), rtol=2e-6)


def test_the_ends_are_in_order():
    """Of one image they are equal but for rounding: its KL, and no information."""
    mean, log_var = jax.random.normal(jax.random.key(0), (2, 200, 1, 1, 64))
    q = GaussianMixture(jnp.zeros((200, 1, 1)), mean, log_var)
    kl = oracle_component_kl(np.float64(mean), np.float64(log_var))[:, 0, 0]
    truths = kl, np.zeros(200)
    for ends, truth in zip(jax.jit(jax.vmap(all_bounds))(q), truths, strict=True):
        assert jnp.all(ends[0] <= ends[1])
        for end in ends:
            np.testing.assert_array_less(np.abs(end - truth), 2e-6 * kl)


def test_memory():
    """N K = 16,384 components in 128 dimensions: below 1 GiB, with gradients too (a [N K, N K, D] array has 128 GiB)."""
    shapes = ((4096, 4), (4096, 4, 128), (4096, 4, 128))
    q = GaussianMixture(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    both = lambda q: sum(map(sum, all_bounds(q)))
    for function in (both, jax.grad(both)):
        memory = jax.jit(function).lower(q).compile().memory_analysis()
        total = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        assert total < 2**30


def test_blocks_do_not_change_the_result(monkeypatch):
    q = random_mixture(shape=(7,), components=2)
    whole = jax.jit(lambda q: all_bounds(q))(q)
    monkeypatch.setattr("gamix_jax.bounds.BLOCK", 100)  # less than one row
    blocks = jax.jit(lambda q: all_bounds(q))(q)
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


def test_check_grads(x64):
    q = random_mixture(shape=(3,), components=2, dimensions=2, dtype=np.float64)
    check_grads(jax.jit(all_bounds), (q,), order=1)


@jax.jit
def total(q):
    """Compiled once for all extremes."""
    return jax.value_and_grad(lambda q: sum(map(sum, all_bounds(q))))(q)


@pytest.mark.parametrize("log_var", [-30.0, 30.0])
@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_finite_at_the_extremes(log_var, logit):
    q = random_mixture(shape=(4,))
    q = q.replace(
        log_var=jnp.full_like(q.log_var, log_var).at[0].multiply(-1.0),
        logits=jnp.asarray(q.logits).at[:, 0].set(logit),
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(total(q)))
