"""The convolution of all networks, with a gradient that is fast on CPU too."""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

# Bytes of copies at a time, about what a core's share of the last cache holds.
CACHE = 2 * 2**20

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **unused,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of images [B, H, W, C] with a kernel [h, w, C, F], without dilation or groups.

    XLA on CPU computes its gradient with respect to the kernel 1.6 to 9 times slower than
    as many multiplications take as matrix products (docs/performance.md); there it is
    made of such products.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, F].
      strides: of rows and columns.
      padding: "SAME", "VALID", or pixels before and after, of rows and columns.
      unused: what `nn.Conv` says to every convolution.

    Returns:
      [B, H', W', F].
    """
    x, kernel, strides = jnp.asarray(x), jnp.asarray(kernel), tuple(strides)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            x.shape[1:3], kernel.shape[:2], strides, padding
        )
    padding = tuple(tuple(pixels) for pixels in padding)
    on_cpu = jax.default_backend() == "cpu"
    return (_convolve_on_cpu if on_cpu else _convolve)(x, kernel, strides, padding)


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_convolve_on_cpu = jax.custom_jvp(_convolve, nondiff_argnums=(2, 3))


@partial(_convolve_on_cpu.defjvp, symbolic_zeros=True)
def _convolve_jvp(
    strides: tuple[int, int], padding: Padding, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    """The product rule; what is linear in the kernel has matrix products as its transpose, the gradient."""
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
        terms.append(_convolve(dx, kernel, strides, padding))
    if not isinstance(dkernel, jax.custom_derivatives.SymbolicZero):
        terms.append(_convolve_by_products(x, dkernel, strides, padding))
    return _convolve(x, kernel, strides, padding), sum(terms[1:], terms[0])


def _convolve_by_products(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """`_convolve` as a product of the kernel with a copy of the images for each of its taps, for a few images at a time."""
    height, width, _, features = kernel.shape
    of_rows = kernel.reshape(height, -1, features).swapaxes(1, 2)
    down, right = strides

    # The copies are made again for the gradient, not kept.
    @jax.checkpoint
    def of_some(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
        taps = [x[:, :, j : j + columns : right] for j in range(width)]
        x = jnp.concatenate(taps, -1)
        return sum(
            jnp.einsum("bhwi,oi->bhwo", x[:, i : i + rows : down], of_rows[i])
            for i in range(height)
        )

    copied = height * width * x[0].size * x.dtype.itemsize // (down * right)
    at_once = math.gcd(len(x), 2 ** int(math.log2(max(1, CACHE // copied))))
    y = jax.lax.map(of_some, x.reshape(-1, at_once, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


Conv = partial(nn.Conv, conv_general_dilated=convolve)
