"""A mixture of Gaussians that follows the aggregate posterior q(z) as it trains, and so sees what two moments do not: holes, clusters, tails."""

import math
from typing import Literal

import chex
import flax.struct
import jax
import jax.numpy as jnp

from gamix_jax.losses import correlation_root
from gamix_jax.mixture import AggregateMoments, GaussianMixture, standard_normal

# Step size of online EM, the weight of the newest draws: (step + 2)^-0.6, within the
# exponents that converge (1/2 to 1), down to a memory of 100 steps, for q(z) moves. Begun
# with a small one, the components take hundreds of steps to become different.
EXPONENT = -0.6
LEAST_STEP_SIZE = 0.01
# Of draws from N(0, I), shared by the components, beside one of q(z): a component that no
# image uses returns to the middle, where it finds some.
PSEUDO_DRAWS = 0.01
# Weight of one more component, N(0, I) (a defensive mixture, Hesterberg 1995): what a draw
# gains by being where no other component reaches is at most -log 0.01 = 4.6 nats.
DEFENSIVE_WEIGHT = 0.01
LEAST_VARIANCE = 0.01  # of whitened draws; E[y^2] - E[y]^2 is exact to about 1e-6


@flax.struct.dataclass
class AggregateFit:
    """Sufficient statistics of C Gaussians with diagonal covariances, of whitened draws.

    Attributes:
      share: [C], average responsibility of each component; together 1 but for what the
        defensive component has.
      first: [C, D], average of responsibility times draw.
      second: [C, D], average of responsibility times squared draw.
    """

    share: jax.Array
    first: jax.Array
    second: jax.Array

    def mixture(self) -> GaussianMixture:
        """The fitted Gaussians and, as the last of C + 1 components, N(0, I); without leading axes."""
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
        self,
        y: jax.Array,
        responsibilities: jax.Array,
        step: jax.Array,
        axis_name: str | None = None,
    ) -> "AggregateFit":
        """After one step of online EM (Cappe and Moulines 2009).

        Args:
          y: [n, D], whitened draws.
          responsibilities: [n, C + 1], of `mixture()`'s components for the draws, times
            the draws' weights; 1 together.
          step: steps done before this one.
          axis_name: mapped axis over whose replicas the draws are spread.

        Returns:
          The same on every replica.
        """
        weighted = responsibilities[:, :-1].T
        newest = AggregateFit(
            jnp.sum(weighted, axis=1),
            *(jnp.matmul(weighted, x, precision="highest") for x in (y, y * y)),
        )
        if axis_name is not None:
            with jax.named_scope("moments"):
                newest = jax.lax.pmean(newest, axis_name)
        size = jnp.maximum((step + 2.0) ** EXPONENT, LEAST_STEP_SIZE)
        return jax.tree.map(
            lambda old, new: (1.0 - size) * old + size * new, self, newest
        )


def initial_fit(key: jax.Array, components: int, dimensions: int) -> AggregateFit:
    """C Gaussians of variance D / (D + 1) about draws from N(0, I / (D + 1)): different, and in any dimension near enough to N(0, I) to be responsible for its draws."""
    apart = 1.0 / (dimensions + 1)
    mean = math.sqrt(apart) * jax.random.normal(key, (components, dimensions))
    return AggregateFit(
        jnp.full(components, 1.0 / components),
        mean / components,
        (jnp.square(mean) + 1.0 - apart) / components,
    )


def whiten(
    z: jax.Array, moments: AggregateMoments, covariance: Literal["diagonal", "full"]
) -> jax.Array:
    """Coordinates in which the Gaussian that `aggregate_kl` makes of the moments ("total") is N(0, I).

    Args:
      z: [..., D].
      moments: of the aggregate posterior; "full" needs their covariance.
      covariance: "diagonal" or "full".

    Returns:
      [..., D].

    Raises:
      ValueError: another `covariance`, or "full" of moments without covariance.
    """
    if covariance not in ("diagonal", "full"):
        raise ValueError(
            f'covariance must be "diagonal" or "full", not {covariance!r}.'
        )
    variance = moments.between + moments.within
    variance = jnp.maximum(variance, jnp.finfo(variance.dtype).tiny)
    scale = jax.lax.rsqrt(variance)
    y = (z.reshape(-1, len(variance)) - moments.mean[None]) * scale[None]
    if covariance == "full":
        if moments.covariance is None:
            raise ValueError('covariance="full" needs moments with their covariance.')
        root = correlation_root(moments.covariance, variance)
        y = jax.scipy.linalg.solve_triangular(root, y.T, lower=True).T
    return y.reshape(z.shape)


def negentropy_bound(
    posterior: GaussianMixture,
    z: jax.Array,
    moments: AggregateMoments,
    fit: AggregateFit,
    step: jax.Array,
    covariance: Literal["diagonal", "full"],
    axis_name: str | None = None,
) -> tuple[jax.Array, AggregateFit]:
    """What KL(q(z) || N(0, I)) has at least beyond `aggregate_kl`, and the fit after this batch.

    Of any density r, E_q[log r - log p] is a lower bound on KL(q || p), off by KL(q || r).
    The Gaussian of q's moments gives `aggregate_kl`. In coordinates y in which that
    Gaussian is N(0, I), a mixture r(y) adds E_q[log r(y) - log N(y; 0, I)]: with "full" a
    lower bound on q's negentropy, with "diagonal" on the sum of that and -1/2 log det of
    the correlations. r was fitted to the steps before and knows nothing of these draws;
    its gradient is left out, since it is 0 where r is the best.

    q(z) is that of this batch, and the moments are its own. With remembered moments, which
    lag, the sum with `aggregate_kl` is no bound but an approximation; and the whole data's
    q(z) is on average nearer to N(0, I) than a batch's.

    Args:
      posterior: of the batch, logits [B, K].
      z: [T, B, K, D], `posterior.stratified_sample(key, (T,))`.
      moments: of the aggregate posterior; "full" needs their covariance.
      fit: after the step before.
      step: steps done before this one.
      covariance: that of `aggregate_kl` beside it.
      axis_name: mapped axis over whose replicas the batch is spread.

    Returns:
      Scalar, nats, an estimate from this replica's draws, at least log DEFENSIVE_WEIGHT;
      and the fit, the same on every replica, without gradient.

    Raises:
      ValueError: see `whiten`.
    """
    chex.assert_equal_shape([z[0], posterior.mean])
    y = whiten(z, moments, covariance).reshape(-1, z.shape[-1])
    weights = jnp.broadcast_to(posterior.weights, z.shape[:-1]).reshape(-1)
    weights /= z.shape[0] * z.shape[1]
    log_prob = jax.lax.stop_gradient(fit).mixture().component_log_prob(y)
    log_ratio = jax.nn.logsumexp(log_prob, axis=1) - standard_normal(
        z.shape[-1]
    ).log_prob(y)
    responsibilities = weights[:, None] * jax.nn.softmax(log_prob, axis=1)
    return jnp.sum(weights * log_ratio), fit.updated(
        *jax.lax.stop_gradient((y, responsibilities)), step, axis_name
    )
