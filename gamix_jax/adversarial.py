"""The game of the two players, unweighted."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gamix_jax import losses
from gamix_jax.mixture import GaussianMixture, standard_normal
from gamix_jax.models import Autoencoder, PatchDiscriminator
from gamix_jax.state import TrainState


def play_adversaries(
    loss: Literal["hinge", "bce"],
    discriminate: Callable,
    params: Any,
    fake: jax.Array,
) -> tuple[Any, Any, jax.Array, dict[str, jax.Array]]:
    """Both players' losses from one discriminator forward, by two pull-backs through it.

    Args:
      loss: "hinge" or "bce".
      discriminate: (params, fake) -> ((real logits, fake logits), new batch
        statistics).
      params: of the discriminator.
      fake: [n, H, W, C].

    Returns:
      The gradient of the discriminator's loss with respect to `params`, the new batch
      statistics, the gradient of the generator's loss with respect to `fake`, and
      metrics.
    """
    discriminator_loss, generator_loss = {
        "hinge": (losses.hinge_discriminator_loss, losses.hinge_generator_loss),
        "bce": (losses.bce_discriminator_loss, losses.bce_generator_loss),
    }[loss]
    (real_logits, fake_logits), pull_back, batch_stats = jax.vjp(
        discriminate, params, fake, has_aux=True
    )
    value, cotangents = jax.value_and_grad(discriminator_loss, argnums=(0, 1))(
        real_logits, fake_logits
    )
    params_gradient, _ = pull_back(cotangents)
    adversarial, cotangent = jax.value_and_grad(generator_loss)(fake_logits)
    _, fake_gradient = pull_back((jnp.zeros_like(real_logits), cotangent))
    metrics = {
        "adversarial": adversarial,
        "discriminator_loss": value,
        "real_logit_mean": jnp.mean(real_logits),
        "fake_logit_mean": jnp.mean(fake_logits),
    }
    return params_gradient, batch_stats, fake_gradient, metrics


def make_discriminate(
    discriminator: PatchDiscriminator, state: TrainState, images: jax.Array
) -> Callable:
    """What `play_adversaries` calls: the logits of real images and of fakes, judged in one batch."""

    def discriminate(params: Any, fake: jax.Array) -> tuple[tuple, Any]:
        variables = {"params": params, "batch_stats": state.discriminator_batch_stats}
        logits, updates = discriminator.apply(
            variables,
            jnp.concatenate([images, fake]),
            train=True,
            mutable=["batch_stats"],
        )
        both = tuple(jnp.split(logits, [len(images)]))
        return both, updates.get("batch_stats", {})

    return discriminate


def decode_prior_samples(
    autoencoder: Autoencoder,
    variables: Any,
    prior: GaussianMixture | None,
    keys: jax.Array,
) -> jax.Array:
    """Fakes whose codes are of no image (Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric").

    Args:
      autoencoder: whose decoder is used; not with batch normalisation.
      variables: its parameters and the statistics of its normalisation.
      prior: p(z) without leading axes; None is N(0, I). The adversarial term does not
        train it.
      keys: [n].

    Returns:
      [n, H, W, C].
    """
    if prior is None:
        prior = standard_normal(autoencoder.latent_size)
    z = jax.lax.stop_gradient(jax.vmap(prior.sample)(keys))
    return autoencoder.apply(variables, z, train=True, method="decode")
