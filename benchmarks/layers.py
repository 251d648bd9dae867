"""Milliseconds on a CPU of our convolution beside XLA's by Eigen (our options) and with XLA's default options, and of our group normalisation beside Flax's.

    python benchmarks/layers.py --json=benchmarks/layers.json

Group normalisation with ReLU, forward and backward, both with our options. Timed in
turn on batches of 16, after all have given the same.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from record import file_to_write, show, time_in_turn, write

from gamix_jax.cpu import compiler_options, keep_freed_memory
from gamix_jax.models.convolution import NHWC, convolve
from gamix_jax.models.normalization import GroupNorm

SHAPES = ((64, 32), (32, 64), (32, 128), (16, 128), (64, 128))  # pixels, channels


def by_xla(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """As `convolve` is called."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC
    )


CONVOLUTIONS = {  # by whom, and compiled with which options
    "ours": (convolve, compiler_options),
    "Eigen": (by_xla, compiler_options),
    "default": (by_xla, lambda: None),
}


def convolution_passes(window: int, by: str) -> dict[str, Callable]:
    """The convolution of a stage and its two gradients, each (x, kernel, cotangent) to an array."""
    general, options = CONVOLUTIONS[by]

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return general(x, kernel, 1, "SAME")

    def of_input(x, kernel, cotangent):
        return jax.vjp(lambda x: forward(x, kernel), x)[1](cotangent)

    def of_kernel(x, kernel, cotangent):
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](cotangent)

    functions = {
        "forward": lambda x, kernel, cotangent: forward(x, kernel),
        "input's gradient": of_input,
        "kernel's gradient": of_kernel,
    }
    return {
        f"{window}x{window} {name}": jax.jit(function, compiler_options=options())
        for name, function in functions.items()
    }


def norm_gradient(norm: nn.Module) -> Callable[..., Any]:
    def gradient(x, params, cotangent):
        y, pull_back = jax.vjp(lambda p, x: nn.relu(norm.apply(p, x)), params, x)
        return y, pull_back(cotangent)

    return jax.jit(gradient, compiler_options=compiler_options())


def compare(
    what: str, size: int, channels: int, functions: dict[str, Callable], *arguments
) -> dict:
    """The row of functions that give the same, ours first."""
    results = [jax.tree.leaves(f(*arguments)) for f in functions.values()]
    for ours, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_allclose(
                ours, other, rtol=0, atol=1e-4 * jnp.abs(other).max()
            )
    times = time_in_turn(
        {
            name: lambda f=function: jax.block_until_ready(f(*arguments))
            for name, function in functions.items()
        },
        rounds=5,
        seconds=0.3,
    )
    row = {"what": what, "pixels": size, "channels": channels}
    row |= {f"{name}, ms": 1e3 * float(np.median(t)) for name, t in times.items()}
    return row | {
        f"{name} / ours": float(np.median(t / times["ours"]))
        for name, t in times.items()
        if name != "ours"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=file_to_write)
    path = parser.parse_args().json
    keep_freed_memory()
    random, rows = np.random.default_rng(0), []

    def noise(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    for window in (3, 1):
        passes = {by: convolution_passes(window, by) for by in CONVOLUTIONS}
        for size, channels in SHAPES:
            x, cotangent = noise(2, 16, size, size, channels)
            kernel = noise(window, window, channels, channels)
            for name in passes["ours"]:
                functions = {by: of[name] for by, of in passes.items()}
                rows.append(
                    compare(name, size, channels, functions, x, kernel, cotangent)
                )
    show(rows, "Convolutions, batches of 16")
    norm_rows = []
    for size, channels in SHAPES:
        x, cotangent = noise(2, 16, size, size, channels)
        norms = {
            "ours": GroupNorm(channels // 4),
            "Flax": nn.GroupNorm(channels // 4),
        }
        params = norms["ours"].init(jax.random.key(0), x)
        gradients = {by: norm_gradient(norm) for by, norm in norms.items()}
        norm_rows.append(
            compare("group norm, ReLU", size, channels, gradients, x, params, cotangent)
        )
    show(norm_rows, "Group normalisation, batches of 16")
    write(path, {"convolutions": rows, "group normalisation": norm_rows})


if __name__ == "__main__":
    main()
