"""Group normalisation against flax's own and a sum in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamix_jax.models.normalization import GroupNorm


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
