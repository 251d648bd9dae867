"""Images per second of the training step beside the same step of the same networks in PyTorch, timed in turn.

    pip install -e '.[benchmarks]'
    python benchmarks/torch_twin.py --widths=32,64,128 --json=benchmarks/torch_twin.json

The networks are those of configs/celeba.py (64 and 128 pixels) and configs/celeba_hq.py
(256), all stages of the width that is asked for. Nothing is timed unless PyTorch computes
the same metrics from the same weights, images and noise: on a small model in float32,
through several steps, and at the first step of all that is timed. On a GPU both sides have
TF32 for float32, and PyTorch has cudnn.benchmark. `--compile_modes=` leaves torch.compile
out; reduce-overhead and max-autotune are CUDA graphs. One GPU or the CPU; no data is read.
On a CPU that others use too the ratio means nothing: PyTorch's threads wait for each other,
and on 2 cores one busy process made it five times slower and us hardly. So the last column
says how many cores others had meanwhile; quote no ratio where that is above 0.1.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import torch
from record import file_to_write, load_config, positive_int, show, time_in_turn, write
from torch import nn
from twin_step import Twin

from gamix_jax.cpu import keep_freed_memory
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.state import TrainState, create_state
from gamix_jax.steps import make_train_step

CONFIGS = {64: "celeba", 128: "celeba:128", 256: "celeba_hq"}
# Constant with K = 1 and at a run's first steps.
NOT_COMPARED = {"component_entropy", "components_used", "generator_gradient_ratio"}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# Of a first step at the size that is timed: float32 rounds the gradients of a deep network.
# At width 32 and 64x64 the generator's norm lies 0.8e-4 (ours), 1.0e-4 and 1.5e-4 (PyTorch,
# NCHW and NHWC) from that of float64; all that the forward pass gives, within 1e-5.
FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
# Of TF32 and bfloat16, all metrics: in bfloat16 a step lay up to 2.8 % (ours, until its
# biases' gradients were summed in float32) and 3.1 % (PyTorch) from its float32 there, in
# the mean of the logits and the smallest variance.
# PyTorch's is autocast's, so its decoder's dense layer is bfloat16 and ours float32.
ROUNDED_TOLERANCE = 6e-2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def configuration(
    size: int, width: int, batch: int, dtype: str
) -> ml_collections.ConfigDict:
    """Of configs/, with another width of all layers."""
    config = load_config(CONFIGS[size])
    config.model.widths = tuple(width for _ in config.model.widths)
    config.model.dtype = dtype
    config.discriminator.widths = tuple(
        w * width // 128 for w in config.discriminator.widths
    )
    config.train.batch_size = batch
    return config


def draw_images(config: ml_collections.ConfigDict) -> np.ndarray:
    """uint8 [B, H, W, C], coarse squares and noise."""
    size, rng = config.data.size, np.random.default_rng(0)
    shape = (config.train.batch_size, size, size, config.data.channels)
    coarse = rng.integers(0, 206, (shape[0], 4, 4, shape[3]), np.uint8)
    coarse = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return coarse + rng.integers(0, 50, shape, np.uint8)


def noise_of_step(config: ml_collections.ConfigDict, state: TrainState) -> torch.Tensor:
    """What the next step of gamix_jax draws, [B, D]."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def of_image(i: jax.Array) -> jax.Array:
        key_of_image = jax.random.split(jax.random.fold_in(key, i))[0]
        return jax.random.normal(key_of_image, (1, 1, config.model.latent_size))

    noise = jax.vmap(of_image)(np.arange(config.train.batch_size))
    return torch.from_numpy(np.array(noise).reshape(len(noise), -1)).to(DEVICE)


