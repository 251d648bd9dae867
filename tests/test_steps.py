"""The whole step: on one and on eight devices, against the objective written plainly, and each rule that it keeps."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from gamix_jax import losses
from gamix_jax.bounds import aggregate_kl_bounds, mutual_information_bounds
from gamix_jax.config import default_config
from gamix_jax.describe import abstract_step, equations
from gamix_jax.mixture import aggregate_moments, standard_normal
from gamix_jax.parallel import map_over_devices
from gamix_jax.state import create_state, make_models
from gamix_jax.steps import AXIS, make_steps, scale_images
from gamix_jax.validate import validate

BATCH = 16


def tiny_config(**overrides):
    """8x8 grey images, one stage of 8 channels, K = 2; weights near 1, so that rounding noise stays below Adam's epsilon."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.widths": (8,),
            "model.encoder_blocks": 0,
            "model.decoder_blocks": 0,
            "model.bottleneck": 4,
            "model.latent_size": 4,
            "model.components": 2,
            "model.norm": "group",
            "discriminator.widths": (8,),
            "discriminator.strides": (2,),
            "discriminator.norm": "group",
            "objective.reconstruction_weight": 3.0,
            "adversarial.weight": 0.5,
            "train.batch_size": BATCH,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )
    return config


def images(count=BATCH, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (count, 8, 8, 1), dtype=np.uint8
    )


@functools.cache
def compiled(config_json, devices):
    """The first state and the mapped step; compiled once for all tests that use it."""
    config = default_config().unlock()
    config.update(json.loads(config_json))
    config.model.widths = tuple(config.model.widths)
    step = make_steps(config).train_step
    if devices == jax.device_count():
        return create_state(config), map_over_devices(step)
    subset = jax.devices()[:devices]
    return create_state(config), jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=subset
    )


def run(config, steps=1, devices=1):
    """State and metrics after the last step."""
    state, step = compiled(config.to_json(), devices)
    for i in range(steps):
        batch = images(seed=i)
        state, metrics = step(state, batch.reshape(devices, -1, *batch.shape[1:]))
        state = jax.device_get(state)  # the same placement for every call: one program
    return state, metrics


def gradients(state, player):
    """Adam's first moment after one step is (1 - beta1) times the gradient."""
    return jax.tree.map(lambda mu: mu / 0.5, first_moments(state, player))


def first_moments(state, player):
    """Adam's, which has all parameters as one vector, by parameter."""
    (adam, _) = getattr(state, f"{player}_opt_state")
    return ravel_pytree(getattr(state, f"{player}_params"))[1](adam.mu)


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "model__norm": "batch",
            "discriminator__norm": "batch",
            "model__encoder_blocks": 1,
            "model__decoder_blocks": 1,
        },
        {
            "objective__kl": "elbo",
            "adversarial__loss": "bce",
            "adversarial__prior_samples": True,
        },
    ],
    ids=["aggregate-hinge-batch", "elbo-bce-group-samples"],
)
def test_one_and_eight_devices_take_the_same_step(overrides):
    config = tiny_config(**overrides)
    (one, one_metrics), (eight, eight_metrics) = (
        run(config, steps=2, devices=n) for n in (1, 8)
    )
    for player in ("generator", "discriminator"):
        assert_same_adam_steps(one, eight, player, steps=2)
    chex.assert_trees_all_close(one_metrics, eight_metrics, rtol=1e-4, atol=1e-5)
    # The first step's statistics: later ones follow those biases.
    (one, _), (eight, _) = (run(config, devices=n) for n in (1, 8))
    for name in ("generator_batch_stats", "discriminator_batch_stats"):
        chex.assert_trees_all_close(
            getattr(one, name), getattr(eight, name), rtol=1e-5, atol=1e-6
        )


