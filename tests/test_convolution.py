"""The convolution and the group normalisation against lax's and flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gamix_jax.models import convolution
from gamix_jax.models.convolution import convolve
from gamix_jax.models.normalization import GroupNorm


def lax_convolve(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding", "cache"),
    [
        ((6, 8, 8, 3), (3, 3), (1, 1), "SAME", 1),
        ((6, 9, 7, 3), (3, 3), (2, 2), "SAME", 2**13),
        ((6, 9, 7, 3), (3, 3), (2, 2), "SAME", 2**21),
        ((2, 8, 6, 3), (1, 1), (2, 2), "SAME", 1),
        ((5, 6, 8, 3), (3, 2), (2, 1), "VALID", 2**21),
        ((4, 5, 5, 3), (2, 1), (1, 1), ((1, 0), (0, 0)), 1),
    ],
)
def test_values_and_all_derivatives_are_those_of_lax(
    shape, window, strides, padding, cache, monkeypatch, x64
):
    """Images one at a time, two at a time (8 KiB hold no more), and all at once."""
    monkeypatch.setattr(convolution, "CACHE", cache)
    random = np.random.default_rng(0)
    x, dx = random.normal(size=(2, *shape))
    kernel, dkernel = random.normal(size=(2, *window, shape[-1], 4))
    results = []
    for function in (convolve, lax_convolve):

        def of_both(x, kernel, function=function):
            return function(x, kernel, strides, padding)

        value, tangent = jax.jvp(of_both, (x, kernel), (dx, dkernel))
        value, pull_back = jax.vjp(of_both, x, kernel)
        results.append((value, tangent, *pull_back(jnp.cos(value))))
    jax.tree.map(
        lambda ours, lax: np.testing.assert_allclose(ours, lax, rtol=1e-11, atol=1e-11),
        *results,
    )


def test_second_derivatives(x64):
    x, kernel = jnp.ones((2, 4, 4, 2)).cumsum(1), jnp.ones((3, 3, 2, 2)).cumsum(0)
    check_grads(lambda k: jnp.sin(convolve(x, k, (1, 1), "SAME")), (kernel,), 2)


@pytest.mark.parametrize("shape", [(3, 4, 6, 12), (2, 5, 8)])
def test_group_norm_is_flax_s(shape):
    """Values and gradients to float32 rounding; parameters of the same names and shapes."""
    random = np.random.default_rng(1)
    x = jnp.asarray(1.0 + 2.0 * random.normal(size=shape), jnp.float32)
    cotangent = jnp.asarray(random.normal(size=shape), jnp.float32)
    ours, flax = GroupNorm(4), nn.GroupNorm(4)
    params = flax.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(0), x)
    )
    params = jax.tree.map(
        lambda p: p + jnp.asarray(random.normal(size=p.shape), p.dtype), params
    )
    for result, expected in zip(
        *(
            (value, *pull_back(cotangent))
            for value, pull_back in (
                jax.vjp(lambda p, x, norm=norm: norm.apply(p, x), params, x)
                for norm in (ours, flax)
            )
        ),
        strict=True,
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
            result,
            expected,
        )


def test_group_norm_in_bfloat16_has_float32_statistics():
    """Of values about 100 with deviation 1: those of bfloat16 would be off by tenths."""
    x = 100.0 + np.random.default_rng(2).normal(size=(2, 16, 16, 8))
    x = jnp.asarray(x, jnp.bfloat16)
    norm = GroupNorm(2, jnp.bfloat16)
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    groups = np.asarray(x, np.float64).reshape(2, 16, 16, 2, 4)
    mean = groups.mean((1, 2, 4), keepdims=True)
    deviation = groups.std((1, 2, 4), keepdims=True)
    expected = ((groups - mean) / deviation).reshape(x.shape)
    # float32 loses 100^2 of 2^23 in the variance; bfloat16 rounds the result to 2^-9
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=2**-8, atol=0.01
    )
