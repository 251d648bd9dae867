"""The convolution of the autoencoder and the discriminator."""

import functools

import flax.linen as nn
import jax


def convolve(images: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, where JAX's default backend is a CPU between optimisation barriers.

    XLA on CPU otherwise computes what goes into a convolution, or into one of its
    gradients, anew in the layout of each that reads it: the sum of a residual stream's
    gradients for every convolution that it passes (docs/performance.md). Only programs
    compiled with `gamix_jax.cpu.compiler_options` keep the barriers.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(images, kernel, *args, **kwargs)
    images = jax.lax.optimization_barrier(images)
    result = jax.lax.conv_general_dilated(images, kernel, *args, **kwargs)
    return jax.lax.optimization_barrier(result)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
