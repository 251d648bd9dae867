"""Gaussian mixtures with diagonal covariances: the posterior of one image, and the aggregate of many.

Everything here is computed in at least float32, whatever the dtype of the parameters.
"""

import math

import chex
import flax.struct
import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is wider already."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@flax.struct.dataclass
class GaussianMixture:
    """A batch of mixtures q(z) = sum_k pi_k N(z; mean_k, diag exp log_var_k), pi = softmax(logits).

    Attributes:
      logits: [..., K], any real numbers.
      mean: [..., K, D].
      log_var: [..., K, D], natural logarithm of the variances; values in [-30, 30] give
        finite results and gradients.
    """

    logits: jax.Array
    mean: jax.Array
    log_var: jax.Array

    @property
    def log_weights(self) -> jax.Array:
        """log pi, [..., K]."""
        return jax.nn.log_softmax(at_least_float32(self.logits), axis=-1)

    @property
    def weights(self) -> jax.Array:
        """pi, [..., K]."""
        return jax.nn.softmax(at_least_float32(self.logits), axis=-1)

    def check_shapes(self) -> None:
        """Raises AssertionError, naming the shapes, unless logits [..., K] and mean, log_var [..., K, D] agree."""
        chex.assert_equal_shape([self.mean, self.log_var])
        chex.assert_equal_shape([self.logits, self.mean[..., 0]])

    def log_prob(self, z: jax.Array) -> jax.Array:
        """log q(z).

        Args:
          z: [..., D]; its leading axes broadcast against those of the mixture (so [S,
            ..., D] scores S samples each).

        Returns:
          [...], the broadcast leading shape.

        Raises:
          AssertionError: the last axis of `z` is not D.
        """
        self.check_shapes()
        if z.shape[-1:] != self.mean.shape[-1:]:
            raise AssertionError(
                f"z of shape {z.shape} does not end in D as mean does, {self.mean.shape}."
            )
        leading = jnp.broadcast_shapes(z.shape[:-1], self.logits.shape[:-1])
        components, dimensions = self.mean.shape[-2:]
        shape = (*leading, components, dimensions)
        # Broadcast before the arithmetic: explicit, so that it also holds where rank
        # promotion is an error.
        mean = jnp.broadcast_to(at_least_float32(self.mean), shape)
        log_var = jnp.broadcast_to(at_least_float32(self.log_var), shape)
        z = jnp.broadcast_to(at_least_float32(z)[..., None, :], shape)
        log_normal = -0.5 * jnp.sum(
            log_var
            + jnp.square((z - mean) * jnp.exp(-0.5 * log_var))
            + math.log(2 * math.pi),
            axis=-1,
        )
        log_weights = jnp.broadcast_to(self.log_weights, log_normal.shape)
        return jax.nn.logsumexp(log_weights + log_normal, axis=-1)

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each mixture (law of total variance), both [..., D]."""
        self.check_shapes()
        weights = self.weights[..., None]
        mean = jnp.sum(weights * at_least_float32(self.mean), axis=-2)
        deviation = at_least_float32(self.mean) - mean[..., None, :]
        variance = jnp.sum(
            weights * (jnp.exp(at_least_float32(self.log_var)) + jnp.square(deviation)),
            axis=-2,
        )
        return mean, variance

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw from each mixture, [..., D]; its gradient reaches mean and log_var of the component drawn, not logits."""
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.log_weights, axis=-1)
        z = self.stratified_sample(noise_key)
        return jnp.take_along_axis(z, component[..., None, None], axis=-2).squeeze(-2)

    def stratified_sample(self, key: jax.Array) -> jax.Array:
        """One reparametrised draw from each component of each mixture, [..., K, D] (Morningstar et al. 2020)."""
        self.check_shapes()
        mean = at_least_float32(self.mean)
        return mean + jnp.exp(0.5 * at_least_float32(self.log_var)) * jax.random.normal(
            key, mean.shape, mean.dtype
        )


@flax.struct.dataclass
class AggregateMoments:
    """First two moments of the aggregate q(z) = (1/N) sum_i q(z|x_i), per dimension.

    Attributes:
      mean: [D], the mean.
      within: [D], average variance of the components.
      between: [D], variance of the components' means; within + between is the variance
        of q(z) (law of total variance).
    """

    mean: jax.Array
    within: jax.Array
    between: jax.Array


def aggregate_moments(
    posterior: GaussianMixture, axis_name: str | None = None
) -> AggregateMoments:
    """Moments of the aggregate posterior of the whole batch (DESIGN: m, within, between; arXiv 2309.13160).

    Args:
      posterior: mixtures with any leading axes, all of which are averaged over.
      axis_name: mapped axis (pmap, shard_map, vmap) over whose replicas the batch is
        spread; the moments are those of
        the global batch: the mean is averaged first, then the squares centred on it.

    Returns:
      AggregateMoments, each [D], the same on every replica.
    """
    posterior.check_shapes()
    components, dimensions = posterior.mean.shape[-2:]
    weights = posterior.weights.reshape(-1, components, 1)
    means = at_least_float32(posterior.mean).reshape(-1, components, dimensions)
    variances = jnp.exp(at_least_float32(posterior.log_var)).reshape(
        -1, components, dimensions
    )

    def average(x: jax.Array) -> jax.Array:
        local = jnp.mean(jnp.sum(weights * x, axis=1), axis=0)
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    mean = average(means)
    return AggregateMoments(
        mean, average(variances), average(jnp.square(means - mean[None, None, :]))
    )
