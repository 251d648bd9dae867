"""ELBO, SIWAE and importance sampling: oracles, and models whose evidence and posterior are known."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.test_util import check_grads
from scipy import stats
from test_mixture import parts, random_mixture

from gamix_jax import losses
from gamix_jax.bounds import importance_weighted_log_likelihood
from gamix_jax.mixture import GaussianMixture

N, T, K, D = 8, 3, 2, 2
BOUNDS = (losses.mixture_elbo, losses.mixture_siwae)
ORACLES = (oracles.mixture_elbo, oracles.mixture_siwae)


def draws(q, samples=T, seed=0):
    """z [T, N, K, D] from posteriors [N]."""
    return q.stratified_sample(jax.random.key(seed), (samples,))


def random_terms(dtype=np.float32, **shape):
    q = random_mixture(
        **{"shape": (N,), "components": K, "dimensions": D, **shape}, dtype=dtype
    )
    z = np.asarray(draws(q))
    log_likelihood = np.random.default_rng(3).normal(size=z.shape[:3]).astype(dtype)
    return log_likelihood, q, z


def repeated(mixture, count):
    """One mixture without leading axes, `count` times."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), mixture)


@pytest.mark.parametrize("which", [0, 1], ids=["elbo", "siwae"])
def test_values(which):
    log_likelihood, q, z = random_terms()
    expected = ORACLES[which](log_likelihood, *parts(q), z)
    ours = jax.jit(BOUNDS[which])(log_likelihood, q, z)
    # float32 sums of some ten terms of size up to ten
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1], ids=["elbo", "siwae"])
def test_gradients_match_differences_of_the_oracles(which, x64):
    log_likelihood, q, z = random_terms(np.float64, shape=(2,))
    gradient = jax.grad(lambda q: BOUNDS[which](log_likelihood, q, z).sum())(q)
    for i, (field, value) in enumerate(zip(parts(gradient), parts(q), strict=True)):
        function = lambda x: ORACLES[which](
            log_likelihood, *(x if j == i else p for j, p in enumerate(parts(q))), z
        ).sum()
        # central differences of step 1e-6: error about 1e-16 / 1e-6 + 1e-12
        np.testing.assert_allclose(field, oracles.gradient(function, value), atol=1e-8)


def test_check_grads(x64):
    log_likelihood, q, z = random_terms(np.float64, shape=(2,))
    prior = random_mixture(5, shape=(), components=3, dimensions=D, dtype=np.float64)
    one = random_mixture(shape=(2,), components=1, dimensions=D, dtype=np.float64)

    @jax.jit
    def everything(log_likelihood, q, z, prior, one, shift):
        importance = importance_weighted_log_likelihood(
            jax.random.key(0),
            lambda z: -jnp.sum(jnp.square(z - shift), axis=-1),
            q,
            samples=3,
            prior=prior,
        )
        bounds = [bound(log_likelihood, q, z, prior) for bound in BOUNDS]
        closed = losses.posterior_kl(one, z[:, :, :1])
        return *bounds, importance, losses.posterior_kl(q, z, prior), closed

    shift = np.full((2, D), 0.3)
    check_grads(everything, (log_likelihood, q, z, prior, one, shift), order=1)


def test_siwae_is_at_least_the_elbo_on_the_same_draws():
    log_likelihood, q, z = random_terms()
    elbo, siwae = (jax.jit(bound)(log_likelihood, q, z) for bound in BOUNDS)
    assert np.all(siwae > elbo + 1e-4)  # Jensen, strictly: the terms differ
    log_likelihood, q, z = random_terms(components=1)
    one = (log_likelihood[:1], q, z[:1])
    np.testing.assert_allclose(
        losses.mixture_siwae(*one), losses.mixture_elbo(*one), rtol=1e-6
    )


def test_posterior_kl_is_closed_for_one_component_and_estimated_else():
    one = random_mixture(shape=(N,), components=1, dimensions=D)
    expected = [
        sum(
            oracles.full_kl(np.array([m]), np.array([[v]]))
            for m, v in zip(mean, np.exp(log_var), strict=True)
        )
        for mean, log_var in zip(
            np.float64(one.mean[:, 0]), np.float64(one.log_var[:, 0]), strict=True
        )
    ]
    np.testing.assert_allclose(
        losses.posterior_kl(one, draws(one)), expected, rtol=1e-5
    )
    _, q, z = random_terms()
    np.testing.assert_allclose(
        losses.posterior_kl(q, z),
        -oracles.mixture_elbo(np.zeros(z.shape[:3]), *parts(q), z),
        rtol=1e-5,
        atol=1e-5,
    )
    # A prior equal to the posterior: every draw gives 0.
    prior = jax.tree.map(lambda x: x[0], q)
    np.testing.assert_allclose(
        losses.posterior_kl(repeated(prior, N), z, prior), 0.0, atol=1e-5
    )