def assert_same_adam_steps(one, other, player, steps):
    """Parameters agree as far as Adam lets them.

    Float32 sums in another order differ by e = 1e-6 of the largest gradient. Adam
    divides by the gradient's size, so a parameter of gradient g may move apart by
    learning rate * e / (|g| + 1e-7) a step; only where g is nothing but rounding (a
    bias that batch normalisation takes out again) is that a good part of the step.
    """
    first = [jax.tree.leaves(first_moments(x, player)) for x in (one, other)]
    largest = max(np.max(np.abs(mu)) for mu in first[0])
    for a, b in zip(*first, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)
    params = [jax.tree.leaves(getattr(x, f"{player}_params")) for x in (one, other)]
    sharp = 0
    for mu, a, b in zip(first[0], *params, strict=True):
        apart = steps * 1e-4 * np.minimum(2.0, 1e-6 * largest / (np.abs(mu) + 1e-7))
        assert np.all(np.abs(a - b) <= apart + 1e-6 * np.abs(a) + 1e-8)
        sharp += np.sum(apart < 2e-6)
    assert sharp > 0.8 * sum(a.size for a in params[0])  # 1% of two steps of 1e-4


@pytest.mark.parametrize(
    ("loss", "prior_samples", "norm"),
    [
        ("hinge", False, "group"),
        ("bce", False, "group"),
        ("hinge", True, "group"),
        ("hinge", True, "affine"),
    ],
)
def test_gradients_are_those_of_the_objective_written_plainly(
    loss, prior_samples, norm
):
    """Without mapping, vjp or shared forward: two losses, two calls of jax.grad. An adversarial term without gradient shows."""
    config = tiny_config(
        adversarial__loss=loss,
        adversarial__prior_samples=prior_samples,
        model__norm=norm,
    )
    state, metrics = run(config)
    first = create_state(config)
    autoencoder, discriminator = make_models(config)

    def variables(params):
        return {"params": params, "batch_stats": first.generator_batch_stats}

    x = scale_images(images())
    key = jax.random.fold_in(first.key, 0)
    keys = jnp.stack(
        [jax.random.split(jax.random.fold_in(key, i), 3) for i in range(BATCH)]
    )

    def fakes(params):
        posterior, _, _, reconstruction = autoencoder.apply(
            variables(params), x, keys[:, 0]
        )
        component = jnp.stack(
            [
                jax.random.categorical(keys[i, 1], posterior.log_weights[i])
                for i in range(BATCH)
            ]
        )
        fake = [reconstruction[0, i, component[i]] for i in range(BATCH)]
        if prior_samples:
            z = [standard_normal(4).sample(key) for key in keys[:, 2]]
            fake += list(
                autoencoder.apply(variables(params), jnp.stack(z), method="decode")
            )
        return posterior, reconstruction, jnp.stack(fake)

    def generator_loss(params):
        posterior, reconstruction, fake = fakes(params)
        logits = discriminator.apply({"params": first.discriminator_params}, fake)
        adversarial = {
            "hinge": losses.hinge_generator_loss,
            "bce": losses.bce_generator_loss,
        }[loss](logits)
        return (
            3.0
            * jnp.mean(
                jnp.sum(
                    posterior.weights * losses.component_errors(x, reconstruction)[0],
                    axis=1,
                )
            )
            + losses.aggregate_kl(aggregate_moments(posterior))
            + 0.1 * jnp.mean(losses.collapse_penalty(posterior))
            + 0.5 * adversarial
        )

    def discriminator_loss(params):
        fake = fakes(first.generator_params)[2]
        real_logits, fake_logits = (
            discriminator.apply({"params": params}, images) for images in (x, fake)
        )
        form = {
            "hinge": losses.hinge_discriminator_loss,
            "bce": losses.bce_discriminator_loss,
        }[loss]
        return form(real_logits, fake_logits)

    for player, function in (
        ("generator", generator_loss),
        ("discriminator", discriminator_loss),
    ):
        value, gradient = jax.jit(jax.value_and_grad(function))(
            getattr(first, f"{player}_params")
        )
        np.testing.assert_allclose(metrics[f"{player}_loss"], value, rtol=1e-5)
        chex.assert_trees_all_close(
            gradients(state, player), gradient, rtol=1e-3, atol=1e-5
        )
        norm = np.sqrt(
            sum(
                np.sum(np.square(g, dtype=np.float64))
                for g in jax.tree.leaves(gradient)
            )
        )
        np.testing.assert_allclose(metrics[f"{player}_gradient_norm"], norm, rtol=1e-4)


