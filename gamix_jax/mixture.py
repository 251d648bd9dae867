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
        """log q(z), [...]: of z as in `component_log_prob`."""
        return jax.nn.logsumexp(self.component_log_prob(z), axis=-1)

    def component_log_prob(self, z: jax.Array) -> jax.Array:
        """log pi_k + log N(z; mean_k, diag exp log_var_k), whose softmax over k is each component's responsibility for z.

        Args:
          z: [..., D]; its leading axes broadcast against those of the mixture (so [S,
            ..., D] scores S samples each).

        Returns:
          [..., K], the broadcast leading shape before K.

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
        return jnp.broadcast_to(self.log_weights, log_normal.shape) + log_normal

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

    def weightiest_mean(self) -> jax.Array:
        """Mean of each mixture's component of the largest weight, [..., D]."""
        weightiest = jnp.argmax(self.logits, axis=-1)[..., None, None]
        return jnp.take_along_axis(self.mean, weightiest, axis=-2).squeeze(-2)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent draws from each mixture.

        Args:
          key: random key.
          shape: of the draws from each.

        Returns:
          [*shape, ..., D]. Its gradient reaches mean and log_var of the components drawn,
          not the logits.
        """
        self.check_shapes()
        component_key, noise_key = jax.random.split(key)
        leading = (*shape, *self.logits.shape[:-1])
        component = jax.random.categorical(
            component_key, self.log_weights, shape=leading
        )

        def drawn(x: jax.Array) -> jax.Array:
            x = jnp.broadcast_to(at_least_float32(x), (*leading, *x.shape[-2:]))
            return jnp.take_along_axis(x, component[..., None, None], -2).squeeze(-2)

        mean, log_var = drawn(self.mean), drawn(self.log_var)
        noise = jax.random.normal(noise_key, mean.shape, mean.dtype)
        return mean + jnp.exp(0.5 * log_var) * noise

    def stratified_sample(
        self, key: jax.Array, shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Reparametrised draws from each component of each mixture, `shape` of them: [*shape, ..., K, D] (Morningstar et al. 2021)."""
        self.check_shapes()
        mean, log_var = at_least_float32(self.mean), at_least_float32(self.log_var)
        shape = (*shape, *mean.shape)
        noise = jax.random.normal(key, shape, mean.dtype)
        return (
            jnp.broadcast_to(mean, shape)
            + jnp.broadcast_to(jnp.exp(0.5 * log_var), shape) * noise
        )


def standard_normal(dimensions: int) -> GaussianMixture:
    """N(0, I) in D `dimensions`, as a mixture of one component without leading axes."""
    zeros = jnp.zeros((1, dimensions))
    return GaussianMixture(jnp.zeros(1), zeros, zeros)


@flax.struct.dataclass
class AggregateMoments:
    """First two moments of the aggregate q(z) = (1/N) sum_i q(z|x_i).

    Attributes:
      mean: [D], the mean.
      within: [D], average variance of the components.
      between: [D], variance of the components' means; within + between is the variance
        of q(z) (law of total variance).
      covariance: [D, D], the covariance of q(z), its diagonal within + between; or None.
    """

    mean: jax.Array
    within: jax.Array
    between: jax.Array
    covariance: jax.Array | None = None

    def pool(self, other: "AggregateMoments", weight: jax.Array) -> "AggregateMoments":
        """Moments of the mixture (1 - weight) self + weight other, exactly; weight in [0, 1]."""

        def average(a: jax.Array, b: jax.Array) -> jax.Array:
            return (1.0 - weight) * a + weight * b

        pooled = jax.tree.map(average, self, other)
        # The means of the two differ: that too is variance between components.
        shift, spread = other.mean - self.mean, weight * (1.0 - weight)
        return pooled.replace(
            between=pooled.between + spread * jnp.square(shift),
            covariance=None
            if self.covariance is None
            else pooled.covariance + spread * jnp.outer(shift, shift),
        )


