"""What the autoencoder minimises: the one place where its terms are weighted (the adversarial one is added in the step)."""

import jax
import jax.numpy as jnp
import ml_collections

from gamix_jax import losses
from gamix_jax.aggregate_fit import AggregateFit, negentropy_bound
from gamix_jax.mixture import (
    AggregateMoments,
    GaussianMixture,
    aggregate_moments,
    components_used,
    remembered_moments,
)
from gamix_jax.models import Autoencoding

Metrics = dict[str, jax.Array]


def autoencoder_objective(
    config: ml_collections.ConfigDict,
    images: jax.Array,
    coding: Autoencoding,
    memory: AggregateMoments,
    fit: AggregateFit | None,
    step: jax.Array,
    axis_name: str,
) -> tuple[jax.Array, tuple[Metrics, AggregateMoments, AggregateFit | None]]:
    """The autoencoder's loss but for the adversarial term (arXiv 2309.13160).

    Args:
      config: the section `objective` gives weights and forms.
      images: [B, H, W, C] in [-1, 1].
      coding: what the autoencoder makes of them.
      memory: the aggregate's moments after the step before.
      fit: the mixture that follows it, after the step before; None without.
      step: steps done before this one.
      axis_name: mapped axis of the replicas.

    Returns:
      The loss, a scalar; its terms before weighting, with statistics of the posterior;
      the aggregate's moments, where the objective has them, and the fit after this step.
      The moments' KL, "active_units" and "components_used" are of the global batch, all
      else of this replica's.
    """
    objective = config.objective
    posterior, prior, z, reconstruction = coding
    # 1. reconstruction: (1/T) sum_t sum_k pi_k |x - x^_tk|
    errors = losses.component_errors(images, reconstruction)
    reconstruction_term = jnp.mean(jnp.sum(posterior.weights[None] * errors, axis=2))
    # 2. KL: of the aggregate, 1/2 (m.m + tr C - D - log det C) with C diagonal or full;
    # or the mean of each image's
    if objective.kl == "aggregate":
        moments = _moments(objective, posterior, memory, step, axis_name)
        kl = losses.aggregate_kl(moments, objective.variance, objective.covariance)
    else:
        moments = memory
        kl = jnp.mean(losses.posterior_kl(posterior, z, prior))
    kl_weight = objective.kl_weight * jnp.minimum(
        1.0, (1.0 + step) / max(1, objective.kl_warmup)
    )
    weighted = objective.reconstruction_weight * reconstruction_term + kl_weight * kl
    # 3. collapse = sum_k pi_k sum_d (exp s / t - 1 - log(exp s / t))
    collapse = jnp.mean(losses.collapse_penalty(posterior, objective.collapse_target))
    entropy = jnp.mean(losses.component_entropy(posterior))
    terms = {
        "reconstruction": reconstruction_term,
        "kl": kl,
        "collapse_penalty": collapse,
        "component_entropy": entropy,
        "components_used": components_used(posterior, axis_name),
        **_spread(coding, axis_name),
    }
    if fit is not None:
        # The aggregate's KL beyond its moments, at least.
        terms["negentropy_bound"], fit = negentropy_bound(
            posterior, z, moments, fit, step, objective.covariance, axis_name
        )
        weighted += kl_weight * objective.negentropy_weight * terms["negentropy_bound"]
    if objective.kl == "siwae":
        # In place of 1 and 2, which are then reported alone: the same at T = K = 1.
        weight = objective.reconstruction_weight / kl_weight
        siwae = jnp.mean(losses.mixture_siwae(-weight * errors, posterior, z, prior))
        weighted = -kl_weight * siwae
        terms["siwae"] = siwae
    loss = (
        weighted
        + objective.collapse_weight * collapse
        - objective.component_entropy_weight * entropy
    )
    return loss, (terms, jax.lax.stop_gradient(moments), fit)


def _moments(
    objective: ml_collections.ConfigDict,
    posterior: GaussianMixture,
    memory: AggregateMoments,
    step: jax.Array,
    axis_name: str,
) -> AggregateMoments:
    """Of the batch, or with those of the batches before."""
    if objective.moment_decay == 0:
        return aggregate_moments(posterior, axis_name, objective.covariance == "full")
    # At first the plain average of all steps, which owes nothing to how it began; a run
    # that had another objective so far has no memory yet.
    newest = jnp.maximum(1.0 - objective.moment_decay, 1.0 / (1.0 + step))
    newest = jnp.where(jnp.any(memory.within > 0.0), newest, 1.0)
    return remembered_moments(posterior, memory, newest, axis_name)


def _spread(coding: Autoencoding, axis_name: str) -> Metrics:
    """How wide the components are, and how many units tell images apart."""
    variance = jnp.exp(coding.posterior.log_var)
    # Burda et al. 2016: a unit is active where the variance over images of its
    # posterior mean exceeds 0.01.
    mean = coding.posterior.moments()[0]
    deviation = mean - jax.lax.pmean(jnp.mean(mean, axis=0), axis_name)[None]
    spread = jax.lax.pmean(jnp.mean(jnp.square(deviation), axis=0), axis_name)
    return {
        "variance_mean": jnp.mean(variance),
        "variance_min": jnp.min(variance),
        "active_units": jnp.sum(spread > 0.01).astype(jnp.float32),
    }
