"""One step of training and of evaluation, for one replica, with collectives over "batch".

This is the one place where the terms of the objective are weighted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gamix_jax import losses
from gamix_jax.adversarial import play_adversaries
from gamix_jax.mixture import GaussianMixture, aggregate_moments
from gamix_jax.state import TrainState, make_models, make_optimizers

AXIS = "batch"
Metrics = dict[str, jax.Array]


class Steps(NamedTuple):
    """What `make_steps` makes. Images are uint8 [n, H, W, C], n to a replica, unless said otherwise.

    Attributes:
      train_step: (state, images) -> (state, metrics), metrics float32 scalars of the
        global batch. The discriminator judges one component an image, drawn by its
        weight, so the adversarial term has no gradient into the mixture's logits.
      eval_step: (state, {"image": images, "index": int32 [n]}) -> sums over the global
        batch, for `evaluate`. The index is the image's place in its split and seeds its
        noise; -1 marks padding, which counts for nothing.
      decode: (state, z [..., D]) -> images in [-1, 1], of the averaged weights. No
        collectives.
      reconstruct: (state, images) -> images in [-1, 1] from the mean of each
        posterior's weightiest component. No collectives.
    """

    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]
    eval_step: Callable[[TrainState, dict[str, jax.Array]], Metrics]
    decode: Callable[[TrainState, jax.Array], jax.Array]
    reconstruct: Callable[[TrainState, jax.Array], jax.Array]


def scale_images(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def autoencoder_objective(
    config: ml_collections.ConfigDict,
    images: jax.Array,
    posterior: GaussianMixture,
    z: jax.Array,
    reconstruction: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """The autoencoder's loss but for the adversarial term (arXiv 2309.13160).

    Args:
      config: the section `objective` gives weights and forms.
      images: [B, H, W, C] in [-1, 1].
      posterior: of leading shape [B].
      z: [B, K, D], one draw from each component.
      reconstruction: [B, K, H, W, C], of each draw.

    Returns:
      The loss, a scalar, and its terms before weighting, with statistics of the
      posterior. The aggregate KL and "active_units" are of the global batch, all else
      of this replica's.
    """
    objective = config.objective
    # 1. reconstruction: sum_k pi_k |x - x^_k|
    reconstruction_term = jnp.mean(
        jnp.sum(
            posterior.weights * losses.component_errors(images, reconstruction), axis=-1
        )
    )
    # 2. KL_agg = 1/2 sum_d (m^2 + v - 1 - log v) of the global batch, or the KL part of
    # each image's stratified ELBO
    moments = aggregate_moments(posterior, axis_name=AXIS)
    if objective.kl == "aggregate":
        kl = losses.aggregate_kl(moments, objective.variance)
    else:
        kl = -jnp.mean(
            losses.mixture_elbo(jnp.zeros(posterior.logits.shape), posterior, z)
        )
    # 3. collapse = sum_k pi_k sum_d (exp s / t - 1 - log(exp s / t))
    collapse = jnp.mean(losses.collapse_penalty(posterior, objective.collapse_target))
    loss = (
        objective.reconstruction_weight * reconstruction_term
        + objective.kl_weight * kl
        + objective.collapse_weight * collapse
    )
    variance = jnp.exp(posterior.log_var)
    # Burda et al. 2016: a unit is active where the variance over images of its
    # posterior mean exceeds 0.01.
    deviation = posterior.moments()[0] - moments.mean[None]
    spread = jax.lax.pmean(jnp.mean(jnp.square(deviation), axis=0), AXIS)
    terms = {
        "reconstruction": reconstruction_term,
        "kl": kl,
        "collapse_penalty": collapse,
        "variance_mean": jnp.mean(variance),
        "variance_min": jnp.min(variance),
        "active_units": jnp.sum(spread > 0.01).astype(jnp.float32),
    }
    return loss, terms


def make_train_step(
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """One simultaneous step of both players; see `Steps.train_step`."""
    autoencoder, discriminator = make_models(config)
    generator_optimizer, discriminator_optimizer = make_optimizers(config)

    def train_step(state: TrainState, images: jax.Array) -> tuple[TrainState, Metrics]:
        images = scale_images(images)
        keys = _image_keys(jax.random.fold_in(state.key, state.step), images.shape[0])
        (posterior, z, reconstruction, fake), pull_back, batch_stats = jax.vjp(
            _autoencode(autoencoder, state, images, keys),
            state.generator_params,
            has_aux=True,
        )
        (loss, metrics), cotangents = jax.value_and_grad(
            lambda *outputs: autoencoder_objective(config, images, *outputs),
            argnums=(0, 1, 2),
            has_aux=True,
        )(posterior, z, reconstruction)
        fake_cotangent = jnp.zeros_like(fake)

        if config.adversarial.loss != "none":
            gradient, discriminator_batch_stats, fake_gradient, played = (
                play_adversaries(
                    config.adversarial.loss,
                    _discriminate(discriminator, state, images),
                    state.discriminator_params,
                    fake,
                )
            )
            # 4. the adversarial term, once the discriminator has had its start
            weight = jnp.where(
                state.step >= config.adversarial.start, config.adversarial.weight, 0.0
            )
            loss += weight * played["adversarial"]
            fake_cotangent = weight * fake_gradient
            params, opt_state, norms = _descend(
                discriminator_optimizer,
                gradient,
                state.discriminator_params,
                state.discriminator_opt_state,
            )
            metrics |= played | {f"discriminator_{k}": v for k, v in norms.items()}
            state = state.replace(
                discriminator_params=params,
                discriminator_batch_stats=discriminator_batch_stats,
                discriminator_opt_state=opt_state,
            )

        (gradient,) = pull_back((*cotangents, fake_cotangent))
        params, opt_state, norms = _descend(
            generator_optimizer,
            gradient,
            state.generator_params,
            state.generator_opt_state,
        )
        metrics |= {"generator_loss": loss}
        metrics |= {f"generator_{k}": v for k, v in norms.items()}
        # A short memory at first, so that the average forgets the initial weights.
        renewal = 1.0 - jnp.minimum(
            config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step)
        )
        average = optax.incremental_update
        state = state.replace(
            step=state.step + 1,
            generator_params=params,
            generator_batch_stats=batch_stats,
            generator_opt_state=opt_state,
            ema_params=average(params, state.ema_params, renewal),
            ema_batch_stats=average(batch_stats, state.ema_batch_stats, renewal),
        )
        minimum = jax.lax.pmin(metrics["variance_min"], AXIS)
        return state, jax.lax.pmean(metrics, AXIS) | {"variance_min": minimum}

    return train_step


def _autoencode(autoencoder, state: TrainState, images: jax.Array, keys: jax.Array):
    """Parameters to (posterior, z, reconstruction, fake) and new batch statistics."""

    def autoencode(params: Any) -> tuple[tuple, Any]:
        variables = {"params": params, "batch_stats": state.generator_batch_stats}
        (posterior, z, reconstruction), updates = autoencoder.apply(
            variables, images, keys[:, 0], train=True, mutable=["batch_stats"]
        )
        # The discriminator judges one component an image, drawn by its weight: as
        # many fakes as reals.
        component = jax.vmap(jax.random.categorical)(keys[:, 1], posterior.log_weights)
        fake = jax.vmap(lambda images, k: images[k])(reconstruction, component)
        outputs = posterior, z, reconstruction, fake
        return outputs, updates.get("batch_stats", {})

    return autoencode


def _discriminate(discriminator, state: TrainState, images: jax.Array):
    """(Parameters, fake) to (real logits, fake logits) and new batch statistics."""

    def discriminate(params: Any, fake: jax.Array) -> tuple[tuple, Any]:
        variables = {"params": params, "batch_stats": state.discriminator_batch_stats}
        logits, updates = discriminator.apply(
            variables,
            jnp.concatenate([images, fake]),
            train=True,
            mutable=["batch_stats"],
        )
        return tuple(jnp.split(logits, 2)), updates.get("batch_stats", {})

    return discriminate


def _descend(
    optimizer: optax.GradientTransformation, gradient: Any, params: Any, opt_state: Any
) -> tuple[Any, Any, Metrics]:
    """One step along the gradient of all replicas: parameters, optimiser and norms."""
    gradient = jax.lax.pmean(gradient, AXIS)
    updates, opt_state = optimizer.update(gradient, opt_state)
    params = optax.apply_updates(params, updates)
    norms = {
        "gradient_norm": optax.tree.norm(gradient),
        "parameter_norm": optax.tree.norm(params),
    }
    return params, opt_state, norms


def _image_keys(key: jax.Array, count: int) -> jax.Array:
    """Two keys for each image of the replica, [count, 2], by its place in the global batch however that is split."""
    index = jax.lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)


def make_eval_step(
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, dict[str, jax.Array]], Metrics]:
    """Sums over one batch of what `evaluate` reports; see `Steps.eval_step`."""
    autoencoder, _ = make_models(config)

    def eval_step(state: TrainState, batch: dict[str, jax.Array]) -> Metrics:
        images, mask = scale_images(batch["image"]), batch["index"] >= 0
        keys = jax.vmap(lambda i: jax.random.fold_in(state.key, i))(batch["index"])
        posterior = autoencoder.apply(_averaged(state), images, method="encode")
        z = jax.vmap(GaussianMixture.stratified_sample)(posterior, keys)
        reconstruction = autoencoder.apply(
            _averaged(state), posterior.mean, method="decode"
        )
        squared_error = jnp.mean(
            jnp.square(images[:, None] - reconstruction), axis=(2, 3, 4)
        )
        weights = posterior.weights

        def expectation(x: jax.Array) -> jax.Array:
            return jnp.sum(weights[..., None] * x, axis=1)

        per_image = {
            "count": jnp.ones(mask.shape),
            "absolute_error": jnp.sum(
                weights * losses.component_errors(images, reconstruction), axis=-1
            ),
            "squared_error": jnp.sum(weights * squared_error, axis=-1),
            "kl": -losses.mixture_elbo(jnp.zeros(weights.shape), posterior, z),
            "collapse_penalty": losses.collapse_penalty(
                posterior, config.objective.collapse_target
            ),
            "mean": expectation(posterior.mean),
            "mean_squared": expectation(jnp.square(posterior.mean)),
            "image_mean_squared": jnp.square(expectation(posterior.mean)),
            "variance": expectation(jnp.exp(posterior.log_var)),
        }
        sums = {
            name: jnp.sum(
                jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0), axis=0
            )
            for name, x in per_image.items()
        }
        return jax.lax.psum(sums, AXIS)

    return eval_step


def _averaged(state: TrainState) -> dict[str, Any]:
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def make_steps(config: ml_collections.ConfigDict) -> Steps:
    """The functions of one replica that a configuration describes; the first two need the mapped axis "batch"."""
    autoencoder, _ = make_models(config)

    def decode(state: TrainState, z: jax.Array) -> jax.Array:
        return autoencoder.apply(_averaged(state), z, method="decode")

    def reconstruct(state: TrainState, images: jax.Array) -> jax.Array:
        images = scale_images(images)
        posterior = autoencoder.apply(_averaged(state), images, method="encode")
        weightiest = jnp.argmax(posterior.logits, axis=-1)
        return decode(
            state, jax.vmap(lambda mean, k: mean[k])(posterior.mean, weightiest)
        )

    return Steps(make_train_step(config), make_eval_step(config), decode, reconstruct)
