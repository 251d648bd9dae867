"""The choice of normalisation that all networks share."""

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Norm = Literal["batch", "group", "affine"]


@functools.partial(jax.jit, static_argnames="num_groups")
def group_normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int
) -> jax.Array:
    """[B, ..., C] normalised over pixels and the channels of each group, float32; scale and bias are [C].

    Sums over pixels first and over the channels of a group after, which XLA does 2 to 3
    times faster on CPU than both at once (docs/performance.md). A jitted function is
    traced once for layers of the same shape.
    """
    pixels = tuple(range(1, x.ndim - 1))

    def over_groups(of_channels: jax.Array) -> jax.Array:
        """[B, C], means over pixels, to [B, C], those of the group."""
        of_groups = of_channels.reshape(len(x), num_groups, -1)
        means = of_groups.mean(2, keepdims=True)
        return jnp.broadcast_to(means, of_groups.shape).reshape(of_channels.shape)

    mean = over_groups(x.mean(pixels))
    variance = over_groups(jnp.square(x).mean(pixels)) - jnp.square(mean)
    factor = scale[None] * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-6)
    offset = bias[None] - mean * factor
    # One multiplication and one addition a value, whose gradients keep x alone.
    return x * jnp.expand_dims(factor, pixels) + jnp.expand_dims(offset, pixels)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018): flax's, with the same parameters, by `group_normalize`.

    Attributes:
      num_groups: a divisor of the channels.
      dtype: of the result; statistics are float32.
    """

    num_groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] to [B, ..., C]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = group_normalize(x.astype(jnp.float32), scale, bias, self.num_groups)
        return y.astype(self.dtype)


class Normalization(nn.Module):
    """Normalisation over channels, one of three kinds.

    Attributes:
      kind: "batch", with statistics averaged over the mapped axis "batch" in training
        (Ioffe and Szegedy 2015); "group", at least four channels a group and at most 32
        groups, which does not tie an image to its batch (Wu and He 2018); "affine",
        batch normalisation whose statistics stay as they were initialised (mean 0,
        variance 1) or loaded, that is a learned scale and offset, as the published code
        of arXiv 2309.13160 runs.
      dtype: of the computation; statistics are float32.
    """

    kind: Norm = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ..., C] to [B, ..., C]."""
        if self.kind == "group":
            channels = x.shape[-1]
            groups = max(1, min(math.gcd(32, channels), channels // 4))
            return GroupNorm(groups, self.dtype)(x)
        if self.kind not in ("batch", "affine"):
            raise ValueError(
                f'norm must be "batch", "group" or "affine", not {self.kind!r}.'
            )
        return nn.BatchNorm(
            use_running_average=not train or self.kind == "affine",
            momentum=0.99,
            epsilon=1e-3,
            dtype=self.dtype,
            axis_name="batch",
        )(x)
