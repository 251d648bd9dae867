"""What training carries from step to step, and how it starts."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.flatten_util import ravel_pytree

from gamix_jax.aggregate_fit import AggregateFit, initial_fit
from gamix_jax.mixture import AggregateMoments
from gamix_jax.models import Autoencoder, PatchDiscriminator


@flax.struct.dataclass
class TrainState:
    """Both players and what averages them; a pytree of arrays, replicated on every device.

    Attributes:
      step: int32 scalar, steps done.
      skipped: int32 scalar, how many of them changed nothing, for they diverged
        (divergence.py).
      key: [2] (of JAX's default kind), uint32, the run's random key; it never changes,
        each step folds its number into it. Not a typed key: pmap of several processes
        reads those back to the host at every call (jax 0.10 to 0.12), which stalls each
        step on the one before.
      generator_params, generator_batch_stats, generator_opt_state: of the autoencoder.
      ema_params, ema_batch_stats: exponential moving averages of the autoencoder's, for
        samples and evaluation.
      moments: of the aggregate posterior, remembered from the steps before (with
        objective.moment_decay; else the last step's); with their covariance where the
        objective uses it. Zeros where objective.kl is not "aggregate".
      aggregate_fit: the mixture that follows the aggregate posterior, where the objective
        has one (objective.negentropy_components).
      discriminator_params, discriminator_batch_stats, discriminator_opt_state: without
        arrays to train where there is no adversarial loss.
    """

    step: jax.Array
    skipped: jax.Array
    key: jax.Array
    generator_params: Any
    generator_batch_stats: Any
    generator_opt_state: Any
    ema_params: Any
    ema_batch_stats: Any
    moments: AggregateMoments
    aggregate_fit: AggregateFit | None
    discriminator_params: Any
    discriminator_batch_stats: Any
    discriminator_opt_state: Any


def make_models(
    config: ml_collections.ConfigDict,
) -> tuple[Autoencoder, PatchDiscriminator]:
    """The two networks that a configuration describes."""
    dtype = jnp.dtype(config.model.dtype)
    autoencoder = Autoencoder(
        image_size=config.data.size,
        channels=config.data.channels,
        **{**config.model, "widths": tuple(config.model.widths), "dtype": dtype},
    )
    return autoencoder, PatchDiscriminator(**config.discriminator, dtype=dtype)


def make_optimizers(
    config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam for the autoencoder and for the discriminator, each of its parameters as one vector: a call of the step costs by the array."""
    return tuple(
        optax.adam(
            learning_rate,
            b1=config.optimizer.beta1,
            b2=config.optimizer.beta2,
            eps=1e-7,
        )
        for learning_rate in (
            config.optimizer.generator_learning_rate,
            config.optimizer.discriminator_learning_rate,
        )
    )


def rate_factor(
    config: ml_collections.ConfigDict, step: jax.Array
) -> jax.Array | float:
    """What multiplies both learning rates: 1, then down a line that is 0 after the last step (the linear cooldown of Haegele et al. 2024, arXiv 2405.18392).

    A function of the step and no part of the optimisers' states, so that a run begun
    without can go on with it.

    Args:
      config: the whole.
      step: int32 scalar, steps done before this one.

    Returns:
      Scalar in [0, 1], above 0 before the last step is done.
    """
    if config.optimizer.decay_fraction == 0:
        return 1.0
    steps = config.train.steps
    return jnp.clip((steps - step) / (config.optimizer.decay_fraction * steps), 0, 1)


def create_state(config: ml_collections.ConfigDict) -> TrainState:
    """The state at step 0: a function of the configuration alone, so the same on every host."""
    autoencoder, discriminator = make_models(config)
    generator_optimizer, discriminator_optimizer = make_optimizers(config)
    size, channels = config.data.size, config.data.channels
    zeros = jnp.zeros(config.model.latent_size)
    components = config.objective.negentropy_components

    @jax.jit
    def initialize(key: jax.Array) -> TrainState:
        generator_key, discriminator_key, run_key = jax.random.split(key, 3)
        images = jnp.zeros((1, size, size, channels))
        generator = autoencoder.init(
            generator_key, images, jax.random.split(run_key, 1)
        )
        params, batch_stats = generator["params"], generator.get("batch_stats", {})
        opponent = (
            discriminator.init(discriminator_key, images)
            if config.adversarial.loss != "none"
            else {"params": {}}
        )
        return TrainState(
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            key=jax.random.key_data(run_key),
            generator_params=params,
            generator_batch_stats=batch_stats,
            generator_opt_state=generator_optimizer.init(ravel_pytree(params)[0]),
            ema_params=params,
            ema_batch_stats=batch_stats,
            moments=AggregateMoments(
                zeros,
                zeros,
                zeros,
                jnp.diag(zeros) if config.objective.covariance == "full" else None,
            ),
            aggregate_fit=initial_fit(
                jax.random.fold_in(generator_key, 1), components, len(zeros)
            )
            if components
            else None,
            discriminator_params=opponent["params"],
            discriminator_batch_stats=opponent.get("batch_stats", {}),
            discriminator_opt_state=discriminator_optimizer.init(
                ravel_pytree(opponent["params"])[0]
            )
            if opponent["params"]
            else optax.EmptyState(),
        )

    return initialize(jax.random.key(config.seed))
