"""PatchGAN discriminator (Isola et al. 2017): one logit for each overlapping patch of the image."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.models.convolution import Conv
from gamix_jax.models.normalization import Norm, Normalization


class PatchDiscriminator(nn.Module):
    """3x3 convolutions, each with normalisation and LeakyReLU of slope 0.3 (arXiv 2309.13160), then one to the logits.

    Attributes:
      widths: channels of each convolution before the last.
      strides: of the same convolutions, as many.
      norm: "batch", "group" or "affine" (see `Normalization`).
      norm_logits: normalise the logits too, as the published code does.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
    """

    widths: Sequence[int] = (128, 128, 128, 64, 64)
    strides: Sequence[int] = (2, 2, 2, 1, 1)
    norm: Norm = "batch"
    norm_logits: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] to logits [B, H', W', 1], float32; high means real.

        Raises:
          ValueError: `widths` and `strides` differ in length.
        """
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"widths {self.widths} and strides {self.strides} differ in length."
            )
        x = images
        for width, stride in zip(self.widths, self.strides, strict=True):
            x = Conv(width, (3, 3), strides=stride, dtype=self.dtype)(x)
            x = nn.leaky_relu(
                Normalization(self.norm, self.dtype)(x, train), negative_slope=0.3
            )
        x = Conv(1, (3, 3), dtype=self.dtype)(x).astype(jnp.float32)
        return Normalization(self.norm)(x, train) if self.norm_logits else x
