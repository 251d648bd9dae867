"""The terms of GAMIX-VAE's objective as pure functions of arrays; nothing is weighted here.

Per-image values are returned ([B]) unless the statistic is of the batch. A wrong shape
raises AssertionError (chex) that names the shapes.
"""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from gamix_jax.mixture import (
    AggregateMoments,
    GaussianMixture,
    at_least_float32,
    standard_normal,
)


def absolute_error(images: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Mean absolute error of each image.

    Weighted by w it is, but for a constant, minus the log-likelihood of P independent
    values with Laplace noise of scale P / w; the constant is P log(2 P / w).

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
    """Mean absolute error of each reconstruction of an image: images [B, ...], reconstruction [T, B, K, ...] to [T, B, K]."""
    repeated = jnp.broadcast_to(images[None, :, None], reconstruction.shape)
    flat = (-1, *images.shape[1:])
    return absolute_error(repeated.reshape(flat), reconstruction.reshape(flat)).reshape(
        reconstruction.shape[:3]
    )


def gaussian_kl(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mean, diag exp log_var) || N(0, I)) in closed form (Kingma and Welling 2014, appendix B).

    Args:
      mean: [..., D].
      log_var: [..., D].

    Returns:
      [...], nats: 1/2 sum_d (mean^2 + exp(log_var) - 1 - log_var).
    """
    chex.assert_equal_shape([mean, log_var])
    mean, log_var = at_least_float32(mean), at_least_float32(log_var)
    # expm1: a variance near 1 would lose all its digits to "- 1".
    return 0.5 * jnp.sum(jnp.square(mean) + (jnp.expm1(log_var) - log_var), axis=-1)


def aggregate_kl(
    moments: AggregateMoments,
    variance: Literal["total", "between"] = "total",
    covariance: Literal["diagonal", "full"] = "diagonal",
) -> jax.Array:
    """KL divergence from the moment-matched Gaussian of the aggregate posterior to N(0, I), in closed form.

    With `variance="total"` it is a lower bound on KL(q(z) || N(0, I)): among all q of
    these moments the Gaussian has the largest entropy. "full" is the larger bound of
    the two, diagonal <= full <= KL(q(z) || N(0, I)), for it sees that dimensions are
    correlated. "between" leaves the components' own variance out, as the published
    code of arXiv 2309.13160 does; it bounds nothing and is offered to reproduce that
    code.

    "full" is 1/2 (tr C + m.m - D - log det C), by Cholesky's method on (1 - a) R + a I,
    R being the correlations: finite where fewer images than dimensions leave C nearly
    singular. log det being concave, in exact arithmetic this can only lower the bound,
    and never below the diagonal's. a = 4 D + 256 machine epsilons, for the rounding of
    the factorisation and of C itself (of 4,096 images, or remembered for 4,000 steps,
    float32 eigenvalues came out as low as -62 epsilons); so no direction counts for
    more than -1/2 log a, 5 nats in float32.

    Args:
      moments: of the aggregate posterior; "full" needs their covariance.
      variance: "total" (within + between) or "between".
      covariance: "diagonal" or "full".

    Returns:
      Scalar, nats, summed over dimensions: 1/2 sum_d (m^2 + v - 1 - log v), and for
      "full" -1/2 log det R more.

    Raises:
      ValueError: another `variance` or `covariance`, or the full covariance of
        "between" or of moments without covariance.
    """
    if variance not in ("total", "between"):
        raise ValueError(f'variance must be "total" or "between", not {variance!r}.')
    if covariance not in ("diagonal", "full"):
        raise ValueError(
            f'covariance must be "diagonal" or "full", not {covariance!r}.'
        )
    chex.assert_equal_shape([moments.mean, moments.within, moments.between])
    v = moments.between + moments.within if variance == "total" else moments.between
    # A dimension whose means all coincide has between = 0; the floor keeps the
    # logarithm and its gradient finite.
    v = jnp.maximum(v, jnp.finfo(v.dtype).tiny)
    diagonal = 0.5 * jnp.sum(jnp.square(moments.mean) + v - 1.0 - jnp.log(v))
    if covariance == "diagonal":
        return diagonal
    if variance == "between" or moments.covariance is None:
        raise ValueError(
            'covariance="full" needs variance="total" and moments with their covariance.'
        )
    root = correlation_root(moments.covariance, v)
    return diagonal - jnp.sum(jnp.log(jnp.diagonal(root)))


def correlation_root(covariance: jax.Array, variance: jax.Array) -> jax.Array:
    """Cholesky's lower factor, [D, D], of the shrunken correlations, (1 - a) R + a I; see `aggregate_kl`."""
    scale = jax.lax.rsqrt(variance)
    correlation = covariance * jnp.outer(scale, scale)
    identity = jnp.eye(len(scale), dtype=scale.dtype)
    shrinkage = (4 * len(scale) + 256) * float(jnp.finfo(scale.dtype).eps)
    return jnp.linalg.cholesky((1.0 - shrinkage) * correlation + shrinkage * identity)