def test_prior_samples_leave_a_learned_prior_alone():
    changes = {
        "objective__kl": "elbo",
        "model__prior": "mixture",
        "model__prior_components": 3,
        "adversarial__prior_samples": True,
    }
    (with_term, _), (without, _) = (
        run(tiny_config(**changes, adversarial__weight=weight)) for weight in (0.5, 0.0)
    )
    ours, others = (gradients(state, "generator") for state in (with_term, without))
    chex.assert_trees_all_close(
        ours["mixture_prior"], others["mixture_prior"], rtol=1e-5, atol=1e-7
    )
    # Equal though not 0: far above what the comparison lets pass.
    assert optax.tree.norm(others["mixture_prior"]) > 1e-2


@pytest.mark.slow
def test_adversarial_start():
    """Before its start the term moves the discriminator only; the autoencoder goes as without it."""
    alone, _ = run(tiny_config(adversarial__loss="none"), steps=2)
    moved, metrics = run(tiny_config(adversarial__start=2), steps=2)
    early, _ = run(tiny_config(adversarial__start=1), steps=2)
    # Gradients and not parameters: Adam makes whole steps of the rounding of a gradient
    # that is 0, as of a bias before group normalisation of one channel.
    alone, late, early = (
        jnp.concatenate(
            [jnp.ravel(x) for x in jax.tree.leaves(gradients(of, "generator"))]
        )
        for of in (alone, moved, early)
    )
    scale = jnp.linalg.norm(alone)
    # Two programs of float32 round apart by 1.8e-7 here; the term, where it is on, by 0.13.
    assert jnp.linalg.norm(late - alone) < 1e-5 * scale
    assert jnp.linalg.norm(early - alone) > 1e-2 * scale
    start = create_state(tiny_config())
    assert any(
        np.any(a != b)
        for a, b in zip(
            *map(
                jax.tree.leaves,
                (start.discriminator_params, moved.discriminator_params),
            ),
            strict=True,
        )
    )
    assert "adversarial" in metrics


def test_metrics_are_complete_and_finite():
    state, metrics = run(tiny_config())
    assert set(metrics) == {
        *(
            "reconstruction",
            "kl",
            "collapse_penalty",
            "adversarial",
            "generator_loss",
            "discriminator_loss",
        ),
        *(
            "generator_gradient_norm",
            "generator_gradient_ratio",
            "discriminator_gradient_norm",
            "real_logit_mean",
            "fake_logit_mean",
        ),
        *("generator_parameter_norm", "discriminator_parameter_norm"),
        *("variance_mean", "variance_min", "active_units"),
        *("component_entropy", "components_used", "skipped_steps"),
    }
    assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
    assert int(state.step) == 1
    _, alone = run(tiny_config(adversarial__loss="none"))
    assert set(alone) == set(metrics) - {
        *(
            "adversarial",
            "discriminator_loss",
            "discriminator_gradient_norm",
            "discriminator_parameter_norm",
            "real_logit_mean",
            "fake_logit_mean",
        )
    }


def test_average_of_weights():
    """Decay (1 + t) / (10 + t) until it reaches the one configured: 1/10 at the first step, 2/11 at the second."""
    config = tiny_config(
        train__ema_decay=0.15, adversarial__loss="none", model__norm="batch"
    )
    start, (first, _), (second, _) = (
        create_state(config),
        run(config, 1),
        run(config, 2),
    )
    for live, average in (
        ("generator_params", "ema_params"),
        ("generator_batch_stats", "ema_batch_stats"),
    ):
        expected = jax.tree.map(
            lambda a, b: 0.1 * a + 0.9 * b,
            getattr(start, average),
            getattr(first, live),
        )
        chex.assert_trees_all_close(
            getattr(first, average), expected, rtol=1e-5, atol=1e-7
        )
        expected = jax.tree.map(
            lambda a, b: 0.15 * a + 0.85 * b,
            getattr(first, average),
            getattr(second, live),
        )
        chex.assert_trees_all_close(
            getattr(second, average), expected, rtol=1e-5, atol=1e-7
        )


