"""The objectives side by side on real images: the same network, steps and images, each swept over weights of the reconstruction.

    python benchmarks/compare.py --data=mnist --images=../shared/data/mnist.npz --runs=runs/compare --out=docs

Each run is a training and an evaluation by gamix_jax, in a process of its own, `--jobs` at
a time; what is done is skipped, what was stopped goes on. `--images` is an .npz (mnist,
cifar10; digits need none) or a folder of photos (faces). The Frechet distance is of a
classifier's features, trained on the same images; on photos without labels, on those of
`--labelled`, the .npz of CIFAR-10. Writes all numbers to `--json`, and to OUT the
trade-off and samples of all objectives from the same z.
"""

import argparse
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import compare_tables as tables
import ml_collections
import numpy as np
import record
from rich.console import Console

from gamix_jax.compiled import keep_compiled
from gamix_jax.config import flatten
from gamix_jax.cpu import keep_freed_memory
from gamix_jax.data import open_images
from gamix_jax.evaluate import evaluate
from gamix_jax.features import train_classifier
from gamix_jax.measurements import Options
from gamix_jax.train import train
from gamix_jax.trained import read_config

# Of all runs: small networks, so that a run takes minutes of one core.
NETWORK = {
    "model.widths": (8, 16, 32),
    "model.encoder_blocks": 0,
    "model.bottleneck": 32,
    "discriminator.widths": (32, 32, 32),
    "discriminator.strides": (2, 2, 1),
    "adversarial.loss": "none",
    "optimizer.generator_learning_rate": 1e-3,
    "train.batch_size": 64,
    "train.ema_decay": 0.995,
    "train.log_every": 100,
    "train.checkpoints_kept": 1,
}
# A file in configs/, what else differs from it, and weights of the error that span a range
# of errors.
DATA = {
    "digits": ("digits", {"data.size": 8, "model.widths": (16, 32)}, (100, 200)),
    "mnist": ("mnist", {"data.source": "array"}, (600, 1200, 2400, 4800)),
    "cifar10": (
        "cifar10",
        {"data.source": "array", "model.latent_size": 64},
        (500, 1000, 2000, 4000),
    ),
    "faces": (
        "celeba:folder",
        {"data.size": 32, "model.latent_size": 64},
        (500, 1000, 2000, 4000),
    ),
    "faces64": (
        "celeba:folder",
        {"model.widths": (16, 32, 64, 64), "model.latent_size": 64},
        (1000, 2000, 4000, 8000),
    ),
}
ELBO = {"objective.kl": "elbo", "objective.collapse_weight": 0.0}
HINGE = {"adversarial.loss": "hinge", "adversarial.weight": 5.0}
FULL = {"objective.covariance": "full", "objective.kl_weight": 25.0}
# The penalty at 1/2 is the part of an image's KL that its variances make, so that one
# weight of the error means about the same to all.
AGGREGATE = {"objective.collapse_weight": 0.5, "objective.kl_weight": 5.0}
BASELINE = "standard and beta-VAE"
OBJECTIVES = {
    BASELINE: ELBO,
    "author's, without GAN": AGGREGATE | {"objective.variance": "between"},
    "diagonal": AGGREGATE,
    "full": AGGREGATE | FULL,
    "ELBO of K = 4": ELBO | {"model.components": 4},
    "VampPrior": ELBO | {"model.prior": "vamp", "objective.kl_warmup": 300},
    "beta-VAE, PatchGAN": ELBO | HINGE,
    "full, PatchGAN": AGGREGATE | FULL | HINGE,
}


class Run(NamedTuple):
    """One training and its evaluation; `weight` is of the reconstruction."""

    objective: str
    weight: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        words = "".join(c if c.isalnum() else "_" for c in self.objective)
        return f"{words}-{self.weight:g}-{self.seed}"


def base_config(data: str, images: str, steps: int) -> ml_collections.ConfigDict:
    """The configuration that the runs on some images share."""
    name, changes, _ = DATA[data]
    config = record.load_config(name)
    config.update_from_flattened_dict(NETWORK | changes)
    config.data.dir = images
    config.train.steps = config.train.evaluate_every = steps
    config.train.checkpoint_every = max(1, steps // 4)
    return config


def run_config(base: ml_collections.ConfigDict, run: Run) -> ml_collections.ConfigDict:
    """The configuration of one run."""
    config = base.copy_and_resolve_references()
    config.seed = run.seed
    config.update_from_flattened_dict(
        OBJECTIVES[run.objective] | {"objective.reconstruction_weight": run.weight}
    )
    return config


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, features: Path
) -> None:
    """Leaves WORKDIR/evaluation.json."""
    train(config, workdir)
    options = Options(
        features="classifier",
        features_file=str(features),
        likelihood_samples=16,
        cache=features.parent,
    )
    evaluate(workdir, options, Console())


