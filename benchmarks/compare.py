"""The objectives side by side on real images: the same steps, images and network, each swept over weights of the reconstruction.

    python benchmarks/compare.py --data=mnist --images=mnist.npz --runs=runs/compare --out=docs

Each run is a training and an evaluation by gamix_jax, in a process of its own, `--jobs` at
a time; what is done is skipped, what was stopped goes on. `--images` is an .npz (mnist,
cifar10; digits need none) or a folder of photos (faces). The Frechet distance is of the
features of a classifier, `--features`; without it one is trained on the same images, for
faces on `--labelled`, the .npz of CIFAR-10. All numbers go to `--json`, at the end or when it
is stopped, and what it has of the same images, settings and classifier counts as done: so
machines can share the work, each with the same `--features` (benchmarks/features_*.npz are
those of docs/results.md). OUT gets the trade-off and samples of all objectives from the same
z. A run of MNIST takes 5 minutes of a core, and there are as many as objectives, weights and
seeds together. K = 4 decodes four times an image, and the VampPrior and PatchGAN have parts
of their own: the column "GFLOP" is what a training step takes.
"""

import argparse
import json
import math
import os
import queue
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import compare_tables as tables
import ml_collections
import numpy as np
import record
from compare_settings import (
    BASELINES,
    DATA,
    OBJECTIVES,
    Run,
    base_config,
    run_config,
)
from rich.console import Console

from gamix_jax.compiled import keep_compiled
from gamix_jax.config import flatten
from gamix_jax.cpu import keep_freed_memory
from gamix_jax.data import open_images
from gamix_jax.describe import training_gflop_per_image
from gamix_jax.errors import InputError
from gamix_jax.evaluate import evaluate
from gamix_jax.features import open_features, train_classifier
from gamix_jax.measurements import Options
from gamix_jax.train import train
from gamix_jax.trained import read_config


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, features: Path
) -> None:
    """Leaves WORKDIR/evaluation.json, unless it was stopped, which ends the process."""
    if int(train(config, workdir).step) < config.train.steps:
        raise SystemExit("Stopped; the same command goes on.")
    options = Options(
        features="classifier",
        features_file=str(features),
        likelihood_samples=16,
        cache=workdir.parent,
    )
    evaluate(workdir, options, Console())
    environment = json.dumps(record.environment(), indent=1)
    (workdir / "environment.json").write_text(environment)


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
) -> str:
    """The digest of the classifier, which is trained unless it is there."""
    if not path.exists():
        options = config.data.copy_and_resolve_references()
        if labelled:
            options.source, options.dir = "array", str(labelled)
        splits = (open_images(options, split) for split in ("train", "test"))
        train_classifier(*splits, path, Console(), steps=1000)
    return open_features(
        "classifier", path, config.data.size, config.data.channels
    ).digest


def is_done(workdir: Path, config: ml_collections.ConfigDict, digest: str) -> bool:
    """Whether it was evaluated at its last step; refuses a folder of other settings, and distances by another classifier."""
    path = workdir / "evaluation.json"
    if not path.exists():
        return False
    found, wanted = flatten(read_config(workdir)), flatten(config)
    other = [k for k in wanted if k != "data.dir" and found[k] != wanted[k]]
    evaluation = json.loads(path.read_text())
    if digest[:12] not in evaluation["protocol"]["images"]:
        other.append("classifier")
    if other:
        raise SystemExit(
            f"{workdir} was run with another {', '.join(other)}; use another --runs."
        )
    return evaluation["step"] == config.train.steps


def run_all(runs: list[Run], folder: Path, jobs: int) -> bool:
    """Runs this script for each run, each job on cores of its own, and says how each ended; False if it was stopped, and so stopped them."""
    cores = sorted(os.sched_getaffinity(0))
    slots, children, stopped, ended = queue.SimpleQueue(), set(), [], []
    print(f"{len(runs)} to run, {jobs} at a time; each has a log.txt in {folder}.")
    for job in range(jobs):
        slots.put(cores[job::jobs])

    def run_one(run: Run) -> None:
        if stopped:
            return
        workdir = folder / run.name
        workdir.mkdir(parents=True, exist_ok=True)
        only = [f"--only={run.objective}:{run.weight}:{run.seed}"]
        slot = slots.get()
        try:  # or a full disk would leave the others waiting for the slot
            only += [f"--cores={','.join(map(str, slot))}"]
            with (workdir / "log.txt").open("a") as log:
                child = subprocess.Popen(
                    [sys.executable, *sys.argv, *only], stdout=log, stderr=log
                )
            children.add(child)
            status = child.wait()
            children.remove(child)
        finally:
            slots.put(slot)
        ended.append(run)
        how = "stopped" if stopped else "not done"
        words = f"{how}, see {log.name}" if status else "done"
        print(f"{len(ended)} of {len(runs)}, {run.name}: {words}", flush=True)

    def stop(number: int, _) -> None:
        print("Stopping; each run saves the step that it is at.", flush=True)
        stopped.append(number)
        for child in tuple(children):
            child.terminate()

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_one, run) for run in runs]
        for future in waiting:
            future.result()
    for number, handler in before.items():
        signal.signal(number, handler)
    return not stopped


