"""ResNetV2 encoder and decoder (pre-activation residual blocks, He et al. 2016), as arXiv 2309.13160 arranges them."""

import collections
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.models.convolution import Conv, add_bias, convolve
from gamix_jax.models.normalization import Norm, Normalization


class ConvTranspose(nn.Module):
    """3x3 transposed convolution of stride 2: the gradient of the "SAME" convolution of stride 2, as in TensorFlow.

    Each of the four phases of the output (even or odd row, even or odd column) is a
    plain convolution with the taps that reach it. It is the map of one dilated
    convolution, at the same number of multiplications, but XLA on CPU computes the
    weight gradient of the latter an order of magnitude slower.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, 2H, 2W, features]."""
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        # y[2j] = x[j] k[0] + x[j-1] k[2] and y[2j+1] = x[j] k[1], in rows and in
        # columns.
        taps = (slice(None, None, -2), slice(1, 2))  # even: k[2], k[0]; odd: k[1]

        def phase(rows: slice, columns: slice) -> jax.Array:
            reaching = kernel[rows, columns]
            before = ((reaching.shape[0] - 1, 0), (reaching.shape[1] - 1, 0))
            return convolve(x, reaching, 1, before)

        phases = jnp.stack(
            [jnp.stack([phase(r, c) for c in taps], axis=3) for r in taps], axis=2
        )
        batch, height, _, width, _, features = phases.shape
        return add_bias(phases.reshape(batch, 2 * height, 2 * width, features), bias)


class ResidualBlock(nn.Module):
    """Pre-activation residual block that keeps shape: three times norm, ReLU and convolution (3x3, 3x3, 1x1)."""

    norm: Norm = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C]."""
        y = x
        for kernel_size in (3, 3, 1):
            y = nn.relu(Normalization(self.norm, self.dtype)(y, train))
            y = Conv(x.shape[-1], (kernel_size, kernel_size), dtype=self.dtype)(y)
        return x + y


class DownsampleBlock(nn.Module):
    """Pre-activation residual block of stride 2, carried by the 1x1 convolution of each branch."""

    features: int
    norm: Norm = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H/2, W/2, features]."""
        y = x
        for _ in range(2):
            y = nn.relu(Normalization(self.norm, self.dtype)(y, train))
            y = Conv(x.shape[-1], (3, 3), dtype=self.dtype)(y)
        y = nn.relu(Normalization(self.norm, self.dtype)(y, train))
        y = Conv(self.features, (1, 1), strides=2, dtype=self.dtype)(y)
        shortcut = nn.relu(
            Normalization(self.norm, self.dtype, name="shortcut_norm")(x, train)
        )
        return (
            Conv(self.features, (1, 1), strides=2, dtype=self.dtype, name="shortcut")(
                shortcut
            )
            + y
        )


