"""Where the latent vectors of new images are drawn from: the prior, or a mixture fitted to the aggregate posterior after training."""

import math
import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from gamix_jax.errors import InputError
from gamix_jax.metrics.estimate import Estimate, mean_estimate
from gamix_jax.mixture import GaussianMixture, standard_normal

FITTED_COMPONENTS = 10  # as pythae's GaussianMixtureSampler
FULL_COVARIANCE_UP_TO = 128  # latent dimensions; above it the fit is diagonal
FACTORS_AT_ONCE = 1_000  # of [D, D], 64 MiB


class LatentSampler(NamedTuple):
    """A mixture of C Gaussians that latent vectors are drawn from.

    Attributes:
      log_weights: [C], normalised.
      mean: [C, D].
      factor: [C, D, D], the lower Cholesky factor of each covariance, or [C, D], standard deviations.
    """

    log_weights: jax.Array
    mean: jax.Array
    factor: jax.Array

    def draw(
        self,
        key: jax.Array,
        n: int,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> jax.Array:
        """n latent vectors, [n, D].

        Args:
          key: random key.
          n: how many.
          temperature: factor of the standard deviations; below 1 samples are more typical.
          truncation: largest absolute value of the standard normal noise, positive; None
            is no limit (Brock et al. 2019, "truncation trick").

        Raises:
          InputError: a temperature or a truncation that is not positive and finite.
        """
        for name, value in (("temperature", temperature), ("truncation", truncation)):
            if value is not None and not 0.0 < value < math.inf:
                raise InputError(f"The {name} is {value}; it must be positive.")
        return _draw(self, key, n, temperature, truncation)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Log density at latent vectors [n, D]; [n], nats."""

        def of_component(mean: jax.Array, factor: jax.Array) -> jax.Array:
            if factor.ndim == 1:
                noise, scales = (z - mean[None]) / factor[None], factor
            else:
                noise = solve_triangular(factor, (z - mean[None]).T, lower=True).T
                scales = jnp.diagonal(factor)
            return jnp.sum(norm.logpdf(noise) - jnp.log(scales)[None], axis=-1)

        log_probs = jax.vmap(of_component)(self.mean, self.factor)
        return jax.nn.logsumexp(log_probs + self.log_weights[:, None], axis=0)

    def kl_lower_bound(self, z: jax.Array) -> Estimate:
        """A lower bound on KL(q || N(0, I)), in expectation over draws of q to which this mixture r was not fitted.

        E_q[log r(z) - log N(z; 0, I)] is KL(q || N(0, I)) - KL(q || r), which for too few
        images to fit r can be negative: the fit costs about (parameters of r) / (2 N)
        nats of N images. Of draws of held-out images' posteriors, q is the q(z) of all
        images there could be, which is nearer to N(0, I) than that of N images with narrow
        posteriors (`bounds.aggregate_kl_bounds`).

        Args:
          z: [n, D].

        Returns:
          Nats; the standard error is of the draws, the fit held fixed.
        """
        return mean_estimate(self.log_prob(z) - standard_normal(z.shape[1]).log_prob(z))


@partial(jax.jit, static_argnames="n")
def _draw(
    sampler: LatentSampler,
    key: jax.Array,
    n: int,
    temperature: float,
    truncation: float | None,
) -> jax.Array:
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, sampler.log_weights, shape=(n,))
    shape = (n, sampler.mean.shape[-1])
    noise = (
        jax.random.normal(noise_key, shape)
        if truncation is None
        else jax.random.truncated_normal(noise_key, -truncation, truncation, shape)
    )

    def moved(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
        component, noise = drawn
        factor = sampler.factor[component]
        full = factor.ndim == 2
        spread = (
            jnp.matmul(factor, noise, precision="highest") if full else factor * noise
        )
        return sampler.mean[component] + temperature * spread

    # Full factors are [D, D] for each draw.
    return jax.lax.map(moved, (component, noise), batch_size=FACTORS_AT_ONCE)


def prior_sampler(prior: GaussianMixture) -> LatentSampler:
    """Draws from p(z), a mixture without leading axes."""
    return LatentSampler(prior.log_weights, prior.mean, jnp.exp(0.5 * prior.log_var))


def fit_sampler(
    z: np.ndarray, seed: int, components: int = FITTED_COMPONENTS
) -> LatentSampler:
    """Draws from a mixture fitted to the aggregate posterior by expectation maximisation (Ghosh et al. 2020, "ex-post density estimation").

    Args:
      z: [N, D], one draw from the posterior of each of N training images.
      seed: of the first assignment.
      components: at most; 1 gives the Gaussian of z's own mean and covariances.

    Returns:
      The mixture, with full covariances up to FULL_COVARIANCE_UP_TO dimensions, above
      with variances alone.
    """
    full = z.shape[1] <= FULL_COVARIANCE_UP_TO
    components = max(1, min(components, len(z) // (2 * z.shape[1])))
    fitted = SklearnMixture(
        components, covariance_type="full" if full else "diag", random_state=seed
    )
    with warnings.catch_warnings():  # 100 iterations are near enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(z.astype(np.float64))
    covariance = fitted.covariances_
    factor = np.linalg.cholesky(covariance) if full else np.sqrt(covariance)
    return LatentSampler(
        *(
            jnp.asarray(x, jnp.float32)
            for x in (np.log(fitted.weights_), fitted.means_, factor)
        )
    )
