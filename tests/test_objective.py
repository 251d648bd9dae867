"""Forms of the autoencoder's objective: how terms are put together, what the collapse target does, priors, chunks and memory in the step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_mixture import random_mixture
from test_models import tiny
from test_steps import BATCH, gradients, images, run, tiny_config

from gamix_jax import losses
from gamix_jax.cpu import compiler_options
from gamix_jax.mixture import (
    AggregateMoments,
    GaussianMixture,
    aggregate_moments,
)
from gamix_jax.models import Autoencoding
from gamix_jax.objective import autoencoder_objective
from gamix_jax.steps import AXIS, scale_images

T, K, D = 3, 2, 4


def objective(config, coding, memory=None, fit=None, step=0, replicas=4):
    """Loss, terms, moments and fit, the batch spread over vmapped replicas; the loss is their mean."""
    x = scale_images(images())
    zeros = jnp.zeros(D)
    full = config.objective.covariance == "full"
    memory = memory or AggregateMoments(
        zeros, zeros, zeros, jnp.diag(zeros) if full else None
    )

    def rows(tree, axis=0):
        return jax.tree.map(
            lambda x: x.reshape(*x.shape[:axis], replicas, -1, *x.shape[axis + 1 :]),
            tree,
        )

    spread = Autoencoding(
        rows(coding.posterior),
        coding.prior,
        rows(coding.z, axis=1),
        rows(coding.reconstruction, axis=1),
    )
    loss, (terms, *memories) = jax.jit(
        jax.vmap(
            lambda coding, x: autoencoder_objective(
                config, x, coding, memory, fit, step, AXIS
            ),
            in_axes=(Autoencoding(0, None, 1, 1), 0),
            axis_name=AXIS,
        )
    )(spread, rows(x))
    terms = jax.tree.map(jnp.mean, terms)
    return jnp.mean(loss), terms, *jax.tree.map(lambda leaf: leaf[0], memories)


def coding(components=K, samples=T, prior=None):
    q = random_mixture(shape=(BATCH,), components=components, dimensions=D)
    z = q.stratified_sample(jax.random.key(0), (samples,))
    rng = np.random.default_rng(1)
    reconstruction = rng.uniform(-1, 1, (samples, BATCH, components, 8, 8, 1))
    return Autoencoding(q, prior, z, reconstruction.astype(np.float32))


def errors_of(code):
    """Mean absolute errors [T, B, K], float64."""
    x = np.float64(scale_images(images()))[None, :, None]
    return np.abs(x - code.reconstruction).mean((3, 4, 5))


def test_elbo_objective():
    """3 sum pi error + 0.7 KL + 0.1 collapse - 0.2 entropy, each by its own oracle-tested loss."""
    code = coding()
    config = tiny_config(
        objective__kl="elbo",
        objective__kl_weight=0.7,
        objective__samples=T,
        objective__component_entropy_weight=0.2,
    )
    loss, terms, *_ = objective(config, code)
    q = code.posterior
    error = np.mean(np.sum(np.asarray(q.weights)[None] * errors_of(code), 2))
    kl = jnp.mean(losses.posterior_kl(q, code.z))
    expected = 3.0 * error + 0.7 * kl + 0.1 * jnp.mean(losses.collapse_penalty(q))
    expected -= 0.2 * jnp.mean(losses.component_entropy(q))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert "siwae" not in terms


def test_siwae_objective():
    code = coding()
    fields = {"objective__kl_weight": 0.7, "objective__samples": T}
    loss, terms, *_ = objective(tiny_config(objective__kl="siwae", **fields), code)
    siwae = losses.mixture_siwae(
        -3.0 / 0.7 * errors_of(code).astype(np.float32), code.posterior, code.z
    )
    collapse = 0.1 * jnp.mean(losses.collapse_penalty(code.posterior))
    np.testing.assert_allclose(loss, -0.7 * jnp.mean(siwae) + collapse, rtol=1e-5)
    elbo, elbo_terms, *_ = objective(tiny_config(objective__kl="elbo", **fields), code)
    assert loss < elbo  # a tighter bound on the same draws
    np.testing.assert_allclose(terms["kl"], elbo_terms["kl"])


@pytest.mark.parametrize("form", ["elbo", "siwae"])
def test_warm_up(form):
    """At step 3 of a warm-up of 8, before its update, half the KL weight; from step 7 on all of it."""
    code = coding()
    fields = {"objective__kl": form, "objective__samples": T}
    warm = tiny_config(**fields, objective__kl_weight=0.7, objective__kl_warmup=8)
    for step, weight in ((3, 0.35), (7, 0.7), (100, 0.7)):
        plain = tiny_config(**fields, objective__kl_weight=weight)
        np.testing.assert_allclose(
            objective(warm, code, step=step)[0], objective(plain, code)[0], rtol=1e-6
        )


def test_one_draw_of_one_component_has_the_kl_in_closed_form():
    code = coding(components=1, samples=1)
    _, terms, *_ = objective(tiny_config(objective__kl="elbo"), code)
    expected = jnp.mean(losses.gaussian_kl(code.posterior.mean, code.posterior.log_var))
    np.testing.assert_allclose(terms["kl"], expected, rtol=1e-5)


def test_learned_priors_replace_the_normal_one():
    code = coding(prior=random_mixture(5, shape=(), components=3, dimensions=D))
    config = tiny_config(
        objective__kl="elbo", model__prior="mixture", objective__samples=T
    )
    _, terms, *_ = objective(config, code)
    expected = jnp.mean(losses.posterior_kl(code.posterior, code.z, code.prior))
    np.testing.assert_allclose(terms["kl"], expected, rtol=1e-5)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_aggregate_objective_with_memory(covariance):
    code = coding(samples=1)
    full = covariance == "full"
    memory = aggregate_moments(random_mixture(9, dimensions=D), covariance=full)
    config = tiny_config(objective__covariance=covariance, objective__moment_decay=0.9)
    _, terms, moments, _ = objective(config, code, memory, step=100)
    batch = aggregate_moments(code.posterior, covariance=full)
    expected = memory.pool(batch, 0.1)
    chex.assert_trees_all_close(moments, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        terms["kl"], losses.aggregate_kl(expected, covariance=covariance), rtol=1e-5
    )


def test_a_run_that_had_another_objective_begins_its_memory():
    """At step 1,000 an average with the zeros that it carried would be almost nothing but them."""
    code = coding()
    elbo = tiny_config(objective__kl="elbo")
    _, _, carried, _ = objective(elbo, code, step=999)
    config = tiny_config(objective__moment_decay=0.99)
    _, _, moments, _ = objective(config, code, carried, step=1000)
    expected = aggregate_moments(code.posterior)
    chex.assert_trees_all_close(moments, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["aggregate", "elbo", "siwae"])
def test_a_dead_component_does_not_spoil_the_gradient(form):
    """Logits 200 apart: a weight of 0 in float32."""
    code = coding()
    logits = jnp.tile(jnp.array([200.0, 0.0]), (BATCH, 1))
    code = code._replace(posterior=code.posterior.replace(logits=logits))
    config = tiny_config(objective__kl=form, objective__samples=T)
    gradient = jax.grad(lambda code: objective(config, code)[0])(code)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_units_whose_components_alone_spread_are_not_active():
    """Means of +-1 in every image: between is 1, yet the posteriors tell nothing."""
    mean = jnp.stack([jnp.ones((BATCH, D)), -jnp.ones((BATCH, D))], axis=1)
    mean = mean.at[:, :, 0].add(jnp.arange(BATCH).reshape(-1, 1))  # one unit tells
    q = GaussianMixture(jnp.zeros((BATCH, 2)), mean, jnp.zeros(mean.shape))
    code = coding(samples=1)._replace(posterior=q)
    _, terms, *_ = objective(tiny_config(), code)
    assert terms["active_units"] == 1


# What the target of the collapse penalty does (docstring of collapse_penalty)


@pytest.mark.parametrize("variance", ["total", "between"])
@pytest.mark.parametrize("target", [0.1, 0.5, 1.0, 2.0])
def test_optimum_of_the_collapse_target(target, variance):
    """Free means and variances of 32 images, descended by Adam to where the two terms are least."""
    kl_weight, collapse_weight = 1.0, 0.3
    rng = np.random.default_rng(0)
    params = {
        "mean": jnp.asarray(rng.normal(size=(32, 1, 2)), jnp.float32),
        "log_var": jnp.asarray(rng.normal(size=(32, 1, 2)), jnp.float32),
    }

    def loss(params):
        q = GaussianMixture(jnp.zeros((32, 1)), **params)
        kl = losses.aggregate_kl(aggregate_moments(q), variance)
        collapse = jnp.mean(losses.collapse_penalty(q, target))
        return kl_weight * kl + collapse_weight * collapse

    # The step shrinks, so that Adam settles.
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, length=3000)
    )((params, optimizer.init(params)))
    moments = aggregate_moments(GaussianMixture(jnp.zeros((32, 1)), **params))
    if variance == "between":
        within, between = target, 1.0
    elif target <= 1:
        within, between = target, 1.0 - target
    else:
        half = kl_weight / 2
        within = (half + collapse_weight) / (half + collapse_weight / target)
        between = 0.0
    np.testing.assert_allclose(moments.within, within, rtol=2e-3)
    np.testing.assert_allclose(moments.between, between, atol=2e-3)
    if variance == "total" and target <= 1:
        np.testing.assert_allclose(loss(params), 0.0, atol=1e-4)


# In the step


def trained(**overrides):
    state, metrics = run(tiny_config(adversarial__loss="none", **overrides), steps=2)
    assert all(np.isfinite(x) for x in metrics.values())
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "affine"])
def test_chunks_do_not_change_a_step(norm):
    fields = {
        "objective__kl": "siwae",
        "objective__samples": 2,
        "model__norm": norm,
    }
    config = tiny_config(adversarial__loss="none", **fields)
    chunked = tiny_config(
        adversarial__loss="none", **fields, objective__component_chunk=1
    )
    (whole, whole_metrics), (chunks, metrics) = run(config), run(chunked)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        *(gradients(state, "generator") for state in (chunks, whole)),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.slow
def test_chunks_save_memory():
    """Of 8 components one at a time: less than half of the gradient's temporary arrays."""
    model = tiny(image_size=32, channels=1, widths=(16, 16), components=8)
    x, keys = jnp.zeros((8, 32, 32, 1)), jax.random.split(jax.random.key(0), 8)
    variables = jax.eval_shape(model.init, keys[0], x, keys)

    def temporary(chunk):
        loss = lambda v: jnp.sum(model.apply(v, x, keys, chunk=chunk).reconstruction)
        # Else XLA on CPU merges what is computed again.
        options = compiler_options()
        compiled = jax.jit(jax.grad(loss)).lower(variables).compile(options)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1) < temporary(0) / 2


@pytest.mark.slow
def test_memory_in_the_step():
    """After two steps the memory is the mean of both batches' moments, the plain average of the beginning."""
    alone, _ = trained(objective__kl_weight=0.0, objective__covariance="full")
    remembered, _ = trained(
        objective__kl_weight=0.0,
        objective__covariance="full",
        objective__moment_decay=0.9,
    )
    first, _ = run(
        tiny_config(
            adversarial__loss="none",
            objective__kl_weight=0.0,
            objective__covariance="full",
        ),
        steps=1,
    )
    # Without weight on the KL both take the same steps.
    expected = first.moments.pool(alone.moments, 0.5)
    chex.assert_trees_all_close(remembered.moments, expected, rtol=1e-4, atol=1e-6)
