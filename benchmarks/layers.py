"""Milliseconds of our gradient of a convolution's kernel beside XLA's, and of our group normalisation beside Flax's.

    python benchmarks/layers.py --json=benchmarks/layers.json

Kernel gradients alone; group normalisation with ReLU, forward and backward. Each pair is
timed in turn on batches of 16, after both have given the same.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from record import show, time_in_turn, write

from gamix_jax.models.convolution import convolve
from gamix_jax.models.normalization import GroupNorm

SHAPES = ((64, 32), (32, 64), (32, 128), (16, 128), (64, 128))  # pixels, channels


def lax_convolve(x: jax.Array, kernel: jax.Array, *window) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=numbers)


def kernel_gradient(convolve: Callable) -> Callable[..., jax.Array]:
    def gradient(x, kernel, cotangent):
        _, pull_back = jax.vjp(lambda k: convolve(x, k, (1, 1), "SAME"), kernel)
        return pull_back(cotangent)

    return jax.jit(gradient)


def norm_gradient(norm: nn.Module) -> Callable[..., Any]:
    def gradient(x, params, cotangent):
        _, pull_back = jax.vjp(lambda p, x: nn.relu(norm.apply(p, x)), params, x)
        return pull_back(cotangent)

    return jax.jit(gradient)


def compare(what: str, size: int, channels: int, pair: tuple, *arguments) -> dict:
    """The row of one pair, ours first."""
    results = [jax.tree.leaves(function(*arguments)) for function in pair]
    for ours, other in zip(*results, strict=True):
        np.testing.assert_allclose(
            ours, other, rtol=0, atol=1e-4 * jnp.abs(other).max()
        )
    times = time_in_turn(
        {
            name: lambda f=function: jax.block_until_ready(f(*arguments))
            for name, function in zip(("ours", "other"), pair, strict=True)
        },
        rounds=5,
        seconds=0.3,
    )
    return {
        "what": what,
        "pixels": size,
        "channels": channels,
        "other, ms": 1e3 * float(np.median(times["other"])),
        "ours, ms": 1e3 * float(np.median(times["ours"])),
        "other / ours": float(np.median(times["other"] / times["ours"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    random, rows = np.random.default_rng(0), []

    def noise(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    for window in (3, 1):
        for size, channels in SHAPES:
            x, cotangent = noise(2, 16, size, size, channels)
            kernel = noise(window, window, channels, channels)
            pair = tuple(map(kernel_gradient, (convolve, lax_convolve)))
            what = f"{window}x{window} kernel's gradient"
            rows.append(compare(what, size, channels, pair, x, kernel, cotangent))
    for size, channels in SHAPES:
        x, cotangent = noise(2, 16, size, size, channels)
        groups = channels // 4
        norms = GroupNorm(groups), nn.GroupNorm(groups)
        params = norms[0].init(jax.random.key(0), x)
        pair = tuple(map(norm_gradient, norms))
        rows.append(
            compare("group norm, ReLU", size, channels, pair, x, params, cotangent)
        )
    show(rows, "Ours beside XLA's and Flax's, batches of 16")
    write(path, {"rows": rows})


if __name__ == "__main__":
    main()
