"""The networks' convolution on a CPU beside XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import Conv as FlaxConv

from gamix_jax.models import winograd
from gamix_jax.models.convolution import Conv, convolve

NHWC = ("NHWC", "HWIO", "NHWC")
WIDE = (2, 8, 6, 32), (3, 3, 32, 40)  # images, kernel


def direct(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=NHWC
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def results(function, images, kernel):
    """The result, and the gradients with regard to both for a cotangent of noise."""
    result, pullback = jax.vjp(function, images, kernel)
    cotangent = jnp.asarray(normal(*result.shape, seed=1), result.dtype)
    return result, *pullback(cotangent)


@pytest.mark.parametrize(
    ("images", "kernel"),
    [((2, 4, 5, 3), (3, 3, 3, 2)), ((1, 12, 1, 1), (3, 3, 1, 4)), WIDE],
)
def test_winograd_is_the_convolution(x64, images, kernel):
    """In float64, to rounding: the matrices are those of the same map, at every border and shape."""
    arrays = normal(*images), normal(*kernel, seed=2)
    for ours, expected in zip(
        results(winograd.convolve, *arrays), results(direct, *arrays), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_winograd_rounds_little(x64):
    """In float32, of the largest entry: 3e-6 when written at 32 to 128 channels, XLA's own convolution 5e-7."""
    arrays = normal(4, 16, 16, 64), normal(3, 3, 64, 64, seed=2)
    exact = results(direct, *arrays)
    rounded = results(winograd.convolve, *(x.astype(np.float32) for x in arrays))
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_second_derivatives():
    """Gradient penalties differentiate the gradient."""
    images, kernel = (
        jnp.asarray(normal(*shape, seed=i), jnp.float32)
        for i, shape in enumerate([(2, 4, 4, 3), (3, 3, 3, 3)])
    )

    def penalty(function):
        def loss(images, kernel):
            return jnp.sum(jnp.tanh(function(images, kernel)))

        def norm(kernel):
            return jnp.sum(jnp.square(jax.grad(loss)(images, kernel)))

        return jax.grad(norm)(kernel)

    expected = penalty(direct)
    np.testing.assert_allclose(
        penalty(winograd.convolve), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )


def by_winograd(function, *arrays):
    return "custom_vjp_call" in str(jax.make_jaxpr(function)(*arrays))


def test_which_convolutions_are_winograd_s():
    images, kernel = jnp.zeros(WIDE[0]), jnp.zeros(WIDE[1])

    def chosen(images=images, kernel=kernel, strides=(1, 1), padding="SAME", **kwargs):
        return by_winograd(
            lambda x, k: convolve(
                x, k, strides, padding, dimension_numbers=NHWC, **kwargs
            ),
            images,
            kernel,
        )

    assert chosen()
    assert not chosen(strides=(2, 2))
    assert not chosen(padding="VALID")
    assert not chosen(padding=((1, 1), (0, 0)))
    assert not chosen(rhs_dilation=(2, 2))
    assert not chosen(padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))
    assert not chosen(images=jnp.zeros((2, 6, 8, 32)))
    assert not chosen(kernel=jnp.zeros((1, 1, 32, 40)))
    assert not chosen(kernel=jnp.zeros((3, 3, 32, 31)))
    assert not chosen(images=jnp.zeros((2, 8, 8, 3)), kernel=jnp.zeros((3, 3, 3, 32)))
    assert not chosen(kernel=jnp.zeros((3, 3, 16, 64)), feature_group_count=2)
    half = jnp.bfloat16
    assert not chosen(images=images.astype(half), kernel=kernel.astype(half))


def test_layer():
    """Flax's arguments reach the choice, and the layer computes what Flax's own does."""
    x = jnp.asarray(normal(2, 8, 6, 32), jnp.float32)
    params = FlaxConv(40, (3, 3)).init(jax.random.key(0), x)
    ours = Conv(40, (3, 3))
    assert by_winograd(ours.apply, params, x)
    expected = FlaxConv(40, (3, 3)).apply(params, x)
    np.testing.assert_allclose(
        ours.apply(params, x), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )
