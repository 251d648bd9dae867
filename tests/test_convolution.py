"""The networks' convolution on a CPU beside XLA's own."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamix_jax.models import winograd
from gamix_jax.models.convolution import NHWC, Conv, add_bias, convolve

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
    """In float64: the matrices are those of the same map, at every border and shape. Off by up to 1.8e-13 when written (the widest), and bounded at five times that."""
    arrays = normal(*images), normal(*kernel, seed=2)
    for ours, expected in zip(
        results(winograd.convolve, *arrays), results(direct, *arrays), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_winograd_rounds_little(x64):
    """In float32, of the largest entry: off by up to 3.0e-6 when written (three draws), and bounded at three times that."""
    arrays = normal(4, 16, 16, 64), normal(3, 3, 64, 64, seed=2)
    exact = results(direct, *arrays)
    rounded = results(winograd.convolve, *(x.astype(np.float32) for x in arrays))
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_second_derivatives(x64):
    """The written gradients can be differentiated again: entries up to 158, off by 4e-13 when written."""
    images, kernel = normal(2, 4, 4, 3), normal(3, 3, 3, 3, seed=1)

    def penalty(function):
        def loss(images, kernel):
            return jnp.sum(jnp.tanh(function(images, kernel)))

        def norm(kernel):
            return jnp.sum(jnp.square(jax.grad(loss)(images, kernel)))

        return jax.grad(norm)(kernel)

    np.testing.assert_allclose(
        penalty(winograd.convolve), penalty(direct), rtol=0, atol=1e-11
    )


def by_winograd(function, *arrays):
    return "custom_vjp_call" in str(jax.make_jaxpr(function)(*arrays))


def test_which_convolutions_are_winograd_s():
    images, kernel = jnp.zeros(WIDE[0]), jnp.zeros(WIDE[1])

    def chosen(images=images, kernel=kernel, stride=1, padding="SAME"):
        return by_winograd(lambda x, k: convolve(x, k, stride, padding), images, kernel)

    assert chosen()
    assert not chosen(stride=2)
    assert not chosen(padding="VALID")
    assert not chosen(padding=((1, 1), (0, 0)))
    assert not chosen(images=jnp.zeros((2, 6, 8, 32)))
    assert not chosen(kernel=jnp.zeros((1, 1, 32, 40)))
    assert not chosen(kernel=jnp.zeros((3, 3, 32, 31)))
    assert not chosen(images=jnp.zeros((2, 8, 8, 3)), kernel=jnp.zeros((3, 3, 3, 32)))
    half = jnp.bfloat16
    assert not chosen(images=images.astype(half), kernel=kernel.astype(half))


class Layers(nn.Module):
    """Two convolutions that are Winograd's, kept or computed again for the gradient."""

    remat: bool = False

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(Conv) if self.remat else Conv
        for _ in range(2):
            x = jnp.tanh(layer(32, (3, 3))(x))
        return x


def test_winograd_s_layer():
    """The layer computes what Flax's own does."""
    x = jnp.asarray(normal(2, 8, 6, 32), jnp.float32)
    params = nn.Conv(40, (3, 3)).init(jax.random.key(0), x)
    ours = Conv(40, (3, 3))
    assert by_winograd(ours.apply, params, x)
    expected = nn.Conv(40, (3, 3)).apply(params, x)
    np.testing.assert_allclose(  # float32's rounding, as above
        ours.apply(params, x), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("window", "strides"), [(3, 1), (3, 2), (1, 2)])
def test_layer_is_flax_s(window, strides, dtype):
    """The same first parameters; and the same result, bit by bit, of an odd size too."""
    x, key = jnp.asarray(normal(2, 7, 5, 3), jnp.float32), jax.random.key(0)
    arguments = {"features": 4, "kernel_size": (window, window), "strides": strides}
    ours, theirs = (layer(**arguments, dtype=dtype) for layer in (Conv, nn.Conv))
    params = ours.init(key, x)
    chex.assert_trees_all_equal(params, theirs.init(key, x))
    params["params"]["bias"] += 0.1
    result, expected = ours.apply(params, x), theirs.apply(params, x)
    assert result.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def test_gradient_of_bias_in_bfloat16():
    """Of a cotangent of ones, their number: 2^16. A sum in bfloat16 stopped at 2^10."""
    x, bias = jnp.zeros((16, 64, 64, 2), jnp.bfloat16), jnp.zeros(2)

    @jax.jit
    def gradient(bias, cotangent):
        return jax.vjp(lambda bias: add_bias(x, bias), bias)[1](cotangent)[0]

    np.testing.assert_array_equal(gradient(bias, jnp.ones_like(x)), 2.0**16)


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_on_two_devices(remat):
    """The mean over two devices' images is the gradient of all of them on one, with remat and without."""
    x = jnp.asarray(normal(4, 8, 4, 32), jnp.float32)
    layers = Layers(remat)
    params = layers.init(jax.random.key(0), x)

    def gradient(params, x):
        return jax.grad(lambda p: jnp.mean(jnp.square(layers.apply(p, x))))(params)

    assert by_winograd(gradient, params, x)
    mapped = jax.pmap(
        lambda p, x: jax.lax.pmean(gradient(p, x), "batch"),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:2],
    )
    found = jax.tree.leaves(mapped(params, x.reshape(2, 2, 8, 4, 32)))
    for ours, expected in zip(found, jax.tree.leaves(gradient(params, x)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * abs(ours).max())
