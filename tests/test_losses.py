"""Every loss against a float64 oracle, in value and gradient; the facts that the objective rests on; devices; extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from scipy import special, stats
from test_mixture import parts, random_mixture

from gamix_jax import losses
from gamix_jax.mixture import (
    AggregateMoments,
    GaussianMixture,
    aggregate_moments,
    components_used,
)

N, K, D = 16, 3, 4
RTOL = 1e-5  # float32 sums of some tens of terms


def logits_pair(seed=0, scale=2.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(
        rng.normal(scale=scale, size=(N, 2, 2, 1)).astype(dtype) for _ in range(2)
    )


def stratified(q, seed=0):
    """z [1, N, K, D]."""
    return np.asarray(q.stratified_sample(jax.random.key(seed), (1,)))


# Values


def test_absolute_error():
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 5, 4, 4, 3)).astype(np.float32)
    expected = np.abs(np.float64(x) - y).reshape(5, -1).mean(1)
    np.testing.assert_allclose(
        jax.jit(losses.absolute_error)(x, y), expected, rtol=RTOL
    )


@pytest.mark.parametrize("variance", ["total", "between"])
def test_aggregate_kl(variance):
    q = random_mixture()
    m, within, between = oracles.aggregate_moments(*parts(q))
    expected = oracles.aggregate_kl(
        m, within + between if variance == "total" else between
    )
    ours = jax.jit(lambda q: losses.aggregate_kl(aggregate_moments(q), variance))(q)
    np.testing.assert_allclose(ours, expected, rtol=RTOL)


@pytest.mark.parametrize("target", [1.0, 0.1, 3.0])
def test_collapse_penalty(target):
    q = random_mixture()
    ours = jax.jit(lambda q: losses.collapse_penalty(q, target))(q)
    np.testing.assert_allclose(
        ours, oracles.collapse_penalty(q.logits, q.log_var, target), rtol=RTOL
    )
    at_target = losses.collapse_penalty(
        q.replace(log_var=np.full_like(q.log_var, np.log(target))), target
    )
    np.testing.assert_allclose(at_target, 0.0, atol=1e-6)


@pytest.mark.parametrize("kinds", [1, 2], ids=["as-many-fakes", "twice-as-many"])
def test_adversarial_losses(kinds):
    real, fake = logits_pair()
    fake = np.concatenate([fake * kind for kind in range(1, kinds + 1)])
    np.testing.assert_allclose(
        losses.hinge_discriminator_loss(real, fake),
        oracles.hinge_discriminator_loss(real, fake),
        rtol=RTOL,
    )
    np.testing.assert_allclose(
        losses.bce_discriminator_loss(real, fake),
        oracles.bce_discriminator_loss(real, fake),
        rtol=RTOL,
    )
    np.testing.assert_allclose(
        losses.hinge_generator_loss(fake), -np.mean(np.float64(fake)), rtol=RTOL
    )
    expected = -np.mean(stats.logistic.logcdf(np.float64(fake)))
    np.testing.assert_allclose(losses.bce_generator_loss(fake), expected, rtol=RTOL)


def test_hinge_by_hand():
    """relu(1 - 2) = 0 and relu(1 + 0.5) = 1.5 on real; relu(1 - 3) = 0 and relu(1 + 1) = 2 on fake: 0.75 + 1."""
    loss = losses.hinge_discriminator_loss(
        np.array([2.0, -0.5], np.float32), np.array([-3.0, 1.0], np.float32)
    )
    assert float(loss) == 1.75


# Gradients


def test_gradients_match_differences_of_the_oracles(x64):
    q = random_mixture(shape=(3,), components=2, dimensions=2, dtype=np.float64)
    kl = lambda variance: lambda l, m, s: _oracle_kl(l, m, s, variance)
    cases = {
        "total": (lambda q: losses.aggregate_kl(aggregate_moments(q)), kl("total")),
        "between": (
            lambda q: losses.aggregate_kl(aggregate_moments(q), "between"),
            kl("between"),
        ),
        "collapse": (
            lambda q: losses.collapse_penalty(q, 0.5).sum(),
            lambda l, m, s: oracles.collapse_penalty(l, s, 0.5).sum(),
        ),
    }
    for name, (ours, oracle) in cases.items():
        gradient = jax.grad(ours)(q)
        for i, (field, value) in enumerate(zip(parts(gradient), parts(q), strict=True)):
            function = lambda x: oracle(
                *(x if j == i else p for j, p in enumerate(parts(q)))
            )
            np.testing.assert_allclose(
                field,
                oracles.gradient(function, value),
                atol=1e-7,
                err_msg=f"{name} {i}",
            )


def _oracle_kl(logits, mean, log_var, variance):
    m, within, between = oracles.aggregate_moments(logits, mean, log_var)
    return oracles.aggregate_kl(m, within + between if variance == "total" else between)


def test_check_grads(x64):
    q = random_mixture(shape=(2,), components=2, dimensions=2, dtype=np.float64)
    real, fake = logits_pair(dtype=np.float64)
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3))

    @jax.jit
    def smooth(q, real, fake):
        moments = aggregate_moments(q, covariance=True)
        return (
            losses.aggregate_kl(moments),
            losses.aggregate_kl(moments, "between"),
            losses.aggregate_kl(moments, covariance="full"),
            losses.collapse_penalty(q),
            losses.gaussian_kl(q.mean, q.log_var),
            losses.component_entropy(q),
            components_used(q),
            losses.bce_discriminator_loss(real, fake),
            losses.bce_generator_loss(fake),
            losses.hinge_generator_loss(fake),
        )

    check_grads(smooth, (q, real, fake), order=2)
    check_grads(lambda y: losses.component_errors(x, y[None, :, None]), (y,), order=1)
    check_grads(losses.hinge_discriminator_loss, (real, fake), order=1)


# Facts (DESIGN.md, section 1)


def true_kl(weights, mean, variance):
    """KL(q || N(0, 1)) of a mixture in one dimension, by quadrature."""
    x = np.linspace(-30, 30, 600_001)
    q = sum(
        w * stats.norm.pdf(x, m, np.sqrt(v))
        for w, m, v in zip(weights, mean, variance, strict=True)
    )
    return np.sum(special.rel_entr(q, np.exp(stats.norm.logpdf(x)))) * (x[1] - x[0])


@pytest.mark.parametrize("seed", range(20))
def test_total_aggregate_kl_is_below_and_mean_kl_above_the_true_kl(seed):
    rng = np.random.default_rng(seed)
    q = random_mixture(seed, shape=(int(rng.integers(2, 20)),), dimensions=1)
    lower = float(losses.aggregate_kl(aggregate_moments(q)))
    weights = oracles.softmax(q.logits)
    flat = lambda x: np.float64(x).reshape(-1)
    truth = true_kl(flat(weights) / len(weights), flat(q.mean), flat(np.exp(q.log_var)))
    upper = np.mean(
        [
            true_kl(w, m[:, 0], np.exp(s[:, 0]))
            for w, m, s in zip(weights, q.mean, q.log_var, strict=True)
        ]
    )
    assert lower <= truth + 1e-5
    assert truth <= upper + 1e-5


def test_total_aggregate_kl_is_exact_for_one_gaussian():
    """A batch of one image and one component: the per-image KL divergence of the standard VAE."""
    q = random_mixture(shape=(1,), components=1)
    mean, log_var = np.float64(q.mean[0, 0]), np.float64(q.log_var[0, 0])
    expected = 0.5 * np.sum(mean**2 + np.exp(log_var) - 1 - log_var)
    np.testing.assert_allclose(
        losses.aggregate_kl(aggregate_moments(q)), expected, rtol=RTOL
    )


def test_between_bounds_nothing():
    """The author's form at its own optimum: means of variance 1 and components of variance 1, so q(z) has variance 2."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(64, 1, 1))
    mean = (mean - mean.mean()) / mean.std()
    q = GaussianMixture(np.zeros((64, 1)), mean, np.zeros((64, 1, 1)))
    between = float(losses.aggregate_kl(aggregate_moments(q), "between"))
    assert between == pytest.approx(0.0, abs=1e-6)
    truth = true_kl(np.full(64, 1 / 64), mean.reshape(-1), np.ones(64))
    assert truth > 0.1  # KL(N(0, 2) || N(0, 1)) = (2 - 1 - log 2) / 2 = 0.153
    total = float(losses.aggregate_kl(aggregate_moments(q)))
    assert total == pytest.approx((1 - np.log(2)) / 2, rel=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(10, 0.110), (128, 0.0079)])
def test_bias_of_between_in_small_batches(count, expected):
    """E of "between" KL over batches of N draws from N(0, 1): -[psi((N-1)/2) + log(2/N)] / 2 a dimension (DESIGN 1)."""
    formula = -0.5 * (special.digamma((count - 1) / 2) + np.log(2 / count))
    assert formula == pytest.approx(expected, abs=6e-4)
    batches = 20_000
    mean = jax.random.normal(jax.random.key(0), (batches, count, 1, 1))
    q = GaussianMixture(
        jnp.zeros((batches, count, 1)), mean, jnp.zeros((batches, count, 1, 1))
    )
    found = np.asarray(
        jax.vmap(lambda q: losses.aggregate_kl(aggregate_moments(q), "between"))(q),
        np.float64,
    )
    assert abs(found.mean() - formula) < 4 * found.std() / np.sqrt(batches)


def test_one_component_is_the_author_s_objective():
    """5000 MAE + KL_agg("between") + 0.1 collapse written out for K = 1 in float64."""
    q = random_mixture(components=1)
    mean, log_var = np.float64(q.mean[:, 0]), np.float64(q.log_var[:, 0])
    m, v = mean.mean(0), mean.var(0)
    kl = 0.5 * np.sum(m**2 + v - 1 - np.log(v))
    collapse = np.mean(np.sum(np.exp(log_var) - 1 - log_var, axis=1))
    np.testing.assert_allclose(
        losses.aggregate_kl(aggregate_moments(q), "between"), kl, rtol=RTOL
    )
    np.testing.assert_allclose(
        jnp.mean(losses.collapse_penalty(q)), collapse, rtol=RTOL
    )


# Devices


def test_the_same_number_under_jit_pmap_and_undivided():
    q, (real, fake) = random_mixture(), logits_pair()
    images, reconstruction = (
        np.random.default_rng(0).uniform(-1, 1, (2, N, 4, 4, 1)).astype(np.float32)
    )
    z = stratified(q)[0]  # images first, to be split
    log_likelihood = np.random.default_rng(3).normal(size=(N, K)).astype(np.float32)

    def all_losses(batch, axis_name=None):
        images, reconstruction, q, z, log_likelihood, real, fake = batch
        moments = aggregate_moments(q, axis_name)
        means = {
            "absolute_error": jnp.mean(losses.absolute_error(images, reconstruction)),
            "collapse": jnp.mean(losses.collapse_penalty(q)),
            "elbo": jnp.mean(losses.mixture_elbo(log_likelihood[None], q, z[None])),
            "hinge_d": losses.hinge_discriminator_loss(real, fake),
            "hinge_g": losses.hinge_generator_loss(fake),
            "bce_d": losses.bce_discriminator_loss(real, fake),
            "bce_g": losses.bce_generator_loss(fake),
        }
        if axis_name:
            means = jax.lax.pmean(means, axis_name)
        return means | {
            v: losses.aggregate_kl(moments, v) for v in ("total", "between")
        }

    batch = (images, reconstruction, q, z, log_likelihood, real, fake)
    whole = all_losses(batch)
    split = jax.tree.map(lambda x: x.reshape(8, N // 8, *x.shape[1:]), batch)
    mapped = jax.pmap(
        lambda b: all_losses(b, "batch"), axis_name="batch", out_axes=None
    )(split)
    jitted = jax.jit(all_losses)(batch)
    for name, value in whole.items():
        np.testing.assert_allclose(jitted[name], value, rtol=RTOL, err_msg=name)
        np.testing.assert_allclose(mapped[name], value, rtol=RTOL, err_msg=name)


def test_gradient_of_the_aggregate_under_pmap_is_that_of_the_undivided_batch():
    q = random_mixture()
    shift = jnp.zeros(D)
    split = jax.tree.map(lambda x: x.reshape(8, N // 8, *x.shape[1:]), q)

    def loss(shift, q, axis_name=None):
        return losses.aggregate_kl(
            aggregate_moments(
                q.replace(mean=q.mean + shift.reshape(1, 1, D)), axis_name
            )
        )

    mapped = jax.pmap(
        lambda shift, q: jax.lax.pmean(jax.grad(loss)(shift, q, "batch"), "batch"),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
    )(shift, split)
    np.testing.assert_allclose(mapped, jax.grad(loss)(shift, q), rtol=RTOL, atol=1e-6)


# Extremes and mistakes


@pytest.mark.parametrize("log_var", [-30.0, 30.0])
@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_finite_at_the_extremes(log_var, logit):
    q = random_mixture()
    q = q.replace(
        log_var=np.full_like(q.log_var, log_var),
        logits=jnp.asarray(q.logits).at[:, 0].set(logit),
    )
    real = jnp.full((N, 2, 2, 1), logit)

    def total(q, real):
        z = q.stratified_sample(jax.random.key(0), (1,))
        kls = [
            losses.aggregate_kl(aggregate_moments(q), v) for v in ("total", "between")
        ]
        adversarial = [
            loss(real, sign * real)
            for loss in (losses.bce_discriminator_loss, losses.hinge_discriminator_loss)
            for sign in (1, -1)
        ] + [losses.bce_generator_loss(real), losses.hinge_generator_loss(real)]
        images = [
            jnp.sum(losses.collapse_penalty(q)),
            jnp.sum(losses.mixture_elbo(jnp.zeros((1, N, K)), q, z)),
        ]
        return sum(kls + adversarial + images)

    assert all(
        np.all(np.isfinite(x))
        for x in jax.tree.leaves(jax.value_and_grad(total, argnums=(0, 1))(q, real))
    )


def test_between_is_finite_where_the_means_coincide():
    moments = AggregateMoments(jnp.zeros(D), jnp.ones(D), jnp.zeros(D))
    value, gradient = jax.value_and_grad(lambda m: losses.aggregate_kl(m, "between"))(
        moments
    )
    assert np.isfinite(value)
    assert value > 100  # a collapsed dimension costs dearly
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_bfloat16_is_computed_in_float32():
    q = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_mixture())
    real, fake = (jnp.asarray(x, jnp.bfloat16) for x in logits_pair())
    values = [
        losses.absolute_error(real, fake),
        losses.collapse_penalty(q),
        losses.aggregate_kl(aggregate_moments(q)),
        losses.mixture_elbo(jnp.zeros((1, N, K), jnp.bfloat16), q, q.mean[None]),
        losses.hinge_discriminator_loss(real, fake),
        losses.hinge_generator_loss(fake),
        losses.bce_discriminator_loss(real, fake),
        losses.bce_generator_loss(fake),
    ]
    assert {x.dtype for x in values} == {jnp.dtype("float32")}


def test_wrong_shapes_are_named():
    q = random_mixture()
    with pytest.raises(AssertionError, match=r"\(2, 4, 4, 1\).*\(2, 4, 4, 3\)"):
        losses.absolute_error(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 3)))
    with pytest.raises(AssertionError, match=r"\(16, 1, 4\).*\(16, 3, 4\)"):
        losses.mixture_elbo(np.zeros((1, N, K)), q, np.zeros((1, N, 1, D)))
    with pytest.raises(AssertionError, match=r"\(16, 3\).*\(1, 16, 3\)"):
        losses.mixture_elbo(np.zeros((N, K)), q, np.zeros((1, N, K, D)))
    with pytest.raises(AssertionError, match="rank"):  # a prior for each image
        losses.mixture_elbo(np.zeros((1, N, K)), q, np.zeros((1, N, K, D)), q)
    with pytest.raises(AssertionError, match=r"\(2, 2, 1\).*\(4, 4, 1\)"):
        losses.hinge_discriminator_loss(np.zeros((N, 2, 2, 1)), np.zeros((N, 4, 4, 1)))
    with pytest.raises(AssertionError, match=r"\(2, 2, 1\).*\(2, 1\)"):  # no batch
        losses.hinge_discriminator_loss(np.zeros((N, 2, 2, 1)), np.zeros((2, 2, 1)))
    with pytest.raises(AssertionError, match=r"\(2, 2, 1\).*\(4, 4, 1\)"):
        losses.bce_discriminator_loss(np.zeros((N, 2, 2, 1)), np.zeros((N, 4, 4, 1)))
    with pytest.raises(
        AssertionError, match=r"\(16, 3\).*\(16, 2\)|\(16, 2\).*\(16, 3\)"
    ):
        losses.collapse_penalty(q.replace(logits=np.zeros((N, 2))))
    with pytest.raises(AssertionError, match=r"\(4,\).*\(5,\)"):
        losses.aggregate_kl(AggregateMoments(jnp.ones(4), jnp.ones(5), jnp.ones(4)))
    with pytest.raises(ValueError, match="within"):
        losses.aggregate_kl(aggregate_moments(q), "within")
