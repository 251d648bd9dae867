"""The losses of a training in bfloat16 beside one in float32, from the same weights, images and noise, and beside float32 with another seed.

    python benchmarks/precision.py --images=DIR --runs=runs/precision --out=docs --json=benchmarks/precision.json

`--images` is the folder of photos that configs/celeba.py:folder,small trains on, with the
discriminator from the first step. Draws the curves to OUT/precision.png. The first table
has means over the last fifth of the steps, and what they differ from float32's by, relative
to the mean size of float32's. What seeds alone differ by says how much of it is chance:
trainings drift apart from the first rounding. So the second has the losses of float32's last
state in both precisions, of the same noise and the first training images, unmirrored: the
mean difference, its standard error over the batches, and the largest.
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
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.state import TrainState
from gamix_jax.steps import make_train_step
from gamix_jax.train import train

LOSSES = (
    "reconstruction",
    "kl",
    "collapse_penalty",
    "adversarial",
    "generator_loss",
    "discriminator_loss",
)
RUNS = {
    "float32": ("float32", 0),
    "bfloat16": ("bfloat16", 0),
    "float32, another seed": ("float32", 1),
}
BATCHES = 50  # for the losses of one state


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
    """The losses of one state, which stays as it is, of as many batches as BATCHES."""
    images, size = open_images(config.data, "train"), config.train.batch_size
    step, state = map_over_devices(make_train_step(config)), replicate(state)
    found = []
    for first in range(0, BATCHES * size, size):
        batch = images.read(np.arange(first, first + size) % len(images))
        found.append(jax.device_get(step(state, put_on_devices(batch))[1]))
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
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
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
    found, states = {}, {}
    for name, (dtype, seed) in RUNS.items():
        config = config_of(args.images, dtype, seed, args.steps)
        found[name], states[name] = curves(config, args.runs / f"{dtype}_{seed}")
    draw(found, args.out / "precision.png")
    same = {
        dtype: losses_at(
            config_of(args.images, dtype, 0, args.steps), states["float32"]
        )
        for dtype in ("float32", "bfloat16")
    }
    trained, of_one_state = [], []
    for loss in LOSSES:
        late = {
            name: values[loss][-args.steps // 5 :] for name, values in found.items()
        }
        scale = np.mean(np.abs(late["float32"]))
        means = {name: float(values.mean()) for name, values in late.items()}
        trained.append(
            {"loss": loss, **means}
            | {
                f"{name} / float32 - 1": f"{(mean - means['float32']) / scale:+.2%}"
                for name, mean in means.items()
                if name != "float32"
            }
        )
        apart = same["bfloat16"][loss] - same["float32"][loss]
        scale = np.mean(np.abs(same["float32"][loss]))
        error = np.std(apart, ddof=1) / len(apart) ** 0.5
        of_one_state.append(
            {
                "loss": loss,
                "float32": float(same["float32"][loss].mean()),
                "bfloat16 - float32": f"{np.mean(apart) / scale:+.3%}",
                "standard error": f"{error / scale:.3%}",
                "largest of a batch": f"{np.max(np.abs(apart)) / scale:.3%}",
            }
        )
    record.show(trained, f"Losses, steps {args.steps * 4 // 5} to {args.steps}")
    record.show(of_one_state, f"Losses of float32's state after step {args.steps}")
    tables = {"trained": trained, "of one state": of_one_state}
    record.write(args.json, tables | {"steps": args.steps})


if __name__ == "__main__":
    main()
