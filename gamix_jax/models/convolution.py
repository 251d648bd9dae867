"""The convolution of the autoencoder and the discriminator."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.models import winograd

FEWEST_CHANNELS = 32  # with fewer the transforms take what the products save


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`; where JAX's default backend is a CPU, in fewer products and between barriers.

    Fewer products: `winograd.convolve`, of what it is faster at (`_is_for_winograd`).
    Optimisation barriers: XLA on CPU otherwise computes what goes into a convolution, or
    into one of its gradients, anew in the layout of each that reads it: the sum of a
    residual stream's gradients for every convolution that it passes
    (docs/performance.md). Only programs compiled with `gamix_jax.cpu.compiler_options`
    keep the barriers.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **kwargs)
    images = jax.lax.optimization_barrier(images)
    if _is_for_winograd(images, kernel, strides, padding, **kwargs):
        result = winograd.convolve(images, kernel)
    else:
        result = jax.lax.conv_general_dilated(
            images, kernel, strides, padding, **kwargs
        )
    return jax.lax.optimization_barrier(result)


def _is_for_winograd(
    images, kernel, strides, padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1), **kwargs
) -> bool:
    return (
        kernel.shape[:2] == (3, 3)
        and {*strides, *lhs_dilation, *rhs_dilation} == {1}
        and padding == "SAME"
        and kernel.shape[2] == images.shape[3]  # no groups
        and images.shape[1] % 4 == 0
        and images.dtype == jnp.float32
        and min(kernel.shape[2:]) >= FEWEST_CHANNELS
    )


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