class UpsampleBlock(nn.Module):
    """Pre-activation residual block that doubles height and width by transposed convolutions in both branches."""

    features: int
    norm: Norm = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, 2H, 2W, features]."""
        y = nn.relu(Normalization(self.norm, self.dtype)(x, train))
        y = Conv(self.features, (1, 1), dtype=self.dtype)(y)
        y = nn.relu(Normalization(self.norm, self.dtype)(y, train))
        y = ConvTranspose(self.features, dtype=self.dtype)(y)
        shortcut = nn.relu(
            Normalization(self.norm, self.dtype, name="shortcut_norm")(x, train)
        )
        return (
            ConvTranspose(self.features, dtype=self.dtype, name="shortcut")(shortcut)
            + y
        )


def _blocks(remat: bool, norm: Norm, dtype: jnp.dtype) -> Callable[..., nn.Module]:
    """A maker of blocks, of a class and its own arguments, named as Flax names them, with remat or without.

    With remat a block's activations are computed again for the gradient, not kept.
    """
    made = collections.Counter()

    def make(block: type[nn.Module], **arguments) -> nn.Module:
        name = f"{block.__name__}_{made[block]}"
        made[block] += 1
        block = nn.remat(block, static_argnums=(2,)) if remat else block
        return block(norm=norm, dtype=dtype, name=name, **arguments)

    return make


class Encoder(nn.Module):
    """ResNetV2 encoder: a 3x3 convolution, per stage `blocks` residual blocks and one of stride 2, a 1x1 convolution.

    Attributes:
      widths: channels of each stage; their number is the number of stages, each of
        which halves height and width.
      blocks: residual blocks before the stride-2 block of each stage.
      bottleneck: channels of the output.
      norm: "batch", "group" or "affine" (see `Normalization`).
      input_norm: normalise each channel of an image over its pixels first, with a
        learned scale and offset per pixel, as the published code does. It removes the
        image's mean colour and contrast.
      remat: keep only what enters each block for the gradient, and compute the rest
        again (Chen et al. 2016): less memory, more time.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
    """

    widths: Sequence[int]
    blocks: int = 2
    bottleneck: int = 64
    norm: Norm = "batch"
    input_norm: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] to features [B, H / 2^stages, W / 2^stages, bottleneck].

        Raises:
          ValueError: the stages do not divide H and W.
        """
        stages = len(self.widths)
        if images.shape[1] % 2**stages or images.shape[2] % 2**stages:
            raise ValueError(
                f"Images of {images.shape[1:3]} pixels cannot be halved {stages} times."
            )
        x = images
        if self.input_norm:
            x = nn.LayerNorm(
                reduction_axes=(1, 2),
                feature_axes=(1, 2),
                epsilon=1e-3,
                dtype=self.dtype,
            )(x)
        x = Conv(self.widths[0], (3, 3), dtype=self.dtype)(x)
        make = _blocks(self.remat, self.norm, self.dtype)
        for width in (*self.widths[1:], self.widths[-1]):
            for _ in range(self.blocks):
                x = make(ResidualBlock)(x, train)
            x = make(DownsampleBlock, features=width)(x, train)
        return Conv(self.bottleneck, (1, 1), dtype=self.dtype)(x)


class Decoder(nn.Module):
    """ResNetV2 decoder, the encoder's mirror: per stage `blocks` residual blocks and one that doubles height and width.

    The last stage goes down to the image's channels, and a 1x1 convolution without
    activation ends it.

    Attributes:
      image_size: height and width of the images, pixels; a multiple of 2^stages.
      channels: of the images.
      widths: channels of each stage, in the encoder's order (they are used from last to
        first).
      blocks: residual blocks before the upsampling block of each stage.
      bottleneck: channels of the first feature map.
      norm: "batch", "group" or "affine" (see `Normalization`).
      remat: see `Encoder`.
      dtype: of the computation but for the dense layer, float32 or bfloat16; parameters
        are float32.
    """

    image_size: int
    channels: int
    widths: Sequence[int]
    blocks: int = 1
    bottleneck: int = 64
    norm: Norm = "batch"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Latent vectors [B, D] to images [B, image_size, image_size, channels], float32, about [-1, 1].

        Raises:
          ValueError: `image_size` is not a multiple of 2^stages.
        """
        size, remainder = divmod(self.image_size, 2 ** len(self.widths))
        if remainder:
            raise ValueError(
                f"Images of {self.image_size} pixels cannot come of doubling {len(self.widths)} times."
            )
        # In float32, for Flax sums the gradient of its bias in the layer's type; it has
        # .1 % of the products of a small network, and less of a large one. Precise, or
        # accelerators would round z to 8 to 11 bits, and with it the posterior's noise.
        x = nn.Dense(size * size * self.bottleneck, precision="highest")(z)
        x = x.reshape(-1, size, size, self.bottleneck)
        x = Conv(self.widths[-1], (3, 3), dtype=self.dtype)(x)
        make = _blocks(self.remat, self.norm, self.dtype)
        for width in (*self.widths[-2::-1], self.channels):
            for _ in range(self.blocks):
                x = make(ResidualBlock)(x, train)
            x = make(UpsampleBlock, features=width)(x, train)
        return Conv(self.channels, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)
