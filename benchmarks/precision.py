"""The losses of a training in bfloat16 beside one in float32, from the same weights, images and noise, and beside float32 with another seed.

    python benchmarks/precision.py --images=DIR --runs=runs/precision --out=docs --json=benchmarks/precision.json

`--images` is the folder of photos that configs/celeba.py:folder,small trains on, with the
discriminator from the first step. Draws the curves to OUT/precision.png. The table has
means over the last fifth of the steps; a difference is relative to float32. What seeds
alone differ by says how much of it is chance: trainings drift apart from the first
rounding. So the losses of float32's last weights are also computed in both precisions, of
the same images and noise.
"""

import argparse
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import record

from gamix_jax.data import open_images
from gamix_jax.parallel import compile_mapped, pmapped, put_on_devices, replicate
from gamix_jax.state import TrainState
from gamix_jax.steps import make_train_step
from gamix_jax.train import train

LOSSES = (
    "reconstruction",
    "kl",
    "collapse_penalty",
    "generator_loss",
    "discriminator_loss",
)
RUNS = {
    "float32": ("float32", 0),
    "bfloat16": ("bfloat16", 0),
    "float32, another seed": ("float32", 1),
}


BATCHES = 50  # of training images, for the losses at the same weights


def config_of(
    images: Path, dtype: str, seed: int, steps: int
) -> ml_collections.ConfigDict:
    config = record.load_config("celeba:folder,small")
    config.data.dir, config.model.dtype, config.seed = str(images), dtype, seed
    config.adversarial.start, config.train.log_every = 0, 1
    config.train.steps = config.train.evaluate_every = steps
    config.train.checkpoint_every = steps
    return config


def curves(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[dict[str, np.ndarray], TrainState]:
    """The losses at each step, [steps], and the last state."""
    steps = config.train.steps
    state = train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "kl" in row]
    if len(rows) < steps:
        raise SystemExit("Stopped; the same command goes on.")
    return {loss: np.array([row[loss] for row in rows]) for loss in LOSSES}, state


def losses_at(
    config: ml_collections.ConfigDict, state: TrainState
) -> dict[str, np.ndarray]:
    """The losses of one state, which stays as it is, for [BATCHES] batches."""
    images, size = open_images(config.data, "train"), config.train.batch_size
    step, state = pmapped(make_train_step(config)), replicate(state)
    program, found = None, []
    for i in range(BATCHES):
        batch = np.stack([images[j] for j in range(i * size, (i + 1) * size)])
        batch = put_on_devices(batch)
        program = program or compile_mapped(step, state, batch)
        found.append(jax.device_get(program(state, batch)[1]))
    return {loss: np.array([metrics[loss] for metrics in found]) for loss in LOSSES}


def draw(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A panel for each loss, means of 10 steps."""
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(15, 3), layout="constrained")
    for loss, axes in zip(LOSSES, panels, strict=True):
        for style, (name, values) in zip(("-", "--", ":"), found.items(), strict=True):
            values = values[loss][: len(values[loss]) // 10 * 10].reshape(-1, 10)
            steps = 10 * np.arange(1, len(values) + 1)
            axes.plot(steps, values.mean(1), style, label=name)
        late = np.concatenate(
            [of[loss][len(of[loss]) // 10 :] for of in found.values()]
        )
        axes.set(title=loss, xlabel="step", ylim=np.quantile(late, (0.0, 0.99)))
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument(
        "--runs", type=Path, required=True, help="gone on from, if there"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the picture")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found, configs, states = {}, {}, {}
    for name, (dtype, seed) in RUNS.items():
        configs[name] = config_of(args.images, dtype, seed, args.steps)
        workdir = args.runs / f"{dtype}_{seed}"
        found[name], states[name] = curves(configs[name], workdir)
    same = {
        name: losses_at(configs[name], states["float32"])
        for name in ("float32", "bfloat16")
    }
    draw(found, args.out / "precision.png")
    rows = []
    for loss in LOSSES:
        means = {
            name: float(values[loss][-args.steps // 5 :].mean())
            for name, values in found.items()
        }
        of_float32 = means["float32"]
        before, after = (same[name][loss] for name in ("float32", "bfloat16"))
        rows.append(
            {
                "loss": loss,
                **means,
                "of bfloat16": f"{means['bfloat16'] / of_float32 - 1:+.2%}",
                "of the seed": f"{means['float32, another seed'] / of_float32 - 1:+.2%}",
                "same weights": f"{after.mean() / before.mean() - 1:+.3%}",
                "a batch": f"{np.max(np.abs(after - before)) / np.mean(np.abs(before)):.3%}",
            }
        )
    record.show(rows, f"Losses, steps {args.steps * 4 // 5} to {args.steps}")
    record.write(args.json, {"rows": rows, "steps": args.steps})


if __name__ == "__main__":
    main()
