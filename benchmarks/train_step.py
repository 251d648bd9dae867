"""The whole training step (both players, their optimisers, the average of the weights, the metrics): images per second, and how far from what the machine can do.

    python benchmarks/train_step.py --configs digits celeba celeba:128 celeba_hq --json=FILE

Products: the floating-point operations of the step's convolutions and matrix products at
the rate of a large matrix product. Copies: the bytes that XLA counts in the compiled
program, operation by operation, at the rate of an addition of 1 to a large array; what
lies in a cache takes less. Both rates are measured here, in turn with the step and with
the steps of the configuration's other dtypes and remat, and the
floor is the larger of the two; no bound on a CPU in float32, where Winograd's convolutions
take half of the products counted. "Host" is what a call costs beside the program: a step that
only adds 1 to as many numbers as the state has arrays. Each step is waited for, as training
on a CPU does; on a GPU it waits at its logs only. One device; no data is read.
"""

import argparse
import itertools
import math
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import record

from gamix_jax.cpu import compiler_options, keep_freed_memory
from gamix_jax.describe import memory, training_gflop_per_image
from gamix_jax.parallel import (
    compile_mapped,
    map_over_devices,
    pmapped,
    put_on_devices,
    replicate,
)
from gamix_jax.state import create_state
from gamix_jax.steps import make_train_step
from gamix_jax.train import train

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the square matrices
COPIED = 2**28  # bytes


def repeated(function: Callable, state: Any, *rest: Any) -> Callable[[], Any]:
    """A call that goes on from what the last one returned first, and waits."""

    def call() -> None:
        nonlocal state
        state, result = function(state, *rest)
        jax.block_until_ready((state, result))

    for _ in range(3):  # the first calls of a copy map its pages
        call()
    return call


