"""The losses of a training in bfloat16 beside one in float32, from the same weights, images and noise, and beside float32 with another seed.

    python benchmarks/precision.py --images=DIR --runs=runs/precision --out=docs --json=benchmarks/precision.json

`--images` is the folder of photos that configs/celeba.py:folder,small trains on, with the
discriminator from the first step. Draws the curves to OUT/precision.png. The table has
means over the last fifth of the steps; a difference is relative to float32. What seeds
alone differ by says how much of it is chance.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import record

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


def curves(
    images: Path, workdir: Path, dtype: str, seed: int, steps: int
) -> dict[str, np.ndarray]:
    """The losses at each step, [steps]."""
    config = record.load_config("celeba:folder,small")
    config.data.dir, config.model.dtype, config.seed = str(images), dtype, seed
    config.adversarial.start, config.train.log_every = 0, 1
    config.train.steps = config.train.evaluate_every = steps
    config.train.checkpoint_every = steps
    train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "kl" in row]
    if len(rows) < steps:
        raise SystemExit("Stopped; the same command goes on.")
    return {loss: np.array([row[loss] for row in rows]) for loss in LOSSES}


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
    found = {
        name: curves(
            args.images, args.runs / f"{dtype}_{seed}", dtype, seed, args.steps
        )
        for name, (dtype, seed) in RUNS.items()
    }
    draw(found, args.out / "precision.png")
    rows = []
    for loss in LOSSES:
        means = {
            name: float(values[loss][-args.steps // 5 :].mean())
            for name, values in found.items()
        }
        of_float32 = means["float32"]
        rows.append(
            {
                "loss": loss,
                **means,
                "of bfloat16": f"{means['bfloat16'] / of_float32 - 1:+.2%}",
                "of the seed": f"{means['float32, another seed'] / of_float32 - 1:+.2%}",
            }
        )
    record.show(rows, f"Losses, steps {args.steps * 4 // 5} to {args.steps}")
    record.write(args.json, {"rows": rows, "steps": args.steps})


if __name__ == "__main__":
    main()