def test_learning_rates_decay_to_the_last_step():
    """The last half of 8 steps: 1, then 3/4, 2/4 and 1/4 of the rates, of the same Adam's updates."""
    changes = {"optimizer__decay_fraction": 0.5}
    start, constant = compiled(tiny_config(train__steps=8).to_json(), 1)
    _, decaying = compiled(tiny_config(train__steps=8, **changes).to_json(), 1)
    for step, factor in ((0, 1.0), (4, 1.0), (5, 0.75), (7, 0.25)):
        before = start.replace(step=jnp.int32(step))
        whole, less = (
            jax.device_get(move(before, images()[None])[0])
            for move in (constant, decaying)
        )
        for player in ("generator", "discriminator"):
            moments, kept = (
                getattr(x, f"{player}_opt_state")[0].mu for x in (whole, less)
            )
            # Gradients that two programs of float32 round apart, up to 5e-8 here.
            np.testing.assert_allclose(kept, moments, rtol=0, atol=1e-6)
            first, full, slow = (
                ravel_pytree(getattr(x, f"{player}_params"))[0]
                for x in (before, whole, less)
            )
            # Adam's first update is the rate (1e-4) times the gradient's sign, so rounding
            # is harmless where there is a gradient; parameters round by 6e-8.
            sure = np.abs(moments) > 1e-5
            np.testing.assert_allclose(
                (slow - first)[sure], factor * (full - first)[sure], rtol=0, atol=2e-7
            )
            assert np.mean(sure) > 0.5


def test_the_seed_decides_everything():
    (a, _), (b, _), (c, _) = (
        run(tiny_config(adversarial__loss="none", seed=seed)) for seed in (1, 1, 2)
    )
    chex.assert_trees_all_equal(a.generator_params, b.generator_params)
    assert any(
        np.any(x != y)
        for x, y in zip(
            *map(jax.tree.leaves, (a.generator_params, c.generator_params)), strict=True
        )
    )
    assert np.all(a.key == create_state(tiny_config(seed=1)).key)
    # A typed key would be read back to the host at every step of several processes.
    for leaf in jax.tree.leaves(a):
        assert not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__norm": "batch", "discriminator__norm": "batch"},
        {"model__norm": "affine", "discriminator__norm": "affine"},
        {"model__remat": True, "objective__component_chunk": 1},
    ],
    ids=["batch", "affine", "group"],
)
def test_nothing_reduces_bfloat16(changes):
    """XLA on CPU keeps a reduction of bfloat16 in bfloat16, and so lost most of the gradients of biases, which are sums over all pixels. Convolutions and products of matrices are exempt, for it sums them in float32, and sums of two arrays."""
    blocks = {"model__encoder_blocks": 1, "model__decoder_blocks": 1}
    config = tiny_config(
        model__dtype="bfloat16", model__input_norm=True, **blocks, **changes
    )
    step, state, batch = abstract_step(config)
    reductions = ("reduce_sum", "reduce_window_sum", "cumsum", "psum")
    reduced = {
        value.aval.dtype.name
        for equation, _ in equations(jax.make_jaxpr(step)(state, batch).jaxpr)
        if equation.primitive.name.startswith(reductions)
        for value in equation.invars
    }
    assert "float32" in reduced
    assert "bfloat16" not in reduced