def collapse_penalty(posterior: GaussianMixture, target: float = 1.0) -> jax.Array:
    """Penalty against variance collapse: sum_k pi_k sum_d (r - 1 - log r), r = exp(log_var) / target.

    Zero where every variance equals `target`, growing linearly in -log_var as a
    variance goes to zero. Twice the KL divergence between zero-mean Gaussians of
    variances exp(log_var) and `target` (arXiv 2309.13160, per-image term).

    What the target t does, with a weight c > 0 beside w > 0 times `aggregate_kl`
    ("total"), where reconstruction does not pull: in one dimension, with s = within and
    b = between, the sum w/2 (s + b - 1 - log(s + b)) + c (s/t - 1 - log(s/t)) is least
    - for t <= 1 at s = t, b = 1 - t, where both terms vanish: noise has the share t of
      the latent variance and images the rest, a Gaussian channel of -1/2 log t nats a
      dimension. At t = 1 nothing is left for the images: reconstruction alone pulls s
      below its target.
    - for t > 1 at b = 0 and, of w/2 (1 - 1/s) + c (1/t - 1/s) = 0, at
      s = (w/2 + c) / (w/2 + c/t), between 1 and t: the terms disagree, and q(z) is
      wider than N(0, I).
    With "between" the two never meet: s = t and b = 1, so that q(z) has the variance
    1 + t.

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


def component_entropy(posterior: GaussianMixture) -> jax.Array:
    """Entropy of each image's weights, -sum_k pi_k log pi_k: [...], from 0 (one component does all) to log K, nats."""
    # By log_softmax: where a weight underflows to 0, x log x has an infinite derivative.
    return jnp.sum(-posterior.weights * posterior.log_weights, axis=-1)


def mixture_elbo(
    log_likelihood: jax.Array,
    posterior: GaussianMixture,
    z: jax.Array,
    prior: GaussianMixture | None = None,
) -> jax.Array:
    """Stratified evidence lower bound for a mixture posterior (SELBO of Morningstar et al. 2021).

    (1/T) sum_t sum_k pi_k [log p(x|z_tk) + log p(z_tk) - log q(z_tk|x)], z_tk ~ N_k:
    exact over components, reparametrised within each. The price is that the decoder
    runs T K times for an image. For K = 1 and the prior N(0, I), the log-likelihood
    minus `posterior_kl` is the same in expectation; its variance is smaller far from the
    true posterior and larger near it, where here each draw gives log p(x).

    Args:
      log_likelihood: [T, B, K], log p(x|z_tk), nats.
      posterior: logits [B, K], mean and log_var [B, K, D].
      z: [T, B, K, D], `posterior.stratified_sample(key, (T,))`.
      prior: p(z), a mixture without leading axes; None is N(0, I).

    Returns:
      [B], nats.
    """
    log_ratio = _log_ratio(log_likelihood, posterior, z, prior)
    return jnp.mean(jnp.sum(posterior.weights[None] * log_ratio, axis=2), axis=0)


