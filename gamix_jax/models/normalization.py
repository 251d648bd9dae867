"""The choice of normalisation that all networks share."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Norm = Literal["batch", "group", "affine"]


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
            return nn.GroupNorm(num_groups=groups, dtype=self.dtype)(x)
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