def test_products_of_matrices_are_precise():
    """All but convolutions, forwards and back: an accelerator's default keeps 8 to 11 bits of z, of the posterior's parameters and of moments."""
    objective = {
        "objective__covariance": "full",
        "objective__moment_decay": 0.9,
        "objective__negentropy_components": 4,
    }
    step, state, batch = abstract_step(tiny_config(model__components=2, **objective))
    highest = jax.lax.Precision.HIGHEST
    found = [
        equation.params["precision"]
        for equation, _ in equations(jax.make_jaxpr(step)(state, batch).jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    # Three dense layers of the posterior and one of the decoder, each with two gradients.
    assert len(found) >= 12
    assert set(found) == {(highest, highest)}


def test_bfloat16_step_keeps_wide_state_and_close_losses():
    state, metrics = run(tiny_config(model__dtype="bfloat16"))
    _, wide = run(tiny_config())
    assert {
        x.dtype
        for x in jax.tree.leaves(
            (state.generator_params, state.ema_params, state.discriminator_params)
        )
    } == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits; the terms are means over many values
    for name in ("reconstruction", "collapse_penalty", "generator_loss"):
        np.testing.assert_allclose(metrics[name], wide[name], rtol=0.05)


def test_evaluation_counts_every_image_once_however_it_is_batched(monkeypatch):
    config = tiny_config()
    state, eval_step = (
        create_state(config),
        map_over_devices(make_steps(config).eval_step),
    )
    pixels = images(20)

    def batches(size):
        for start in range(0, 20, size):
            index = np.arange(start, start + size)
            yield {
                "image": pixels[index % 20],
                "index": np.where(index < 20, index, -1).astype(np.int32),
            }

    results = [validate(eval_step, state, batches(size)) for size in (8, 16, 40)]
    assert results[0]["count"] == 20
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-4)

    # The same figures from the networks alone, in numpy float64.
    autoencoder, _ = make_models(config)
    x = scale_images(pixels)
    posterior = autoencoder.apply({"params": state.ema_params}, x, method="encode")
    reconstruction = autoencoder.apply(
        {"params": state.ema_params}, posterior.mean, method="decode"
    )
    weights = np.asarray(posterior.weights, np.float64)
    error = np.float64(x)[:, None] - np.float64(reconstruction)
    expected = {
        "absolute_error": np.sum(weights * np.abs(error).mean((2, 3, 4)), 1).mean(),
        "squared_error": np.sum(weights * (error**2).mean((2, 3, 4)), 1).mean(),
        "aggregate_kl": float(losses.aggregate_kl(aggregate_moments(posterior))),
        "collapse_penalty": float(jnp.mean(losses.collapse_penalty(posterior))),
    }
    expected["psnr"] = 10 * np.log10(4 / expected["squared_error"])
    mean_weights = weights.mean(0)
    expected["components_used"] = np.exp(-mean_weights @ np.log(mean_weights))
    expected["bounded_images"] = 20
    for name, bounds in (
        ("aggregate_kl", jax.jit(aggregate_kl_bounds)(posterior)),
        ("mutual_information", jax.jit(mutual_information_bounds)(posterior)),
    ):
        lower, upper = map(float, bounds)
        expected |= {f"{name}_lower": lower, f"{name}_upper": upper}
    assert {name: results[0][name] for name in expected} == pytest.approx(
        expected, rel=1e-4
    )
    # One component at a time.
    config.objective.component_chunk = 1
    one_by_one = map_over_devices(make_steps(config).eval_step)
    found = validate(one_by_one, state, batches(16))
    assert found == pytest.approx(results[0], rel=1e-4)
    # Ten components at most: the first five images.
    monkeypatch.setattr("gamix_jax.validate.BOUNDED_COMPONENTS", 10)
    first = validate(eval_step, state, batches(8))
    assert first["bounded_images"] == 5
    lower, _ = jax.jit(aggregate_kl_bounds)(jax.tree.map(lambda x: x[:5], posterior))
    assert first["aggregate_kl_lower"] == pytest.approx(float(lower), rel=1e-4)
    z = jnp.stack(
        [
            jax.tree.map(lambda leaf: leaf[i], posterior).stratified_sample(
                jax.random.fold_in(jax.random.wrap_key_data(state.key), i), (1,)
            )
            for i in range(20)
        ],
        axis=1,
    )
    kl = -jnp.mean(losses.mixture_elbo(jnp.zeros((1, 20, 2)), posterior, z))
    np.testing.assert_allclose(results[0]["kl"], kl, rtol=1e-4)


def test_sample_and_reconstruct_use_the_averaged_weights():
    config = tiny_config()
    state, steps = create_state(config), make_steps(config)
    spoiled = state.replace(
        generator_params=jax.tree.map(lambda x: x * jnp.nan, state.generator_params)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    samples = steps.sample(spoiled, keys)
    chex.assert_shape(samples, (3, 8, 8, 1))
    np.testing.assert_array_equal(samples, steps.sample(state, keys))
    z = jnp.stack([standard_normal(4).sample(key) for key in keys])
    expected = make_models(config)[0].apply(
        {"params": state.ema_params}, z, method="decode"
    )
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-6)
    reconstruction = steps.reconstruct(spoiled, images(3))
    chex.assert_shape(reconstruction, (3, 8, 8, 1))
    assert np.all(np.isfinite(reconstruction))


def test_scaling():
    """0 and 255 are the ends of [-1, 1]."""
    np.testing.assert_allclose(scale_images(np.array([0, 255], np.uint8)), [-1, 1])