def posterior_kl(
    posterior: GaussianMixture, z: jax.Array, prior: GaussianMixture | None = None
) -> jax.Array:
    """KL(q(z|x) || p(z)) of each image: in closed form for K = 1 and N(0, I), else its stratified estimate.

    Args:
      posterior: logits [B, K], mean and log_var [B, K, D].
      z: [T, B, K, D], `posterior.stratified_sample(key, (T,))`.
      prior: p(z), a mixture without leading axes; None is N(0, I).

    Returns:
      [B], nats.
    """
    if posterior.logits.shape[-1] == 1 and prior is None:
        return gaussian_kl(posterior.mean, posterior.log_var)[:, 0]
    return -mixture_elbo(jnp.zeros(z.shape[:-1]), posterior, z, prior)


def mixture_siwae(
    log_likelihood: jax.Array,
    posterior: GaussianMixture,
    z: jax.Array,
    prior: GaussianMixture | None = None,
) -> jax.Array:
    """Stratified importance-weighted evidence lower bound (SIWAE of Morningstar et al. 2021).

    log (1/T) sum_t sum_k pi_k p(x|z_tk) p(z_tk) / q(z_tk|x). At least `mixture_elbo`
    on the same draws (Jensen), the same for T = K = 1; its gap to log p(x) falls as
    1/T. Its cost and its arguments are those of `mixture_elbo`.

    Returns:
      [B], nats.
    """
    log_ratio = _log_ratio(log_likelihood, posterior, z, prior)
    log_terms = posterior.log_weights[None] + log_ratio
    return jax.nn.logsumexp(log_terms, axis=(0, 2)) - math.log(len(z))


def _log_ratio(
    log_likelihood: jax.Array,
    posterior: GaussianMixture,
    z: jax.Array,
    prior: GaussianMixture | None,
) -> jax.Array:
    """log p(x|z) + log p(z) - log q(z|x), [T, B, K]."""
    posterior.check_shapes()
    chex.assert_rank(z, 4)
    chex.assert_equal_shape([z[0], posterior.mean])
    chex.assert_equal_shape([log_likelihood, z[..., 0]])
    prior = standard_normal(z.shape[-1]) if prior is None else prior
    chex.assert_rank(prior.logits, 1)
    # Every draw of an image is scored by that image's whole mixture.
    each = jax.tree.map(lambda x: x[:, None], posterior)
    return at_least_float32(log_likelihood) + prior.log_prob(z) - each.log_prob(z)


def hinge_discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array
) -> jax.Array:
    """mean relu(1 - D(x)) + mean relu(1 + D(x^)) over images and patches (Lim and Ye 2017).

    Args:
      real_logits: [B, ...] patch logits of data.
      fake_logits: [n, ...] patch logits of reconstructions and samples.

    Returns:
      Scalar, >= 0.
    """
    chex.assert_equal_shape([real_logits[0], fake_logits[0]])
    return jnp.mean(jax.nn.relu(1.0 - at_least_float32(real_logits))) + jnp.mean(
        jax.nn.relu(1.0 + at_least_float32(fake_logits))
    )


def hinge_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """-mean D(x^): scalar, of patch logits [n, ...] (Lim and Ye 2017)."""
    return -jnp.mean(at_least_float32(fake_logits))


def bce_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Binary cross-entropy of real against fake, -mean log s(D(x)) - mean log(1 - s(D(x^))) (Goodfellow et al. 2014).

    Args:
      real_logits: [B, ...] patch logits of data.
      fake_logits: [n, ...] patch logits of reconstructions and samples.

    Returns:
      Scalar, nats, >= 0.
    """
    chex.assert_equal_shape([real_logits[0], fake_logits[0]])
    return jnp.mean(jax.nn.softplus(-at_least_float32(real_logits))) + jnp.mean(
        jax.nn.softplus(at_least_float32(fake_logits))
    )


def bce_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """-mean log s(D(x^)): scalar, nats, of patch logits [n, ...] (the non-saturating loss, Goodfellow et al. 2014)."""
    return jnp.mean(jax.nn.softplus(-at_least_float32(fake_logits)))