def aggregate_moments(
    posterior: GaussianMixture,
    axis_name: str | None = None,
    covariance: bool = False,
) -> AggregateMoments:
    """Moments of the aggregate posterior of the whole batch (DESIGN: m, within, between; arXiv 2309.13160).

    Args:
      posterior: mixtures with any leading axes, all of which are averaged over.
      axis_name: mapped axis (pmap, shard_map, vmap) over whose replicas the batch is
        spread; the moments are those of the global batch: the mean is averaged first,
        then the squares centred on it.
      covariance: also the [D, D] covariance.

    Returns:
      AggregateMoments, the same on every replica.
    """
    return _moments_about(None, posterior, axis_name, covariance)


def remembered_moments(
    posterior: GaussianMixture,
    memory: AggregateMoments,
    weight: jax.Array,
    axis_name: str | None = None,
) -> AggregateMoments:
    """Moments of an exponential average of batches, the newest with `weight`, for batches too small to tell them.

    The values are those of (1 - weight) memory + weight batch. The gradient is that of
    the batch's own moments about the pooled mean, not multiplied by the small `weight`:
    where the memory is that of the whole data, its expectation is the gradient of their
    moments, so the weight of a term made of them means the same with and without memory.
    In training the memory lags: it was made by encoders up to some 1 / `weight` steps old.

    Args:
      posterior: of the batch, any leading axes.
      memory: what this function returned for the batch before; with its covariance or
        without, as is then the result.
      weight: scalar in (0, 1]; 1 gives `aggregate_moments`. N images a batch and a
        constant weight w count as N (2 - w) / w images.
      axis_name: see `aggregate_moments`.

    Returns:
      AggregateMoments, the same on every replica.
    """
    covariance = memory.covariance is not None
    batch = aggregate_moments(posterior, axis_name, covariance)
    pooled = jax.lax.stop_gradient(memory.pool(batch, weight))
    # About a constant: a batch's squares about its own mean have (N - 1) / N of the
    # gradient.
    about = _moments_about(pooled.mean, posterior, axis_name, covariance)
    return jax.tree.map(
        lambda value, x: value + (x - jax.lax.stop_gradient(x)), pooled, about
    )


def _moments_about(
    center: jax.Array | None,
    posterior: GaussianMixture,
    axis_name: str | None,
    covariance: bool,
) -> AggregateMoments:
    """`aggregate_moments` with squares about `center`, [D], or where it is None about the mean."""
    posterior.check_shapes()
    components, dimensions = posterior.mean.shape[-2:]
    weights = posterior.weights.reshape(-1, components, 1)
    means = at_least_float32(posterior.mean).reshape(-1, components, dimensions)
    variances = jnp.exp(at_least_float32(posterior.log_var)).reshape(
        -1, components, dimensions
    )

    def over_replicas(x: jax.Array) -> jax.Array:
        with jax.named_scope("moments"):
            return x if axis_name is None else jax.lax.pmean(x, axis_name)

    def average(x: jax.Array) -> jax.Array:
        return over_replicas(jnp.mean(jnp.sum(weights * x, axis=1), axis=0))

    mean = average(means)
    deviation = means - (mean if center is None else center)[None, None, :]
    within = average(variances)
    if not covariance:
        return AggregateMoments(mean, within, average(jnp.square(deviation)))
    products = jnp.einsum(
        "nkd,nke->de",
        weights * deviation,
        deviation,
        precision=jax.lax.Precision.HIGHEST,  # accelerators' default has 8 to 11 bits
    )
    between = over_replicas(products / len(means))
    return AggregateMoments(
        mean, within, jnp.diagonal(between), between + jnp.diag(within)
    )


def components_used(
    posterior: GaussianMixture, axis_name: str | None = None
) -> jax.Array:
    """Perplexity of the batch's mean weights, exp H((1/N) sum_i pi_i): a scalar from 1 (one component does all) to K.

    Args:
      posterior: mixtures with any leading axes, all of which are averaged over.
      axis_name: see `aggregate_moments`.
    """
    weights = jnp.mean(posterior.weights.reshape(-1, posterior.logits.shape[-1]), 0)
    if axis_name is not None:
        weights = jax.lax.pmean(weights, axis_name)
    # The floor keeps the gradient finite where no image uses a component.
    floor = jnp.finfo(weights.dtype).tiny
    return jnp.exp(-jnp.sum(weights * jnp.log(jnp.maximum(weights, floor))))