def calls(
    config: ml_collections.ConfigDict,
) -> tuple[dict[str, Callable], jax.stages.Compiled]:
    """The step, a step without work, a matrix product and a copy; and the step's program."""
    size, channels = config.data.size, config.data.channels
    shape = (config.train.batch_size, size, size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch, state = put_on_devices(images), replicate(create_state(config))
    step = compile_mapped(
        pmapped(make_train_step(config), donate_state=True), state, batch
    )
    nothing = replicate(jax.tree.map(lambda x: jnp.zeros(()), state))

    def only_count(state: Any, _: jax.Array) -> tuple[Any, jax.Array]:
        return jax.tree.map(lambda x: x + 1, state), jax.lax.axis_index("batch")

    without_work = compile_mapped(
        pmapped(only_count, donate_state=True), nothing, batch
    )
    side = SIDE[jax.default_backend()]
    noise = np.random.default_rng(0).normal(0.0, side**-0.5, (side, side))
    matrix = jnp.asarray(noise, config.model.dtype)
    of_bytes = jnp.zeros(COPIED // 4)
    options = compiler_options()
    product = jax.jit(lambda x, y: (x @ y, 0), compiler_options=options)
    copy = jax.jit(lambda x: (x + 1.0, 0), compiler_options=options)
    return {
        "step": repeated(step, state, batch),
        "host": repeated(without_work, nothing, batch),
        "product": repeated(product, matrix, matrix),
        "copy": repeated(copy, of_bytes),
    }, step


def copied_bytes(step: jax.stages.Compiled) -> float:
    """What XLA counts, without the optimisation barriers, each of which it takes for a copy (checked on CPU)."""
    nothing = 0
    for shapes in re.findall(r" = (.*) opt-barrier\(", step.as_text()):
        for bits, dimensions in re.findall(r"[a-z](\d*)\[([\d,]*)\]", shapes):
            size = math.prod(int(n) for n in dimensions.split(",") if n)
            nothing += 2 * size * int(bits or 8) // 8  # read and written; pred has none
    return step.cost_analysis()["bytes accessed"] - nothing


def share_outside(calls: list[tuple[float, float]]) -> float:
    """Of the time from the first call's end to the last one's, what lies between the calls (starts and ends, seconds)."""
    starts, ends = np.array(calls).T
    return 1.0 - float(np.sum(ends[1:] - starts[1:]) / (ends[-1] - ends[0]))


def outside_steps(config: ml_collections.ConfigDict, steps: int) -> float:
    """Share of a training's seconds that are not those of its step: the wait for images, logs, the bar.

    Of random images from an array; each step is waited for, and the first is left out. Logs
    count if there are several times as many steps as `config.train.log_every`.
    """
    calls = []

    def timed(step: Callable, donate_state: bool = False) -> Callable:
        mapped = map_over_devices(step, donate_state)

        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(mapped(*arguments))
            calls.append((start, time.perf_counter()))
            return result

        return call

    shape = (1000, config.data.size, config.data.size, config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        config.data.source, config.data.dir = "array", f"{folder}/images.npy"
        config.data.test_split, config.data.test_fraction = "", 0.1
        config.data.crop = "center"
        config.train.steps = config.train.evaluate_every = steps
        config.train.checkpoint_every = steps
        with mock.patch("gamix_jax.loop.map_over_devices", timed):
            train(config, Path(folder) / "run")
    return share_outside(calls[:steps])  # the rest are of the evaluation


def measure(
    configs: list[ml_collections.ConfigDict], name: str, rounds: int, seconds: float
) -> list[dict]:
    """Rows of the table, of the same networks in other dtypes or with remat; all timed in turn, with the ratio to the first."""
    functions, steps = {}, []
    for i, config in enumerate(configs):
        of_one, step = calls(config)
        functions |= {(i, what): function for what, function in of_one.items()}
        steps.append(step)
    times = record.time_in_turn(functions, rounds, seconds)
    side, rows = SIDE[jax.default_backend()], []
    for i, (config, step) in enumerate(zip(configs, steps, strict=True)):
        taken, host, product, copy = (
            float(np.median(times[i, what]))
            for what in ("step", "host", "product", "copy")
        )
        flop = 1e9 * training_gflop_per_image(config) * config.train.batch_size
        rate, bytes_a_second = 2 * side**3 / product, 2 * COPIED / copy
        of_products, of_copies = flop / rate, copied_bytes(step) / bytes_a_second
        row = {
            "config": name,
            "dtype": config.model.dtype,
            "remat": config.model.remat,
            "batch": config.train.batch_size,
            "ms a step": 1e3 * taken,
            "to the first": float(np.median(times[i, "step"] / times[0, "step"])),
            "images/s": config.train.batch_size / taken,
            "GFLOP/s": flop / taken / 1e9,
            "of products": rate / 1e9,
            "GB/s of copies": bytes_a_second / 1e9,
            "products, ms": 1e3 * of_products,
            "copies, ms": 1e3 * of_copies,
            "floor / step": max(of_products, of_copies) / taken,
            "host / step": host / taken,
            "memory, MiB": sum(memory(step).values()) / 2**20,
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    parser.add_argument("--configs", nargs="+", default=["digits"])
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes[:1])
    parser.add_argument(
        "--batches",
        nargs="+",
        type=record.positive_int,
        default=[None],
        help="else as the configuration",
    )
    parser.add_argument("--remat", nargs="+", choices=["no", "yes"], default=["no"])
    parser.add_argument("--rounds", type=record.positive_int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument(
        "--loop", type=record.positive_int, help="steps of a training, measured too"
    )
    parser.add_argument("--json", type=record.file_to_write)
    args = parser.parse_args()
    keep_freed_memory()
    if jax.local_device_count() > 1:
        raise SystemExit("Let this see one device only (CUDA_VISIBLE_DEVICES=0).")
    rows = []
    for name, batch in itertools.product(args.configs, args.batches):
        configs = []
        for dtype, remat in itertools.product(args.dtypes, args.remat):
            config = record.load_config(name)
            config.model.dtype, config.model.remat = dtype, remat == "yes"
            config.train.batch_size = batch or config.train.batch_size
            configs.append(config)
        found = measure(configs, name, args.rounds, args.seconds)
        for row, config in zip(found, configs, strict=True):
            if args.loop:
                row["outside steps"] = outside_steps(config, args.loop)
        rows += found
        # Kept, should the next configuration or batch fail.
        record.write(args.json, {"rows": rows})
    record.show(rows, "The training step beside the machine's limits")


if __name__ == "__main__":
    main()
