"""A mixture of Gaussians that follows the aggregate posterior q(z) as it trains, and so sees what two moments do not: holes, clusters, tails."""

import math
from typing import Literal

import chex
import flax.struct
import jax
import jax.numpy as jnp

from gamix_jax.losses import correlation_root
from gamix_jax.mixture import AggregateMoments, GaussianMixture, standard_normal

NEWEST = 0.01  # weight of a step in what is remembered: a memory of about 100 steps
# Of draws from N(0, I), shared by the components, beside one of q(z): a component that no
# image uses returns to the middle, where it finds some.
PSEUDO_DRAWS = 0.01
# Weight of one more component, N(0, I): no draw's ratio of densities is below it, so that
# a draw gains nothing by going where the others have not been.
DEFENSIVE_WEIGHT = 0.01
LEAST_VARIANCE = 0.01


@flax.struct.dataclass
class AggregateFit:
    """Sufficient statistics of C Gaussians with diagonal covariances, of whitened draws.

    Attributes:
      share: [C], average responsibility of each component.
      first: [C, D], average of responsibility times draw.
      second: [C, D], average of responsibility times squared draw.
    """

    share: jax.Array
    first: jax.Array
    second: jax.Array

    def mixture(self) -> GaussianMixture:
        """The fitted Gaussians and N(0, I), C + 1 components without leading axes."""
        components, dimensions = self.first.shape
        pseudo = PSEUDO_DRAWS / components
        share = self.share + pseudo
        mean = self.first / share[:, None]
        variance = (self.second + pseudo) / share[:, None] - jnp.square(mean)
        logits = jnp.log(share / jnp.sum(share)) + math.log1p(-DEFENSIVE_WEIGHT)
        zeros = jnp.zeros((1, dimensions))
        log_var = jnp.log(jnp.maximum(variance, LEAST_VARIANCE))
        return GaussianMixture(
            jnp.append(logits, math.log(DEFENSIVE_WEIGHT)),
            jnp.concatenate([mean, zeros]),
            jnp.concatenate([log_var, zeros]),
        )

    def updated(
        self, y: jax.Array, weights: jax.Array, axis_name: str | None = None
    ) -> "AggregateFit":
        """After one step of online EM (Cappe and Moulines 2009).

        Args:
          y: [n, D], whitened draws.
          weights: [n], of the draws, 1 together.
          axis_name: mapped axis over whose replicas the draws are spread.

        Returns:
          The same on every replica; without gradient.
        """
        chex.assert_equal_shape([y[:, 0], weights])
        y, weights = jax.lax.stop_gradient((y, weights))
        responsibility = jax.nn.softmax(self.mixture().component_log_prob(y))[:, :-1]
        weighted = (weights[:, None] * responsibility).T
        newest = AggregateFit(
            jnp.sum(weighted, axis=1),
            *(jnp.matmul(weighted, x, precision="highest") for x in (y, y * y)),
        )
        if axis_name is not None:
            with jax.named_scope("moments"):
                newest = jax.lax.pmean(newest, axis_name)
        return jax.tree.map(lambda a, b: (1.0 - NEWEST) * a + NEWEST * b, self, newest)


def initial_fit(key: jax.Array, components: int, dimensions: int) -> AggregateFit:
    """C Gaussians of variance 1/2 about draws from N(0, I/2): of all together the moments of N(0, I)."""
    mean = math.sqrt(0.5) * jax.random.normal(key, (components, dimensions))
    return AggregateFit(
        jnp.full(components, 1.0 / components),
        mean / components,
        (jnp.square(mean) + 0.5) / components,
    )


def whiten(
    z: jax.Array, moments: AggregateMoments, covariance: Literal["diagonal", "full"]
) -> jax.Array:
    """z [..., D] in the coordinates in which q(z), of these moments ("total"), has mean 0 and variances 1 ("diagonal") or covariance I ("full")."""
    variance = moments.between + moments.within
    variance = jnp.maximum(variance, jnp.finfo(variance.dtype).tiny)
    scale = jax.lax.rsqrt(variance)
    y = (z.reshape(-1, len(variance)) - moments.mean[None]) * scale[None]
    if covariance == "full":
        root = correlation_root(moments.covariance, variance)
        y = jax.scipy.linalg.solve_triangular(root, y.T, lower=True).T
    return y.reshape(z.shape)


def negentropy_bound(
    posterior: GaussianMixture,
    z: jax.Array,
    moments: AggregateMoments,
    fit: AggregateFit,
    covariance: Literal["diagonal", "full"] = "full",
    axis_name: str | None = None,
) -> tuple[jax.Array, AggregateFit]:
    """What KL(q(z) || N(0, I)) has at least beyond `aggregate_kl`, and the fit after this batch.

    Of any density r, E_q[log r - log p] is a lower bound on KL(q || p), off by KL(q || r).
    The Gaussian of q's moments gives `aggregate_kl`. In coordinates y in which that
    Gaussian is N(0, I) a mixture r(y) adds E_q[log r(y) - log N(y; 0, I)], at most q's
    negentropy (with "diagonal" what it and the correlations make together) and whatever
    scale z has. r was fitted to the steps before, so it knows nothing of these draws.

    Args:
      posterior: of the batch, logits [B, K].
      z: [T, B, K, D], `posterior.stratified_sample(key, (T,))`.
      moments: of the aggregate posterior, with its covariance for "full".
      fit: after the step before.
      covariance: that of `aggregate_kl` beside it.
      axis_name: mapped axis over whose replicas the batch is spread.

    Returns:
      Scalar, nats, an estimate from this replica's draws, at least log DEFENSIVE_WEIGHT;
      and the fit, the same on every replica.
    """
    chex.assert_equal_shape([z[0], posterior.mean])
    y = whiten(z, moments, covariance)
    normal = standard_normal(z.shape[-1])
    mixture = jax.lax.stop_gradient(fit.mixture())
    weights = jnp.broadcast_to(posterior.weights, z.shape[:-1]) / z[..., 0, 0].size
    bound = jnp.sum(weights * (mixture.log_prob(y) - normal.log_prob(y)))
    return bound, fit.updated(
        y.reshape(-1, z.shape[-1]), weights.reshape(-1), axis_name
    )
