"""Steps that are left out, for they would spoil the state: of what is not finite, or a gradient of the autoencoder far beyond the usual."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gamix_jax.objective import Metrics
from gamix_jax.state import TrainState

# Largest gradient_ratio of a step that is taken. One run on faces that diverged (docs/results.md)
# had up to 4.1 before, and 2e11 at last. It sees jumps alone: with beta2 = 0.999 the ratio is,
# late in a run, at most 32 times the growth since the step before.
LARGEST_RATIO = 100.0
FIRST_STEPS = 100  # taken before the usual is known


def gradient_ratio(norm: jax.Array, opt_state: Any, decay: float) -> jax.Array:
    """A gradient's norm over the root mean square of those before it, which Adam remembers.

    Args:
      norm: scalar.
      opt_state: Adam's, before the step.
      decay: of its second moments, config.optimizer.beta2.

    Returns:
      Scalar; 1 until FIRST_STEPS steps were taken. A large gradient that was taken
      raises the usual for some thousands of steps.
    """
    second_moments, count = (optax.tree.get(opt_state, x) for x in ("nu", "count"))
    usual = jnp.sqrt(jnp.sum(second_moments) / (1.0 - decay**count))
    return jnp.where(count < FIRST_STEPS, 1.0, norm / usual)


def unless_diverged(
    metrics: Metrics, after: TrainState, before: TrainState
) -> tuple[TrainState, Metrics]:
    """The state after a step, or that before it, but for the counts, where the step diverges; and the metrics with the number of such steps."""
    finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
    sound = finite & (metrics["generator_gradient_ratio"] <= LARGEST_RATIO)
    skipped = before.replace(step=after.step, skipped=before.skipped + 1)
    state = jax.tree.map(lambda a, b: jax.lax.select(sound, a, b), after, skipped)
    return state, metrics | {"skipped_steps": state.skipped.astype(jnp.float32)}


def reason(step: int, values: dict[str, float]) -> str:
    """Why a step of these metrics was left out; empty if it was not."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        # The terms first; the losses and norms that they spoil follow.
        bad.sort(key=lambda name: name.startswith(("generator_", "discriminator_")))
        return f"Not finite at step {step}: {', '.join(bad)}"
    ratio = values["generator_gradient_ratio"]
    if ratio > LARGEST_RATIO:
        return f"Diverged at step {step}: the gradient is {ratio:,.0f} times the usual"
    return ""
