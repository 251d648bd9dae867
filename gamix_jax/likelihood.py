"""The likelihood p(x|z) that evaluation scores images by: a discretised Laplace distribution around the decoder's mean."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gamix_jax.bounds import importance_weighted_log_likelihood
from gamix_jax.mixture import GaussianMixture

ELBO_SAMPLES = 16  # draws of z an image
HALF_LEVEL = 1.0 / 255.0  # half the distance of two levels, images in [-1, 1]


def discretised_laplace_log_prob(
    images: jax.Array, mean: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """log P(x) of whole levels, each pixel and channel by itself: the Laplace distribution's mass between x - 1/255 and x + 1/255.

    The levels 0 and 255 have the mass of all beyond them, so that the 256 probabilities
    sum to 1 and no dequantisation is needed (as the discretised logistic of Kingma et
    al. 2016). The mean absolute error that the objective minimises is this one's, up to
    the width of a level.

    Args:
      images: levels as `steps.scale_images` makes them, [..., H, W, C] in [-1, 1].
      mean: the same shape, or one that broadcasts to it.
      scale: of the Laplace distribution, positive, in the images' unit.

    Returns:
      [...], nats: the sum over H, W and C.
    """
    away = (images - mean) / scale
    half = HALF_LEVEL / scale
    distance = jnp.abs(away)
    # Never the difference of two numbers that are nearly the same.
    outside = half - distance + jnp.log(-0.5 * jnp.expm1(-2.0 * half))
    near = jnp.minimum(distance, half)
    inside = jnp.log(-0.5 * (jnp.expm1(near - half) + jnp.expm1(-near - half)))
    middle = jnp.where(distance >= half, outside, inside)
    below = _log_cumulative(away + half)  # all up to the level's upper edge
    above = _log_cumulative(half - away)
    level = jnp.where(
        images <= -1.0 + HALF_LEVEL,
        below,
        jnp.where(images >= 1.0 - HALF_LEVEL, above, middle),
    )
    return jnp.sum(level, axis=(-3, -2, -1))


def _log_cumulative(x: jax.Array) -> jax.Array:
    """log of the standard Laplace distribution function."""
    left = jnp.minimum(x, 0.0) - jnp.log(2.0)
    right = jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(x, 0.0)))
    return jnp.where(x < 0.0, left, right)


def importance_weighted_log_probs(
    decode: Callable[[jax.Array], jax.Array],
    posterior: GaussianMixture,
    prior: GaussianMixture,
    images: jax.Array,
    keys: jax.Array,
    scale: jax.Array | float,
    samples: int,
) -> jax.Array:
    """log p(x) of each image, by L `samples` from its posterior (`importance_weighted_log_likelihood`).

    Args:
      decode: latent vectors [..., D] to means of images [..., H, W, C].
      posterior: q(z|x), of leading shape [n].
      prior: p(z), without leading axes.
      images: [n, H, W, C] in [-1, 1].
      keys: [n], one an image, so that its noise does not depend on its batch.
      scale: of the likelihood.
      samples: L, a Python integer.

    Returns:
      [n], nats.
    """

    def of_image(key: jax.Array, image: jax.Array, q: GaussianMixture) -> jax.Array:
        return importance_weighted_log_likelihood(
            key,
            lambda z: discretised_laplace_log_prob(image, decode(z), scale),
            q,
            samples,
            prior,
        )

    return jax.vmap(of_image)(keys, images, posterior)


class Evidence(NamedTuple):
    """Of each image, nats, [n].

    Attributes:
      log_prob: log p(x) by importance sampling, a lower bound in expectation.
      reconstruction: E_q log p(x|z).
      kl: KL(q(z|x) || p(z)); the ELBO is `reconstruction` - `kl`.
    """

    log_prob: jax.Array
    reconstruction: jax.Array
    kl: jax.Array


def estimate_evidence(
    decode: Callable[[jax.Array], jax.Array],
    posterior: GaussianMixture,
    prior: GaussianMixture,
    images: jax.Array,
    keys: jax.Array,
    scale: jax.Array | float,
    samples: int,
) -> Evidence:
    """log p(x) and the terms of the ELBO, the latter by ELBO_SAMPLES draws; arguments as `importance_weighted_log_probs`."""

    def of_image(key: jax.Array, image: jax.Array, q: GaussianMixture) -> tuple:
        def of_draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            z = q.sample(key)
            given = discretised_laplace_log_prob(image, decode(z), scale)
            return given, q.log_prob(z) - prior.log_prob(z)

        # One after another, so that memory does not depend on their number.
        terms = jax.lax.map(of_draw, jax.random.split(key, ELBO_SAMPLES))
        return tuple(jnp.mean(term) for term in terms)

    elbo_keys = jax.vmap(lambda key: jax.random.fold_in(key, samples))(keys)
    return Evidence(
        importance_weighted_log_probs(
            decode, posterior, prior, images, keys, scale, samples
        ),
        *jax.vmap(of_image)(elbo_keys, images, posterior),
    )
