"""What a trained model costs to use: encode, decode and sample by the public API, and beside it the bare jitted network.

    python benchmarks/inference.py --json=benchmarks/inference.json

Latency is the row of batch 1, throughput that of large batches. The API takes uint8
images and latent vectors of NumPy; the bare network float32 arrays on the device, all of
a batch at once. Both give the same result, which is checked before they are timed in
turn, until the result is there. The weights are not trained: that changes no time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record

import gamix_jax
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.cpu import compiler_options
from gamix_jax.sampling import prior_sampler
from gamix_jax.state import create_state, make_models
from gamix_jax.steps import averaged_variables, scale_images
from gamix_jax.trained import TrainedModel

# 100 is no power of two, as users' batches often are not.
BATCHES = (1, 16, 64, 100, 256)
NETWORKS = {"cpu": ("digits", "celeba:small"), "gpu": ("digits", "celeba", "celeba_hq")}
CLOSE = (
    1e-3  # of means and images of about [-1, 1]; GPUs may multiply in TensorFloat-32
)


def make_run(name: str, workdir: Path) -> None:
    """What a training leaves, before its first step."""
    config = record.load_config(name)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, create_state(config), {})
    checkpoints.close()


def operations(
    model: TrainedModel, batch: int
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By name: what the API does with `batch` images, and what the bare network does."""
    network, _ = make_models(model.config)
    variables = jax.device_put(averaged_variables(model.state))
    sampler, key = prior_sampler(model.prior), jax.random.key(0)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *model.image_shape), np.uint8)
    z = random.normal(size=(batch, model.latent_size)).astype(np.float32)
    scaled, latents = scale_images(jax.device_put(images)), jax.device_put(z)
    jit = partial(jax.jit, compiler_options=compiler_options())
    encode = jit(lambda v, x: network.apply(v, x, method="encode"))
    decode = jit(lambda v, z: network.apply(v, z, method="decode"))
    sample = jit(
        lambda v, key: network.apply(v, sampler.draw(key, batch), method="decode")
    )
    return {
        "encode": (lambda: model.encode(images), lambda: encode(variables, scaled)),
        "decode": (lambda: model.decode(z), lambda: decode(variables, latents)),
        "sample": (lambda: model.sample(key, batch), lambda: sample(variables, key)),
    }


def measure(name: str, batches: list[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each operation and batch."""
    with tempfile.TemporaryDirectory() as folder:
        make_run(name, Path(folder))
        model = gamix_jax.load(folder)
    rows = []
    for batch in batches:
        for operation, functions in operations(model, batch).items():
            start = time.perf_counter()
            found = jax.block_until_ready(functions[0]())
            first = time.perf_counter() - start
            for a, b in zip(
                *map(jax.tree.leaves, (found, functions[1]())), strict=True
            ):
                np.testing.assert_allclose(a, b, atol=CLOSE, rtol=CLOSE)
            api, bare = record.time_in_turn(
                {i: lambda i=i: jax.block_until_ready(functions[i]()) for i in (0, 1)},  # noqa: B023
                seconds=seconds,
            ).values()
            rows.append(
                {
                    "config": name,
                    "operation": operation,
                    "batch": batch,
                    "first call, s": first,
                    "ms a call": 1e3 * float(np.median(api)),
                    "images/s": batch / float(np.median(api)),
                    "bare, ms a call": 1e3 * float(np.median(bare)),
                    "API / bare": float(np.median(api / bare)),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", help=f"of each device: {NETWORKS}")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn")
    parser.add_argument("--json", type=record.file_to_write)
    options = parser.parse_args()
    default = NETWORKS["cpu" if jax.default_backend() == "cpu" else "gpu"]
    rows = [
        row
        for name in options.configs or default
        for row in measure(name, options.batches, options.seconds)
    ]
    record.show(rows, "Inference")
    record.write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
