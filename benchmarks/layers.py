"""Milliseconds on a CPU of convolutions with our options of XLA beside its defaults, and of our group normalisation beside Flax's.

    python benchmarks/layers.py --json=benchmarks/layers.json

Group normalisation with ReLU, forward and backward, both with our options. Each pair is
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

from gamix_jax.cpu import compiler_options, keep_freed_memory
from gamix_jax.models.normalization import GroupNorm

SHAPES = ((64, 32), (32, 64), (32, 128), (16, 128), (64, 128))  # pixels, channels


Options = dict[str, str] | None


def convolution_passes(window: int, options: Options) -> dict[str, Callable]:
    """The convolution of a stage and its two gradients, each (x, kernel, cotangent) to an array."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def of_input(x, kernel, cotangent):
        return jax.vjp(lambda x: convolve(x, kernel), x)[1](cotangent)

    def of_kernel(x, kernel, cotangent):
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](cotangent)

    functions = {
        "forward": lambda x, kernel, cotangent: convolve(x, kernel),
        "input's gradient": of_input,
        "kernel's gradient": of_kernel,
    }
    return {
        f"{window}x{window} {name}": jax.jit(function, compiler_options=options)
        for name, function in functions.items()
    }


def norm_gradient(norm: nn.Module) -> Callable[..., Any]:
    def gradient(x, params, cotangent):
        y, pull_back = jax.vjp(lambda p, x: nn.relu(norm.apply(p, x)), params, x)
        return y, pull_back(cotangent)

    return jax.jit(gradient, compiler_options=compiler_options())


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
    keep_freed_memory()
    random, rows = np.random.default_rng(0), []

    def noise(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    for window in (3, 1):
        ours, others = (
            convolution_passes(window, options)
            for options in (compiler_options(), None)
        )
        for size, channels in SHAPES:
            x, cotangent = noise(2, 16, size, size, channels)
            kernel = noise(window, window, channels, channels)
            rows += [
                compare(name, size, channels, pair, x, kernel, cotangent)
                for name, *pair in zip(
                    ours, ours.values(), others.values(), strict=True
                )
            ]
    for size, channels in SHAPES:
        x, cotangent = noise(2, 16, size, size, channels)
        groups = channels // 4
        norms = GroupNorm(groups), nn.GroupNorm(groups)
        params = norms[0].init(jax.random.key(0), x)
        pair = tuple(map(norm_gradient, norms))
        rows.append(
            compare("group norm, ReLU", size, channels, pair, x, params, cotangent)
        )
    show(rows, "Ours beside XLA's defaults and Flax's, batches of 16")
    write(path, {"rows": rows})


if __name__ == "__main__":
    main()
