"""The terms of GAMIX-VAE's objective as pure functions of arrays; nothing is weighted here.

Per-image values are returned ([B]) unless the statistic is of the batch. A wrong shape
raises AssertionError (chex) that names the shapes.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from gamix_jax.mixture import AggregateMoments, GaussianMixture, at_least_float32


def absolute_error(images: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Mean absolute error of each image; a Laplace likelihood of scale 1/w up to constants when weighted by w.

    Args:
      images: [B, ...].
      reconstruction: [B, ...], the same shape.

    Returns:
      [B], in the images' units.
    """
    chex.assert_equal_shape([images, reconstruction])
    error = jnp.abs(at_least_float32(images) - at_least_float32(reconstruction))
    return jnp.mean(error.reshape(error.shape[0], -1), axis=1)


def component_errors(images: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Mean absolute error of each component's reconstruction: images [B, ...], reconstruction [B, K, ...] to [B, K]."""
    repeated = jnp.broadcast_to(images[:, None], reconstruction.shape)
    flat = (-1, *images.shape[1:])
    return absolute_error(repeated.reshape(flat), reconstruction.reshape(flat)).reshape(
        reconstruction.shape[:2]
    )


def aggregate_kl(
    moments: AggregateMoments, variance: Literal["total", "between"] = "total"
) -> jax.Array:
    """KL divergence from the moment-matched Gaussian of the aggregate posterior to N(0, I), in closed form.

    With `variance="total"` it is a lower bound on KL(q(z) || N(0, I)): among all q of
    these moments the Gaussian has the largest entropy. "between" leaves the components'
    own variance out, as the published code of arXiv 2309.13160 does; it bounds nothing
    and is offered to reproduce that code.

    Args:
      moments: of the aggregate posterior, each [D].
      variance: "total" (within + between) or "between".

    Returns:
      Scalar, nats, summed over dimensions: 1/2 sum_d (m^2 + v - 1 - log v).

    Raises:
      ValueError: another `variance`.
    """
    if variance not in ("total", "between"):
        raise ValueError(f'variance must be "total" or "between", not {variance!r}.')
    chex.assert_equal_shape([moments.mean, moments.within, moments.between])
    v = moments.between + moments.within if variance == "total" else moments.between
    # A dimension whose means all coincide has between = 0; the floor keeps the
    # logarithm and its gradient finite.
    v = jnp.maximum(v, jnp.finfo(v.dtype).tiny)
    return 0.5 * jnp.sum(jnp.square(moments.mean) + v - 1.0 - jnp.log(v))


def collapse_penalty(posterior: GaussianMixture, target: float = 1.0) -> jax.Array:
    """Penalty against variance collapse: sum_k pi_k sum_d (r - 1 - log r), r = exp(log_var) / target.

    Zero where every variance equals `target`, growing linearly in -log_var as a
    variance goes to zero. Twice the KL divergence between zero-mean Gaussians of
    variances exp(log_var) and `target` (arXiv 2309.13160, per-image term).

    Args:
      posterior: logits [B, K], mean and log_var [B, K, D].
      target: variance at which the penalty vanishes, > 0.

    Returns:
      [B], nats.
    """
    posterior.check_shapes()
    chex.assert_rank(posterior.mean, 3)
    log_ratio = at_least_float32(posterior.log_var) - jnp.log(target)
    per_component = jnp.sum(jnp.exp(log_ratio) - 1.0 - log_ratio, axis=-1)
    return jnp.sum(posterior.weights * per_component, axis=-1)


def mixture_elbo(
    log_likelihood: jax.Array, posterior: GaussianMixture, z: jax.Array
) -> jax.Array:
    """Stratified evidence lower bound for a mixture posterior and prior N(0, I) (Morningstar et al. 2020, SELBO).

    sum_k pi_k [log p(x|z_k) + log p(z_k) - log q(z_k|x)], z_k ~ N_k: exact over
    components, one sample within each. With a log-likelihood of zeros it is minus the
    estimated KL(q(z|x) || p(z)).

    Args:
      log_likelihood: [B, K], log p(x|z_k), nats.
      posterior: logits [B, K], mean and log_var [B, K, D].
      z: [B, K, D], `posterior.stratified_sample(key)`.

    Returns:
      [B], nats.
    """
    posterior.check_shapes()
    chex.assert_rank(z, 3)
    chex.assert_equal_shape([z, posterior.mean])
    chex.assert_equal_shape([log_likelihood, posterior.logits])
    z = at_least_float32(z)
    log_prior = -0.5 * jnp.sum(jnp.square(z) + jnp.log(2 * jnp.pi), axis=-1)
    each = jax.tree.map(
        lambda x: x[:, None], posterior
    )  # every sample of an image is scored by that image's whole mixture
    return jnp.sum(
        posterior.weights
        * (at_least_float32(log_likelihood) + log_prior - each.log_prob(z)),
        axis=-1,
    )


def hinge_discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array
) -> jax.Array:
    """mean relu(1 - D(x)) + mean relu(1 + D(x^)) over images and patches (Lim and Ye 2017).

    Args:
      real_logits: [B, ...] patch logits of data.
      fake_logits: [B, ...] patch logits of reconstructions.

    Returns:
      Scalar, >= 0.
    """
    chex.assert_equal_shape([real_logits, fake_logits])
    return jnp.mean(jax.nn.relu(1.0 - at_least_float32(real_logits))) + jnp.mean(
        jax.nn.relu(1.0 + at_least_float32(fake_logits))
    )


def hinge_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """-mean D(x^): scalar, of patch logits [B, ...] (Lim and Ye 2017)."""
    return -jnp.mean(at_least_float32(fake_logits))


def bce_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Binary cross-entropy of real against fake, -mean log s(D(x)) - mean log(1 - s(D(x^))) (Goodfellow et al. 2014).

    Args:
      real_logits: [B, ...] patch logits of data.
      fake_logits: [B, ...] patch logits of reconstructions.

    Returns:
      Scalar, nats, >= 0.
    """
    chex.assert_equal_shape([real_logits, fake_logits])
    return jnp.mean(jax.nn.softplus(-at_least_float32(real_logits))) + jnp.mean(
        jax.nn.softplus(at_least_float32(fake_logits))
    )


def bce_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """-mean log s(D(x^)): scalar, nats, of patch logits [B, ...] (the non-saturating loss, Goodfellow et al. 2014)."""
    return jnp.mean(jax.nn.softplus(-at_least_float32(fake_logits)))
