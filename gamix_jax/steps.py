"""One step of training and of evaluation, for one replica, with collectives over "batch"."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.flatten_util import ravel_pytree

from gamix_jax import losses
from gamix_jax.adversarial import (
    decode_prior_samples,
    make_discriminate,
    play_adversaries,
)
from gamix_jax.divergence import gradient_ratio, unless_diverged
from gamix_jax.mixture import GaussianMixture
from gamix_jax.models import draw_for_each
from gamix_jax.objective import Metrics, autoencoder_objective
from gamix_jax.state import TrainState, make_models, make_optimizers, rate_factor

AXIS = "batch"


class Steps(NamedTuple):
    """What `make_steps` makes. Images are uint8 [n, H, W, C], n to a replica, unless said otherwise.

    Attributes:
      train_step: (state, images) -> (state, metrics), metrics float32 scalars of the
        global batch. A step that diverges (`unless_diverged`) changes nothing but
        `step` and `skipped`. The discriminator judges one component an image, drawn by
        its weight, so the adversarial term has no gradient into the mixture's logits.
        Draws of the prior, where it judges them too, move the decoder alone.
      eval_step: (state, {"image": images, "index": int32 [n]}) -> sums over the global
        batch, its posteriors and its indices, for `validate`. The index is the image's
        place in its split and seeds its noise; -1 marks padding, which counts for
        nothing.
      sample: (state, keys [n]) -> images [n, H, W, C] in [-1, 1], of z from the prior, by
        the averaged weights. No collectives.
      reconstruct: (state, images) -> images in [-1, 1] from the mean of each
        posterior's weightiest component. No collectives.
    """

    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]
    eval_step: Callable[[TrainState, dict[str, jax.Array]], tuple]
    sample: Callable[[TrainState, jax.Array], jax.Array]
    reconstruct: Callable[[TrainState, jax.Array], jax.Array]


def scale_images(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_levels(images: jax.Array) -> jax.Array:
    """[-1, 1], clipped to it, to the nearest of the levels 0..255, uint8."""
    return jnp.rint((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def make_train_step(
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """One simultaneous step of both players; see `Steps.train_step`."""
    autoencoder, discriminator = make_models(config)
    generator_optimizer, discriminator_optimizer = make_optimizers(config)

    def train_step(state: TrainState, images: jax.Array) -> tuple[TrainState, Metrics]:
        before, images = state, scale_images(images)
        rate = rate_factor(config, state.step)
        run_key = jax.random.wrap_key_data(state.key)
        keys = _image_keys(jax.random.fold_in(run_key, state.step), images.shape[0])
        (coding, fake), pull_back, batch_stats = jax.vjp(
            _autoencode(config, autoencoder, state, images, keys),
            state.generator_params,
            has_aux=True,
        )
        (loss, (metrics, moments, aggregate_fit)), cotangent = jax.value_and_grad(
            lambda coding: autoencoder_objective(
                config,
                images,
                coding,
                state.moments,
                state.aggregate_fit,
                state.step,
                AXIS,
            ),
            has_aux=True,
        )(coding)
        fake_cotangent = jnp.zeros_like(fake)

        if config.adversarial.loss != "none":
            gradient, discriminator_batch_stats, fake_gradient, played = (
                play_adversaries(
                    config.adversarial.loss,
                    make_discriminate(discriminator, state, images),
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
                rate,
            )
            metrics |= played | {f"discriminator_{k}": v for k, v in norms.items()}
            state = state.replace(
                discriminator_params=params,
                discriminator_batch_stats=discriminator_batch_stats,
                discriminator_opt_state=opt_state,
            )

        (gradient,) = pull_back((cotangent, fake_cotangent))
        params, opt_state, norms = _descend(
            generator_optimizer,
            gradient,
            state.generator_params,
            state.generator_opt_state,
            rate,
        )
        metrics |= {"generator_loss": loss}
        metrics |= {f"generator_{k}": v for k, v in norms.items()}
        metrics["generator_gradient_ratio"] = gradient_ratio(
            norms["gradient_norm"], state.generator_opt_state, config.optimizer.beta2
        )
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
            moments=moments,
            aggregate_fit=aggregate_fit,
        )
        minimum = jax.lax.pmin(metrics["variance_min"], AXIS)
        metrics = jax.lax.pmean(metrics, AXIS) | {"variance_min": minimum}
        return unless_diverged(metrics, state, before)

    return train_step


def _autoencode(
    config, autoencoder, state: TrainState, images: jax.Array, keys: jax.Array
):
    """Parameters to (coding, fake) and new batch statistics."""

    def autoencode(params: Any) -> tuple[tuple, Any]:
        variables = {"params": params, "batch_stats": state.generator_batch_stats}
        coding, updates = autoencoder.apply(
            variables,
            images,
            keys[:, 0],
            train=True,
            samples=config.objective.samples,
            chunk=config.objective.component_chunk,
            mutable=["batch_stats"],
        )
        # The discriminator judges one component an image, drawn by its weight: as
        # many reconstructions as reals. Of several draws it judges the first.
        component = jax.vmap(jax.random.categorical)(
            keys[:, 1], coding.posterior.log_weights
        )
        fake = jax.vmap(lambda images, k: images[k])(
            coding.reconstruction[0], component
        )
        if config.adversarial.prior_samples:
            samples = decode_prior_samples(
                autoencoder, variables, coding.prior, keys[:, 2]
            )
            fake = jnp.concatenate([fake, samples])
        return (coding, fake), updates.get("batch_stats", {})

    return autoencode


def _descend(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    params: Any,
    opt_state: Any,
    rate: jax.Array | float,
) -> tuple[Any, Any, Metrics]:
    """One step along the gradient of all replicas, all parameters as one vector: parameters, optimiser and norms."""
    with jax.named_scope("gradients"):
        gradient = jax.lax.pmean(ravel_pytree(gradient)[0], AXIS)
    params, unravel = ravel_pytree(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    params = optax.apply_updates(params, rate * updates)
    norms = {
        "gradient_norm": jnp.linalg.norm(gradient),
        "parameter_norm": jnp.linalg.norm(params),
    }
    return unravel(params), opt_state, norms


def _image_keys(key: jax.Array, count: int) -> jax.Array:
    """Three keys for each image of the replica, [count, 3], by its place in the global batch however that is split."""
    index = jax.lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(index)


def make_eval_step(
    config: ml_collections.ConfigDict,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple]:
    """Sums over one batch of what `validate` reports, and its posteriors; see `Steps.eval_step`."""
    autoencoder, _ = make_models(config)

    def eval_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[Metrics, GaussianMixture]:
        images, mask = scale_images(batch["image"]), batch["index"] >= 0
        run_key = jax.random.wrap_key_data(state.key)
        keys = jax.vmap(lambda i: jax.random.fold_in(run_key, i))(batch["index"])
        variables = averaged_variables(state)
        posterior = autoencoder.apply(variables, images, method="encode")
        prior = autoencoder.apply(variables, method="learned_prior")
        z = draw_for_each(posterior, keys, samples=1)
        decode = partial(autoencoder.apply, variables, method="decode")
        if config.objective.component_chunk:  # memory is that of one component
            means = posterior.mean.swapaxes(0, 1)
            reconstruction = jax.lax.map(decode, means).swapaxes(0, 1)
        else:
            reconstruction = decode(posterior.mean)
        squared_error = jnp.mean(
            jnp.square(images[:, None] - reconstruction), axis=(2, 3, 4)
        )
        absolute_error = losses.component_errors(images, reconstruction[None])[0]
        weights = posterior.weights

        def expectation(x: jax.Array) -> jax.Array:
            return jnp.sum(weights[..., None] * x, axis=1)

        per_image = {
            "count": jnp.ones(mask.shape),
            "absolute_error": jnp.sum(weights * absolute_error, axis=-1),
            "squared_error": jnp.sum(weights * squared_error, axis=-1),
            "kl": losses.posterior_kl(posterior, z, prior),
            "collapse_penalty": losses.collapse_penalty(
                posterior, config.objective.collapse_target
            ),
            "component_entropy": losses.component_entropy(posterior),
            "weights": weights,
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
        return jax.lax.psum(sums, AXIS), jax.lax.all_gather(
            (posterior, batch["index"]), AXIS, tiled=True
        )

    return eval_step


def averaged_variables(state: TrainState) -> dict[str, Any]:
    """The autoencoder's variables of samples and evaluation: the averaged weights."""
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def make_steps(config: ml_collections.ConfigDict) -> Steps:
    """The functions of one replica that a configuration describes; the first two need the mapped axis "batch"."""
    autoencoder, _ = make_models(config)

    def sample(state: TrainState, keys: jax.Array) -> jax.Array:
        variables = averaged_variables(state)
        prior = autoencoder.apply(variables, method="latent_prior")
        return autoencoder.apply(
            variables, jax.vmap(prior.sample)(keys), method="decode"
        )

    def reconstruct(state: TrainState, images: jax.Array) -> jax.Array:
        variables = averaged_variables(state)
        posterior = autoencoder.apply(variables, scale_images(images), method="encode")
        return autoencoder.apply(
            variables, posterior.weightiest_mean(), method="decode"
        )

    return Steps(make_train_step(config), make_eval_step(config), sample, reconstruct)
