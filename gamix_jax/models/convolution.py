"""The convolution of the autoencoder and the discriminator."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.models import winograd

NHWC = ("NHWC", "HWIO", "NHWC")
FEWEST_CHANNELS = 32  # at 16 a layer alone gained little (docs/performance.md)


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Any,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` as Flax calls it; where JAX's default backend is a CPU, in fewer products and between barriers.

    Fewer products: 3x3 convolutions that keep the size, of float32 and many channels, by
    `winograd.convolve` (a CPU has one precision of float32). Optimisation barriers: XLA
    on CPU otherwise computes what goes into a convolution, or into one of its gradients,
    anew in the layout of each that reads it: the sum of a residual stream's gradients for
    every convolution that it passes (docs/performance.md). Only programs compiled with
    `gamix_jax.cpu.compiler_options` keep the barriers.
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        images = jax.lax.optimization_barrier(images)
    numbers = jax.lax.conv_dimension_numbers(
        images.shape, kernel.shape, dimension_numbers
    )
    if (
        on_cpu
        and numbers == jax.lax.conv_dimension_numbers(images.shape, kernel.shape, NHWC)
        and kernel.shape[:2] == (3, 3)
        and {*strides, *lhs_dilation, *rhs_dilation, feature_group_count} == {1}
        and padding == "SAME"
        and images.shape[1] % 4 == 0
        and images.dtype == kernel.dtype == jnp.float32
        and min(kernel.shape[2:]) >= FEWEST_CHANNELS
    ):
        result = winograd.convolve(images, kernel)
    else:
        result = jax.lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            dimension_numbers=numbers,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
        )
    return jax.lax.optimization_barrier(result) if on_cpu else result


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