class LinearGaussian:
    """x = W z + 0.5 noise, z ~ N(0, I) in two dimensions, x in three: evidence and posterior are known; on a grid, so is all else."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.w, self.x = rng.normal(size=(3, 2)), rng.normal(size=3)
        covariance = self.w @ self.w.T + 0.25 * np.eye(3)
        self.evidence = stats.multivariate_normal(np.zeros(3), covariance).logpdf(
            self.x
        )
        axis = np.linspace(-9, 9, 1201)
        self.grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        self.cell = (axis[1] - axis[0]) ** 2

    def log_likelihood(self, z):
        """log p(x|z) of z [..., 2], float32."""
        error = jnp.asarray(self.x, z.dtype).reshape([1] * (z.ndim - 1) + [3])
        error = (error - z @ jnp.asarray(self.w.T, z.dtype)) / 0.5
        return -0.5 * jnp.sum(jnp.square(error), -1) - 3 * np.log(
            0.5 * np.sqrt(2 * np.pi)
        )

    def ratio(self, q):
        """p(x, z) / (q(z) p(x)) on the grid, float64."""
        z = self.grid
        log_joint = stats.norm.logpdf(z).sum(1) + stats.norm.logpdf(
            self.x - z @ self.w.T, scale=0.5
        ).sum(1)
        with np.errstate(over="ignore"):
            return np.exp(log_joint - self.evidence - self.log_density(q))

    def log_density(self, q):
        weights = oracles.softmax(q.logits)
        return np.logaddexp.reduce(
            [np.log(w) + self.component(q, k) for k, w in enumerate(weights)]
        )

    def component(self, q, k):
        return stats.norm.logpdf(
            self.grid, np.float64(q.mean[k]), np.exp(0.5 * np.float64(q.log_var[k]))
        ).sum(1)

    def expectations(self, q, values):
        """[K, ...] of functions on the grid under each component."""
        return [
            np.sum(np.exp(self.component(q, k)) * values) * self.cell
            for k in range(len(q.logits))
        ]


@pytest.fixture(scope="module")
def problem():
    return LinearGaussian()


@pytest.fixture(scope="module")
def wide():
    """A posterior of two components, wider than the truth, so that the ratio has all moments."""
    return GaussianMixture(
        np.array([0.0, 0.5], np.float32),
        np.array([[0.4, -0.3], [-0.2, 0.5]], np.float32),
        np.array([[0.1, 0.0], [-0.2, 0.3]], np.float32),
    )


def estimates(problem, q, bound, samples, count=20_000, seed=0):
    many = repeated(q, count)
    z = draws(many, samples, seed)
    return np.asarray(bound(problem.log_likelihood(z), many, z), np.float64)


def test_elbo_is_that_of_quadrature(problem, wide):
    ratio = problem.ratio(wide)
    gaps = problem.expectations(wide, np.log(ratio))
    truth = problem.evidence + oracles.softmax(wide.logits) @ gaps
    assert truth < problem.evidence - 0.1
    found = estimates(problem, wide, losses.mixture_elbo, samples=1)
    assert abs(found.mean() - truth) < 4 * found.std() / np.sqrt(found.size)


@pytest.mark.parametrize("samples", [4, 16])
def test_siwae_tightens_as_theory_says(problem, wide, samples):
    """Gap = V/2T - M/3T^2 + 3 V^2/4T^2 + O(T^-3): log(1 + d) expanded, V and M the second and third central moments.

    Of the next order E d^6/6 is 15 V^3/6T^3 for normal d; it is allowed twice.
    """
    ratio, weights = problem.ratio(wide), oracles.softmax(wide.logits)
    mean = problem.expectations(wide, ratio)
    assert weights @ mean == pytest.approx(1.0, abs=1e-6)
    second, third = (
        sum(
            w**power * problem.expectations(wide, (ratio - m) ** power)[k]
            for k, (w, m) in enumerate(zip(weights, mean, strict=True))
        )
        for power in (2, 3)
    )
    expected = second / (2 * samples)
    expected += (0.75 * second**2 - third / 3) / samples**2
    found = problem.evidence - estimates(problem, wide, losses.mixture_siwae, samples)
    error = 4 * found.std() / np.sqrt(found.size)
    assert abs(found.mean() - expected) < error + 5 * (second / samples) ** 3
    assert found.mean() > error  # below the evidence


@pytest.mark.slow
def test_every_bound_is_below_the_evidence_in_expectation_and_more_samples_tighten(
    problem,
):
    for seed in range(4):
        q = random_mixture(seed, shape=(), components=K, dimensions=2)
        elbo = estimates(problem, q, losses.mixture_elbo, 1, 4000, seed)
        means, errors = [elbo.mean()], [elbo.std() / np.sqrt(elbo.size)]
        for samples in (1, 8, 64):
            found = estimates(problem, q, losses.mixture_siwae, samples, 4000, seed)
            means.append(found.mean())
            errors.append(found.std() / np.sqrt(found.size))
        for (low, high), (a, b) in zip(
            itertools.pairwise(means),
            itertools.pairwise(errors),
            strict=True,
        ):
            assert low < high + 4 * np.hypot(a, b)
        assert means[-1] < problem.evidence + 4 * errors[-1]
        assert means[-1] > means[0] + 4 * errors[0]


def test_the_exact_posterior_has_no_gap():
    """W with orthogonal columns of length 2: posterior variances 1 / (1 + 4 / 0.25) = 1/17, mean 16/17 W^T x / 4."""
    problem = LinearGaussian()
    problem.w = 2 * np.linalg.qr(problem.w)[0]
    covariance = problem.w @ problem.w.T + 0.25 * np.eye(3)
    evidence = stats.multivariate_normal(np.zeros(3), covariance).logpdf(problem.x)
    mean = 16 / 17 * problem.w.T @ problem.x / 4
    q = GaussianMixture(
        np.zeros(2, np.float32),
        np.tile(mean, (2, 1)).astype(np.float32),
        np.full((2, 2), np.log(1 / 17), np.float32),
    )
    for bound in BOUNDS:
        found = estimates(problem, q, bound, samples=2, count=16)
        np.testing.assert_allclose(found, evidence, rtol=1e-4)
    found = importance_weighted_log_likelihood(
        jax.random.key(0), problem.log_likelihood, q, samples=3
    )
    np.testing.assert_allclose(found, evidence, rtol=1e-4)


def test_importance_sampling_finds_the_evidence(problem, wide):
    """Standard error sqrt(V / L), V the variance of the ratio under the mixture, by quadrature."""
    count, samples = 64, 2000
    ratio = problem.ratio(wide)
    variance = oracles.softmax(wide.logits) @ problem.expectations(
        wide, (ratio - 1) ** 2
    )
    found = jax.jit(
        lambda key, q: importance_weighted_log_likelihood(
            key, problem.log_likelihood, q, samples
        )
    )(jax.random.key(0), repeated(wide, count))
    error = np.asarray(found, np.float64) - problem.evidence
    standard = np.sqrt(variance / samples)
    assert abs(error.mean() + variance / (2 * samples)) < 4 * standard / np.sqrt(count)
    assert 0.6 * standard < error.std() < 1.5 * standard  # 64 values: 4 x 9%


def test_importance_sampling_takes_the_memory_of_one_sample(problem, wide):
    def temporary(samples):
        return (
            jax.jit(
                lambda key, q: importance_weighted_log_likelihood(
                    key, problem.log_likelihood, q, samples
                )
            )
            .lower(jax.random.key(0), repeated(wide, 8))
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporary(5000) == temporary(10)


def test_a_learned_prior_is_scored_by_its_own_density(problem, wide):
    """Against quadrature of the same model with a mixture for p(z)."""
    prior = random_mixture(7, shape=(), components=3, dimensions=2)
    likelihood = stats.norm.logpdf(
        problem.x - problem.grid @ problem.w.T, scale=0.5
    ).sum(1)
    evidence = np.log(
        np.sum(np.exp(likelihood + problem.log_density(prior))) * problem.cell
    )
    found = importance_weighted_log_likelihood(
        jax.random.key(0), problem.log_likelihood, repeated(wide, 16), 4000, prior
    )
    spread = np.std(found) / 4
    assert abs(np.mean(found) - evidence) < 4 * spread + 1e-3


@pytest.mark.slow
def test_the_example_in_docs():
    """docs/mixture.md: x ~ N(0, 2 I), so log p(x) is known."""
    text = (Path(__file__).parents[1] / "docs" / "mixture.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(code, names)
    truth = stats.norm.logpdf(names["x"], scale=np.sqrt(2)).sum(-1)
    assert np.all(names["elbo"] <= names["siwae"] + 1e-5)
    # 5,000 draws of a ratio with a deviation of some tenths
    np.testing.assert_allclose(names["evidence"], truth, atol=0.02)
    assert names["lower"] < names["upper"]


@pytest.mark.parametrize("log_var", [-30.0, 30.0])
@pytest.mark.parametrize("gap", [100.0, 1e4])
def test_finite_at_the_extremes(log_var, gap):
    """Values and gradients, with one component dead and a prior that is as extreme."""
    q = random_mixture(shape=(N,), components=K, dimensions=D)
    q = q.replace(
        logits=np.tile(np.float32([gap, 0.0]), (N, 1)),
        log_var=np.full_like(q.log_var, log_var),
    )
    prior = jax.tree.map(lambda x: x[0], q)
    values = total_at_extremes(q, prior, np.zeros((T, N, K), np.float32))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(values))


@jax.jit
def total_at_extremes(q, prior, log_likelihood):
    """Compiled once for all extremes."""

    def total(q, prior, log_likelihood):
        z = draws(q)
        importance = importance_weighted_log_likelihood(
            jax.random.key(0), lambda z: log_likelihood[0, :, 0], q, 2, prior
        )
        bounds = [
            bound(log_likelihood, q, z, p) for bound in BOUNDS for p in (None, prior)
        ]
        kl = losses.posterior_kl(q, z, prior)
        return jnp.sum(kl) + jnp.sum(importance) + sum(map(jnp.sum, bounds))

    return jax.value_and_grad(total, argnums=(0, 1, 2))(q, prior, log_likelihood)


# Two modes: x = |z| + noise


def fit_two_modes(components, x, noise=0.3):
    """ELBO of a posterior for each x, its parameters optimised by Adam on the stratified bound."""
    spread = np.linspace(-0.5, 0.5, components) if components > 1 else np.array([0.5])
    q = GaussianMixture(
        jnp.zeros((len(x), components)),
        jnp.tile(jnp.asarray(spread, jnp.float32).reshape(1, -1, 1), (len(x), 1, 1)),
        jnp.full((len(x), components, 1), -1.0),
    )

    def elbo(q, key, samples):
        z = q.stratified_sample(key, (samples,))
        log_likelihood = jax.scipy.stats.norm.logpdf(
            jnp.broadcast_to(x.reshape(1, -1, 1), z.shape[:3]),
            jnp.abs(z[..., 0]),
            noise,
        )
        return losses.mixture_elbo(log_likelihood, q, z)

    optimizer = optax.adam(0.02)

    def step(carry, key):
        q, state = carry
        gradient = jax.grad(lambda q: -jnp.mean(elbo(q, key, 16)))(q)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(q, updates), state), None

    keys = jax.random.split(jax.random.key(0), 600)
    (q, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (q, optimizer.init(q))
    )
    return q, np.asarray(elbo(q, jax.random.key(1), 20_000), np.float64)


@pytest.mark.slow
def test_two_components_find_both_modes_and_one_misses_one():
    x, noise = np.array([1.2, 1.6, 2.0], np.float32), 0.3
    grid = np.linspace(-8, 8, 16_001)
    density = stats.norm.pdf(grid) * stats.norm.pdf(
        x[:, None], np.abs(grid)[None], noise
    )
    evidence = np.log(density.sum(1) * (grid[1] - grid[0]))
    (one, elbo_one), (two, elbo_two) = (fit_two_modes(k, x) for k in (1, 2))
    assert np.all(elbo_one < evidence)
    # 20,000 draws of values that vary by some tenths: error below 0.01
    assert np.all(elbo_two < evidence + 0.01)
    assert np.all(elbo_two - elbo_one > 0.8 * np.log(2))
    assert np.all(one.mean > 0)  # where it began
    assert np.all(two.mean[:, 0] < -0.8)
    assert np.all(two.mean[:, 1] > 0.8)