class Ours:
    """gamix_jax's step, as training calls it."""

    def __init__(self, config: ml_collections.ConfigDict, images: np.ndarray):
        self.state = replicate(create_state(config))
        self.batch = put_on_devices(images)
        self.mapped = map_over_devices(make_train_step(config), donate_state=True)

    def step(self) -> dict[str, jax.Array]:
        """One step, waited for."""
        self.state, metrics = jax.block_until_ready(self.mapped(self.state, self.batch))
        return metrics


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of metrics, which must be of the same names, and its name."""
    if set(ours) - NOT_COMPARED != set(theirs):
        raise RuntimeError(f"Metrics differ: {sorted(ours)} and {sorted(theirs)}.")
    pairs = {name: (float(ours[name]), float(theirs[name])) for name in theirs}
    return max(
        (abs(a - b) / max(abs(a), abs(b), 1e-30), name)
        for name, (a, b) in pairs.items()
    )


def require(largest: tuple[float, str], tolerance: float, of: str) -> None:
    """Raises RuntimeError, so that nothing is timed, where two steps are not the same."""
    value, name = largest
    print(f"{of}: largest relative difference {value:.1e}, of {name}", flush=True)
    if not value <= tolerance:
        raise RuntimeError(
            f"{of}: {name} differs by {value:.1e} of itself, more than {tolerance:g}; these are not the same step."
        )


def require_first_step(
    config: ml_collections.ConfigDict,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    of: str,
) -> None:
    """`require` at the size that is timed, gradients apart in float32 on CPU."""
    if DEVICE != "cpu" or config.model.dtype != "float32":
        require(difference(ours, theirs), ROUNDED_TOLERANCE, of)
        return
    for gradients, tolerance in (
        (False, FORWARD_TOLERANCE),
        (True, GRADIENT_TOLERANCE),
    ):
        part = [
            {k: v for k, v in x.items() if k.endswith("gradient_norm") == gradients}
            for x in (ours, theirs)
        ]
        require(difference(*part), tolerance, of)


def check(compile_modes: list[str], steps: int = 2) -> None:
    """Several steps of a small model in float32, with all norms of gradients, of parameters and of their average.

    Raises:
      RuntimeError: a twin departs from gamix_jax by more than 1e-4.
    """
    config = configuration(64, 16, 4, "float32")
    config.data.size, config.model.widths = 16, (16, 24)
    config.model.encoder_blocks = 1
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    images = draw_images(config)
    for mode in (None, *compile_modes):
        with jax.default_matmul_precision("highest"):
            ours = Ours(config, images)
            twin = Twin(config, ours.state, DEVICE, compile_mode=mode)
            largest = (0.0, "")
            for _ in range(steps):
                noise = noise_of_step(config, ours.state)
                of_ours, of_twin = ours.step(), twin.step(twin.put(images), noise)
                of_ours["average"] = optax.tree.norm(ours.state.ema_params)
                of_twin["average"] = nn.utils.get_total_norm(twin.average)
                largest = max(largest, difference(of_ours, of_twin))
        require(largest, 1e-4, f"small model, {steps} steps, {mode or 'eager'}")
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True


def contestants(
    config: ml_collections.ConfigDict, compile_modes: list[str]
) -> dict[str, Callable[[], Any]]:
    """A call of each step, warm, whose first metrics were the same."""
    images = draw_images(config)
    ours = Ours(config, images)
    noise = noise_of_step(config, ours.state)
    variants = [(None, "NCHW"), (None, "NHWC"), *((m, "NHWC") for m in compile_modes)]
    twins = {
        f"torch {mode or 'eager'} {layout}": Twin(
            config, ours.state, DEVICE, FORMATS[layout], mode
        )
        for mode, layout in variants
    }
    of_ours = ours.step()
    functions = {"ours": ours.step}
    for name, twin in twins.items():
        batch = twin.put(images)
        require_first_step(config, of_ours, twin.step(batch, noise), name)
        functions[name] = _waited_for(twin, batch, noise.shape)
    for function in functions.values():
        function()
    return functions


def _waited_for(twin: Twin, batch: torch.Tensor, shape: torch.Size) -> Callable:
    def step() -> None:
        twin.step(batch, torch.randn(shape, device=DEVICE))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


def cores_of_others() -> Callable[[], float]:
    """Begins to count; the function it returns tells how many cores other processes have used since, on average (Linux)."""

    def busy() -> float:
        counts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(count) for count in counts]
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()

    before, start = busy(), time.perf_counter()
    return lambda: (busy() - before) / (time.perf_counter() - start)


def measure(
    config: ml_collections.ConfigDict, compile_modes: list[str], rounds: int
) -> dict[str, Any]:
    """A row of the table; the ratio is to the best twin, its range that over rounds."""
    functions = contestants(config, compile_modes)
    of_others = cores_of_others()
    times = time_in_turn(functions, rounds)
    others = of_others()
    best = min(
        (name for name in times if name != "ours"), key=lambda n: np.median(times[n])
    )
    ratio = times[best] / times["ours"]
    return {
        "pixels": config.data.size,
        "width": config.model.widths[0],
        "dtype": config.model.dtype,
        "batch": config.train.batch_size,
        **{
            f"{name} images/s": config.train.batch_size / float(np.median(seconds))
            for name, seconds in times.items()
        },
        "ours / best torch": float(np.median(ratio)),
        "range": f"{ratio.min():.2f}-{ratio.max():.2f}",
        "cores of others": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser.add_argument("--sizes", type=numbers, default=[64], help="of 64,128,256")
    parser.add_argument("--widths", type=numbers, default=[128], help="channels")
    parser.add_argument("--batches", type=numbers, default=[16])
    parser.add_argument("--dtypes", type=words, default=["float32"])
    parser.add_argument("--compile_modes", type=words, default=["default"])
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--json", type=file_to_write)
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()  # of PyTorch too
    if jax.local_device_count() > 1:
        raise SystemExit("Let this see one device only (CUDA_VISIBLE_DEVICES=0).")
    check(args.compile_modes)
    rows = []
    for of_one in itertools.product(args.sizes, args.widths, args.batches, args.dtypes):
        rows.append(measure(configuration(*of_one), args.compile_modes, args.rounds))
        # Kept, should the next one fail.
        write(args.json, {"rows": rows, "torch_threads": torch.get_num_threads()})
    show(rows, "Training step, images per second")


if __name__ == "__main__":
    main()
