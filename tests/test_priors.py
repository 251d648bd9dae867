"""Learned priors of the autoencoder, behind the two calls of every mixture: log_prob and sample."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from test_models import KEY, noise, tiny
from test_steps import run, tiny_config

from gamix_jax.describe import parameter_table
from gamix_jax.mixture import GaussianMixture, standard_normal
from gamix_jax.state import create_state, make_models
from gamix_jax.steps import make_steps

C, K, D = 5, 2, 4


def initialized(prior, norm="group"):
    """The model, its variables after one training pass, and images."""
    model = tiny(
        image_size=8,
        channels=1,
        widths=(8,),
        components=K,
        prior=prior,
        prior_components=C,
        norm=norm,
    )
    images, keys = noise(3, 8, 8, 1), jax.random.split(KEY, 3)
    return model, jax.jit(model.init)(KEY, images, keys), images, keys


def test_standard_normal():
    """Against scipy; draws have its moments to four standard errors."""
    prior = standard_normal(D)
    z = np.random.default_rng(0).normal(size=(6, D)).astype(np.float32)
    np.testing.assert_allclose(
        prior.log_prob(z), stats.norm.logpdf(z).sum(1), rtol=1e-6
    )
    draws = np.asarray(prior.sample(KEY, (10_000,)), np.float64)
    assert draws.shape == (10_000, D)
    assert np.all(np.abs(draws.mean(0)) < 4 / 100)
    assert np.all(np.abs(draws.var(0) - 1) < 4 * np.sqrt(2) / 100)


def test_the_prior_is_normal_unless_said_otherwise():
    model, variables, images, keys = initialized("normal")
    assert model.apply(variables, images, keys).prior is None
    prior = model.apply(variables, method="latent_prior")
    chex.assert_trees_all_equal(prior, standard_normal(D))
    assert set(variables["params"]) == {"encoder", "decoder", "head"}


def test_mixture_prior_begins_with_the_moments_of_the_normal():
    """Means of variance 1/2 and components of variance 1/2."""
    model = tiny(
        image_size=8,
        channels=1,
        widths=(8,),
        latent_size=D,
        prior="mixture",
        prior_components=4000,
        components=1,
    )
    variables = model.init(KEY, method="latent_prior")
    mean, variance = model.apply(variables, method="latent_prior").moments()
    # 4000 means of variance 1/2: errors of sqrt(1/8000) and, of a variance, 1/2 sqrt(2/4000)
    np.testing.assert_allclose(mean, 0.0, atol=4 * np.sqrt(1 / 8000))
    np.testing.assert_allclose(variance, 1.0, atol=2 * np.sqrt(2 / 4000))


def test_vamp_prior_is_the_average_posterior_of_its_pseudo_inputs():
    """p(z) = (1/C) sum_c q(z|u_c) (Tomczak and Welling 2018, equation 10)."""
    model, variables, images, keys = initialized("vamp")
    prior = model.apply(variables, images, keys).prior
    chex.assert_shape(prior.logits, (C * K,))
    pseudo_inputs = variables["params"]["pseudo_inputs"]["images"]
    assert pseudo_inputs.shape == (C, 8, 8, 1)
    each = model.apply(variables, pseudo_inputs, method="encode")
    z = np.random.default_rng(0).normal(size=(6, D)).astype(np.float32)
    log_q = [jax.tree.map(lambda x: x[c], each).log_prob(z) for c in range(C)]
    expected = np.logaddexp.reduce(np.float64(log_q), axis=0) - np.log(C)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-5)
    chex.assert_shape(prior.sample(KEY, (7,)), (7, D))


def test_a_step_moves_the_prior_and_samples_are_drawn_from_it():
    config = tiny_config(
        model__prior="vamp",
        model__prior_components=3,
        objective__kl="elbo",
        adversarial__loss="none",
    )
    start, (state, _) = create_state(config), run(config)
    for params in ("generator_params", "ema_params"):
        before, after = (
            getattr(s, params)["pseudo_inputs"]["images"] for s in (start, state)
        )
        assert np.any(before != after)
    # Latent vectors of the averaged weights' own prior.
    keys = jax.random.split(KEY, 2)
    variables = {"params": state.ema_params}
    model, _ = make_models(config)

    @jax.jit
    def expected(variables, keys):
        prior = model.apply(variables, method="latent_prior")
        z = jnp.stack([prior.sample(key) for key in keys])
        return model.apply(variables, z, method="decode")

    np.testing.assert_allclose(
        jax.jit(make_steps(config).sample)(state, keys),
        expected(variables, keys),
        rtol=1e-4,
        atol=1e-5,
    )


def test_pseudo_inputs_leave_the_statistics_of_images_alone():
    """Their posteriors are made with statistics that may not change, those of evaluation."""
    model, variables, *_ = initialized("vamp", "batch")
    assert jax.tree.leaves(variables["batch_stats"])
    prior, updates = model.apply(
        variables, method="learned_prior", mutable=["batch_stats"]
    )
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    chex.assert_trees_all_equal(prior, model.apply(variables, method="learned_prior"))


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_gradients_reach_the_prior(prior):
    model, variables, images, keys = initialized(prior)

    def log_prob(params):
        coding = model.apply({"params": params}, images, keys)
        return jnp.sum(coding.prior.log_prob(coding.z))

    gradient = jax.jit(jax.grad(log_prob))(variables["params"])
    name = {"mixture": "mixture_prior", "vamp": "pseudo_inputs"}[prior]
    for leaf in jax.tree.leaves(gradient[name]):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


@pytest.mark.slow
def test_uniform_weights():
    model = tiny(image_size=8, channels=1, widths=(8,), components=3, weights="uniform")
    images, keys = noise(2, 8, 8, 1), jax.random.split(KEY, 2)
    coding, variables = model.init_with_output(KEY, images, keys)
    assert set(variables["params"]["head"]) == {"mean", "log_var"}
    posterior = coding.posterior
    assert isinstance(posterior, GaussianMixture)
    np.testing.assert_allclose(posterior.weights, 1 / 3, rtol=1e-6)


def test_describe_counts_the_prior():
    """3 pseudo-inputs of 8x8 pixels."""
    console = Console(record=True, width=100)
    console.print(
        parameter_table(
            tiny_config(
                model__prior="vamp", model__prior_components=3, objective__kl="elbo"
            )
        )
    )
    (row,) = [line for line in console.export_text().splitlines() if "vamp" in line]
    assert "192" in row