def parse() -> argparse.Namespace:
    """The command line, checked."""
    names = list(OBJECTIVES)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="objectives, to be quoted:\n  " + "\n  ".join(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--images", type=Path, help="their file or folder")
    parser.add_argument("--labelled", type=Path, help="faces: the .npz of CIFAR-10")
    parser.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures")
    parser.add_argument(
        "--objectives",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help="of those below (all)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        help="of the mean absolute error, images in [-1, 1] (those of the images)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (3 of them)")
    parser.add_argument("--steps", type=int, default=1500, help="of each run (1500)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(cores + 1),
        default=cores,
        help="at a time, each on cores of its own; 0 makes tables of what is done",
    )
    parser.add_argument("--json", type=record.file_to_write, help="of all; grows")
    parser.add_argument(
        "--features", type=Path, help="classifier; else trained, and kept in RUNS"
    )
    parser.add_argument("--only", help="one run; used by the script itself")
    parser.add_argument("--cores", help="used by the script itself")
    args = parser.parse_args()
    if args.weights and not all(0 < weight < math.inf for weight in args.weights):
        parser.error("--weights must be positive and finite")
    if min(args.seeds, args.steps) < 1:
        parser.error("--seeds and --steps must be at least 1")
    if args.data != "digits" and not (args.images and args.images.exists()):
        parser.error("--images is missing or not there; name the images")
    if args.data.startswith("faces") and not (args.labelled or args.features):
        parser.error("faces have no labels; name --labelled or --features")
    if args.labelled and (args.features or not args.data.startswith("faces")):
        parser.error("--labelled is for faces without --features")
    if args.features and not args.features.exists():
        parser.error(f"--features={args.features} is not there")
    return args


def main() -> None:
    args = parse()
    of_images = tables.digest_images(args.images)  # so others lie apart
    folder = args.runs / "-".join(filter(None, (args.data, of_images)))
    folder.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    images = padded(args.images, folder) if args.data == "mnist" else args.images
    config = base_config(args.data, str(images or ""), args.steps)
    features = args.features or folder / "classifier.npz"
    if args.only:
        os.sched_setaffinity(0, map(int, args.cores.split(",")))
        keep_freed_memory()
        keep_compiled(args.runs / "compiled")
        objective, weight, seed = args.only.rsplit(":", 2)
        run = Run(objective, float(weight), int(seed))
        train_and_evaluate(run_config(config, run), folder / run.name, features)
        return
    known = tables.read_known(args.json)
    if not args.jobs and not features.exists():
        raise SystemExit(f"No run is done: there is no {features}.")
    digest = make_features(config, args.labelled, features)
    runs = [
        Run(objective, float(weight), seed)
        for seed in range(args.seeds)
        for objective in dict.fromkeys(args.objectives)
        for weight in sorted({*(args.weights or DATA[args.data][2])})
    ]

    def key(run: Run) -> tuple[str, str]:
        return tables.settings(run_config(config, run), of_images), digest

    def done_here(run: Run) -> bool:
        return is_done(folder / run.name, run_config(config, run), digest)

    todo = [run for run in runs if key(run) not in known and not done_here(run)]
    whole = not args.jobs or run_all(todo, folder, args.jobs)
    gflop = {
        objective: training_gflop_per_image(run_config(config, Run(objective, 1.0, 0)))
        for objective in args.objectives
    }
    known |= tables.read_known(args.json)  # what others wrote meanwhile
    for run in (run for run in runs if key(run) not in known and done_here(run)):
        known[key(run)] = (
            run._asdict()
            | {"data": args.data, "steps": args.steps}
            | {"settings": key(run)[0], "classifier": digest}
            | {"GFLOP": gflop[run.objective] * config.train.batch_size}
            | tables.read_row(folder / run.name)
        )
    rows = [known[key(run)] | run._asdict() for run in runs if key(run) in known]
    if not rows:
        raise SystemExit(f"No run is done; each has a log.txt in {folder}.")
    record.write(args.json, {"rows": list(known.values())})
    tables.report(rows, BASELINES, f"{args.data}, {args.steps:,} steps", args.out)
    nearest = tables.nearest_in_error(rows, BASELINES[0])
    nearest = {words: Run(*of) for words, of in nearest.items()}
    if all(map(done_here, nearest.values())):
        tables.draw_samples(
            {words: folder / run.name for words, run in nearest.items()},
            args.out / f"compare_{args.data}_samples.png",
        )
    else:
        print("No samples are drawn: not all that are nearest in error ran here.")
    missing = [run.name for run in runs if key(run) not in known]
    if not whole:
        raise SystemExit("Stopped; the same command goes on.")
    if missing:
        more = f", and {len(missing) - 8} more" if len(missing) > 8 else ""
        named = ", ".join(missing[:8]) + more
        raise SystemExit(f"Not done, so not in the tables: {named}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
