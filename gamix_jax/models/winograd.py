"""The 3x3 convolution with half the multiplications, for CPUs (Winograd's minimal filtering; Lavin and Gray, arXiv 1509.09308).

Four rows of the result come of six rows of the images, by F(4, 3) down the columns: with
the matrices of Lavin and Gray, section 4.3,

    result = OUTPUT [(KERNEL kernel) * (INPUT images)],

where * is the six convolutions of a row with the three taps of a row, instead of twelve
(three for each of the four rows of the result). Along the rows nothing is transformed. In
float32, results and gradients were off by up to 1.6e-6, 3.0e-6 and 4.0e-6 of the largest entry
at 32, 64 and 128 channels, and those of XLA's own convolution by up to 9e-7 (16x16 pixels,
noise, beside float64).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Points 0, 1, -1, 2, -2 and infinity: from six rows of images, three of a kernel, six of products.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
PADDING = ((0, 0), (1, 1))  # of a 1x3 convolution


def _combine(weights: Sequence[float], arrays: Sequence[jax.Array]) -> jax.Array:
    terms = [
        array if w == 1 else w * array
        for w, array in zip(weights, arrays, strict=True)
        if w
    ]
    return functools.reduce(jax.lax.add, terms)


def _transform(images: jax.Array) -> list[jax.Array]:
    """Images [B, H, W, C] at the six points, each [B, H/4, W, C], behind barriers: nothing computes them twice."""
    batch, height, width, channels = images.shape
    # A row of zeros above the first, one below the last, and two to fill a last four.
    padded = jnp.pad(images, ((0, 0), (1, 3), (0, 0), (0, 0)))
    fours = padded.reshape(batch, height // 4 + 1, 4, width, channels)
    rows = [fours[:, :-1, i] for i in range(4)] + [fours[:, 1:, i] for i in range(2)]
    return [jax.lax.optimization_barrier(_combine(w, rows)) for w in INPUT]


@jax.custom_vjp
@jax.jit  # traced once for layers of one shape
def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Images [B, H, W, C] with a kernel [3, 3, C, D], padded with zeros: [B, H, W, D]; H a multiple of 4, one dtype.

    Its gradients are written out: they keep the images, where those that JAX would derive
    keep the transformed ones, half as large again. So it has no forward mode
    (`jax.jvp`), nor runs under shard_map's check_vma.
    """
    batch, height, width, _ = images.shape
    products = [
        jax.lax.conv_general_dilated(
            at_point,
            _combine(weights, [kernel[i : i + 1] for i in range(3)]),
            (1, 1),
            PADDING,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for at_point, weights in zip(_transform(images), KERNEL, strict=True)
    ]
    rows = jnp.stack([_combine(weights, products) for weights in OUTPUT], axis=2)
    return rows.reshape(batch, height, width, kernel.shape[3])


def _forward(images, kernel):
    return convolve(images, kernel), (images, kernel)


@jax.jit
def _backward(inputs, gradient):
    images, kernel = inputs
    return (
        convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3)),
        _kernel_gradient(images, gradient),
    )


def _kernel_gradient(images: jax.Array, gradient: jax.Array) -> jax.Array:
    """[3, 3, C, D], of images [B, H, W, C] and the result's gradient [B, H, W, D]."""
    batch, height, width, features = gradient.shape
    fours = gradient.reshape(batch, height // 4, 4, width, features)
    rows = [fours[:, :, i] for i in range(4)]
    of_points = [
        jax.lax.conv_general_dilated(
            at_point,
            jax.lax.optimization_barrier(_combine(weights, rows)),
            (1, 1),
            PADDING,
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
        )
        for at_point, weights in zip(
            _transform(images), zip(*OUTPUT, strict=True), strict=True
        )
    ]
    return jnp.concatenate(
        [_combine(weights, of_points) for weights in zip(*KERNEL, strict=True)]
    )


convolve.defvjp(_forward, _backward)
