"""The convolution of the autoencoder and the discriminator."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.models import winograd

NHWC = ("NHWC", "HWIO", "NHWC")
FEWEST_CHANNELS = 32  # at 16 a layer alone gained little (docs/performance.md)


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, C] and [h, w, C, D]; where JAX's default backend is a CPU, in fewer products and between barriers.

    Fewer products: 3x3 convolutions that keep the size, of float32 and many channels, by
    `winograd.convolve`. Optimisation barriers: XLA on CPU otherwise computes what goes
    into a convolution, or into one of its gradients, anew in the layout of each that
    reads it: the sum of a residual stream's gradients for every convolution that it
    passes (docs/performance.md). Only programs compiled with
    `gamix_jax.cpu.compiler_options` keep the barriers.
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        images = jax.lax.optimization_barrier(images)
    if (
        on_cpu
        and kernel.shape[:2] == (3, 3)
        and stride == 1
        and padding == "SAME"
        and images.shape[1] % 4 == 0
        and images.dtype == kernel.dtype == jnp.float32
        and min(kernel.shape[2:]) >= FEWEST_CHANNELS
    ):
        result = winograd.convolve(images, kernel)
    else:
        result = jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), padding, dimension_numbers=NHWC
        )
    return jax.lax.optimization_barrier(result) if on_cpu else result


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., C] + bias [C], of x's type; the bias's gradient is summed in the bias's type.

    XLA on CPU sums bfloat16 in bfloat16, where a sum grows no more once a summand is below
    2^-9 of it, as it does for the biases of Flax's layers (docs/performance.md).
    """
    # Cast after broadcasting: backwards that is cast first, then sum.
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


class Conv(nn.Module):
    """Convolution of "SAME" padding: Flax's, with the same parameters, by `convolve` and `add_bias`.

    Attributes:
      features: channels of the result.
      kernel_size: height and width of the window, pixels.
      strides: pixels from window to window, down and across.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / strides, W / strides, features], rounded up."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return add_bias(convolve(x, kernel, self.strides, "SAME"), bias)