def padded(images: Path, runs: Path) -> Path:
    """The .npz of MNIST with its images of 28x28 in the middle of 32x32."""
    path = runs / "mnist_padded.npz"
    if not path.exists():
        with np.load(images) as arrays:
            content = dict(arrays)
        for name in ("train_images", "test_images"):
            content[name] = np.pad(content[name], ((0, 0), (2, 2), (2, 2)))
        np.savez_compressed(path.with_suffix(".new.npz"), **content)
        path.with_suffix(".new.npz").replace(path)
    return path


def make_features(
    config: ml_collections.ConfigDict, labelled: Path | None, path: Path
) -> None:
    """Trains the classifier, unless it is there."""
    if path.exists():
        return
    options = config.data.copy_and_resolve_references()
    if labelled:
        options.source, options.dir = "array", str(labelled)
    splits = (open_images(options, split) for split in ("train", "test"))
    train_classifier(*splits, path, Console(), steps=1000)


def is_done(workdir: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether it was evaluated; refuses a folder of other settings."""
    if not (workdir / "evaluation.json").exists():
        return False
    found, wanted = flatten(read_config(workdir)), flatten(config)
    other = [key for key in wanted if found[key] != wanted[key] and key != "data.dir"]
    if other:
        raise SystemExit(
            f"{workdir} was run with another {', '.join(other)}; use another --runs."
        )
    return True


def run_all(runs: list[Run], folder: Path, jobs: int) -> None:
    """Runs this script for each run, each job on cores of its own, and says which failed."""
    cores = sorted(os.sched_getaffinity(0))
    slots = queue.SimpleQueue()
    for job in range(jobs):
        slots.put(cores[job::jobs])

    def run_one(run: Run) -> None:
        slot = slots.get()
        workdir = folder / run.name
        workdir.mkdir(parents=True, exist_ok=True)
        only = [f"--only={run.objective}:{run.weight:g}:{run.seed}"]
        only += [f"--cores={','.join(map(str, slot))}"]
        with (workdir / "log.txt").open("a") as log:
            status = subprocess.call(
                [sys.executable, *sys.argv, *only], stdout=log, stderr=log
            )
        slots.put(slot)
        print(f"{run.name}: {f'failed, see {log.name}' if status else 'done'}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_one, runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--images", type=Path, help="their file or folder")
    parser.add_argument("--labelled", type=Path, help="faces: the .npz of CIFAR-10")
    parser.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--weights", nargs="+", type=float, help="of the error")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="at a time, each on cores of its own; 0 makes tables of what is done",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="one run; used by the script itself")
    parser.add_argument("--cores", help="used by the script itself")
    args = parser.parse_args()
    if args.data != "digits" and not (args.images and args.images.exists()):
        raise SystemExit(f"--images={args.images or ''} is not there; name the images.")
    folder = args.runs / args.data
    folder.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    images = padded(args.images, folder) if args.data == "mnist" else args.images
    config = base_config(args.data, str(images or ""), args.steps)
    features = folder / "classifier.npz"
    if args.only:
        os.sched_setaffinity(0, map(int, args.cores.split(",")))
        keep_freed_memory()
        keep_compiled(args.runs / "compiled")
        objective, weight, seed = args.only.rsplit(":", 2)
        run = Run(objective, float(weight), int(seed))
        train_and_evaluate(run_config(config, run), folder / run.name, features)
        return
    make_features(config, args.labelled, features)
    runs = [
        Run(objective, weight, seed)
        for seed in range(args.seeds)
        for objective in args.objectives
        for weight in args.weights or DATA[args.data][2]
    ]

    def done(run: Run) -> bool:
        return is_done(folder / run.name, run_config(config, run))

    if args.jobs:
        run_all([run for run in runs if not done(run)], folder, args.jobs)
    missing = [run.name for run in runs if not done(run)]
    runs = [run for run in runs if done(run)]
    if not runs:
        raise SystemExit(f"No run is done; each has a log.txt in {folder}.")
    rows = [run._asdict() | tables.read_row(folder / run.name) for run in runs]
    for columns in (tables.OF_IMAGES, tables.OF_LATENTS):
        record.show(
            tables.over_seeds(rows, columns), f"{args.data}, {args.steps:,} steps"
        )
    for distance, samples in tables.COMPARED.items():
        ratios = tables.at_equal_error(rows, BASELINE, distance)
        if ratios:
            record.show(
                ratios, f"Frechet distance over that of the {BASELINE}, {samples}"
            )
    tables.draw(rows, args.data, args.out / f"compare_{args.data}.png")
    weights = sorted({run.weight for run in runs})
    middle = weights[len(weights) // 2]
    shown = {
        run.objective: folder / run.name
        for run in runs
        if (run.weight, run.seed) == (middle, 0)
    }
    tables.draw_samples(shown, args.out / f"compare_{args.data}_samples.png")
    record.write(args.json, {"rows": rows, "steps": args.steps})
    if missing:
        print(f"Not done, so not in the tables: {', '.join(missing)}")


if __name__ == "__main__":
    main()
