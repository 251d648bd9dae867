"""How much like faces samples are to a face detector, whose features see what those of a classifier of CIFAR-10 pass over.

    python benchmarks/face_detector.py --images=DIR --runs=RUNS/faces-DIGEST --json=benchmarks/face_detector.json

`--runs` is the folder in which compare.py has its runs on the faces of `--images`. The
detector is the last of MTCNN's three networks (Zhang et al. 2016, "Joint Face Detection and
Alignment using Multitask Cascaded Convolutional Networks"), with the weights of the package
`mtcnn`: images of 48x48 to 256 features, and from these to the probability of a face. Of each
run: the Frechet distance to training images of samples of the prior, of a Gaussian and of a
mixture fitted to q(z), and of reconstructions of test images, as many of each as there are
test images; and the shares of them that are called a face. The faces themselves come first:
whether the detector can be believed, and the distance that is left between faces and faces.
What `--json` has of the same images and settings counts as done, as in compare.py.

By hand, features and probabilities of 64 faces agreed with those of the same network in
PyTorch with facenet-pytorch's copy of the weights to 2e-6, features being up to 3.3.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import compare_tables as tables
import flax.linen as nn
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import record
from compare_settings import BASELINES, OBJECTIVES, Run, base_config, run_config

import gamix_jax
from gamix_jax.data import open_images
from gamix_jax.errors import InputError
from gamix_jax.metrics.frechet import FeatureStatistics, frechet_distance
from gamix_jax.run_images import choose
from gamix_jax.sampling import fit_sampler
from gamix_jax.steps import to_levels
from gamix_jax.trained import read_config

COUNT = 10_000  # images of a set, at most
# The probability from which an image is called a face; MTCNN itself asks 0.8.
A_FACE = 0.9
# Rows and columns of CelebA's aligned images that hold the face: of squares of 14 to 24 of
# 32 pixels at any height, that in which the detector was surest of 150 test images.
MIDDLE = (slice(7 / 32, 27 / 32), slice(6 / 32, 26 / 32))
RECONSTRUCTIONS = "Frechet, reconstructions"
# A distance, and the share that is called faces.
SHARES = {
    tables.DISTANCE: "faces",
    "Frechet, fitted Gaussian": "faces, fitted Gaussian",
    "Frechet, fitted mixture": "faces, fitted mixture",
    RECONSTRUCTIONS: "faces, reconstructions",
}
Detector = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def open_detector() -> Detector:
    """A function of images [n, H, W, 3], uint8, to features [n, 256] and the probability of a face [n].

    Raises:
      InputError: there is no package `mtcnn`.
    """
    try:
        folder = distribution("mtcnn").locate_file("mtcnn/assets/weights")
    except PackageNotFoundError:
        raise InputError(
            "The detector's weights are those of the package mtcnn, which is not "
            "installed; pip install -e '.[benchmarks]'."
        ) from None
    return jax.jit(partial(detect, joblib.load(folder / "onet.lz4")))


def detect(weights: list[np.ndarray], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `open_detector`; the weights in Keras' order."""
    *stages, hidden, hidden_bias, hidden_slope = weights[:15]
    rows, columns = (
        slice(round(of.start * size), round(of.stop * size))
        for of, size in zip(MIDDLE, images.shape[1:3], strict=True)
    )
    middle = images[:, rows, columns].astype(jnp.float32)
    x = jax.image.resize(middle, (len(images), 48, 48, 3), "cubic")
    x = (jnp.clip(x, 0.0, 255.0) - 127.5) / 128
    pools = (((3, 3), "SAME"), ((3, 3), "VALID"), ((2, 2), "SAME"), None)
    for pool, start in zip(pools, range(0, 12, 3), strict=True):
        kernel, bias, slope = stages[start : start + 3]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + bias[None, None, None]
        x = jnp.where(x < 0, slope[None] * x, x)
        if pool:
            x = nn.max_pool(x, pool[0], (2, 2), pool[1])
    # Its first framework had columns before rows.
    x = x.swapaxes(1, 2).reshape(len(x), -1) @ hidden + hidden_bias[None]
    x = jnp.where(x < 0, hidden_slope[None] * x, x)
    return x, jax.nn.softmax(x @ weights[-2] + weights[-1][None])[:, 1]


def look_at(detector: Detector, images: np.ndarray) -> tuple[FeatureStatistics, float]:
    """Statistics of the features, and the share of images [n, H, W, 3], uint8, that are called a face."""
    statistics, faces = FeatureStatistics(256), 0
    for start in range(0, len(images), 500):
        features, probability = detector(images[start : start + 500])
        statistics.add(np.asarray(features))
        faces += int(np.sum(probability >= A_FACE))
    return statistics, faces / len(images)


def find_runs(folder: Path, images: Path) -> dict[Path, Run]:
    """The runs in compare.py's folder that were evaluated.

    Raises:
      InputError: there is none, the folder is of other images, or a run is of other
        steps than the first or not of today's settings.
    """
    data, _, digest = folder.name.rpartition("-")
    if not data.startswith("faces") or digest != tables.digest_images(images):
        raise InputError(
            f"{folder} is not of {images}; name the folder RUNS/faces-DIGEST that "
            "compare.py made for these images."
        )
    workdirs = sorted(path.parent for path in folder.glob("*/evaluation.json"))
    if not workdirs:
        raise InputError(f"{folder} has no run that is done; run compare.py first.")
    steps, found = read_config(workdirs[0]).train.steps, {}
    for workdir in workdirs:
        config = read_config(workdir)
        weight = config.objective.reconstruction_weight
        runs = [Run(objective, weight, config.seed) for objective in OBJECTIVES]
        run = next((run for run in runs if run.name == workdir.name), None)
        base = base_config(data, str(images), steps)
        if run is None or tables.settings(config, "") != tables.settings(
            run_config(base, run), ""
        ):
            raise InputError(
                f"{workdir} is not of {steps} steps and today's settings; move it away."
            )
        found[workdir] = run
    return found


def row_of(
    workdir: Path,
    detector: Detector,
    train: np.ndarray,
    real: FeatureStatistics,
    test: np.ndarray,
) -> tables.Row:
    """What the detector says of a run, given training images [n, H, W, 3], uint8, the statistics of their features, and test images."""
    model = gamix_jax.load(workdir)
    encode_key, sample_key = jax.random.split(jax.random.key(0))
    z = np.asarray(model.encode(train).sample(encode_key))
    shown = (
        model.sample(sample_key, len(test)),
        model.sample(sample_key, len(test), fit_sampler(z, seed=0, components=1)),
        model.sample(sample_key, len(test), fit_sampler(z, seed=0)),
        model.reconstruct(test),
    )
    row = tables.read_row(workdir)
    row = {key: row[key] for key in (tables.ERROR, "environment") if key in row}
    for (distance, share), images in zip(SHARES.items(), shown, strict=True):
        found, row[share] = look_at(detector, np.asarray(to_levels(images)))
        row[distance], row[f"{distance}, standard error"] = frechet_distance(
            real, found
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--json", type=record.file_to_write)
    args = parser.parse_args()
    known = tables.read_known(args.json)
    runs, detector = find_runs(args.runs, args.images), open_detector()
    of_images = tables.digest_images(args.images)
    # Other sizes, lengths and settings may lie in the JSON, and are no seeds of these.
    of_folder = {
        "data": args.runs.name,
        "steps": read_config(next(iter(runs))).train.steps,
    }
    weights = f"mtcnn {distribution('mtcnn').version}"
    data = read_config(next(iter(runs))).data
    data.dir = str(args.images)
    splits = {split: open_images(data, split) for split in ("train", "test")}
    train, test = (
        images.read(choose(images, min(COUNT, len(images)), split))
        for split, images in splits.items()
    )
    (real, found), (held_out, also) = (look_at(detector, x) for x in (train, test))
    least = frechet_distance(real, held_out)
    print(
        f"Called faces: {found:.1%} of {len(train):,} training images, {also:.1%} of "
        f"{len(test):,} test images, whose distance is {least.value:.3f}."
    )
    for workdir, run in runs.items():
        key = tables.settings(read_config(workdir), of_images), weights
        # A row of before a column was new is made again.
        if not {*SHARES, *SHARES.values()} <= known.get(key, {}).keys():
            known[key] = (
                run._asdict()
                | {"settings": key[0], "classifier": weights}
                | of_folder
                | row_of(workdir, detector, train, real, test)
            )
    base = base_config(
        args.runs.name.rpartition("-")[0], str(args.images), of_folder["steps"]
    )

    def of_today(row: tables.Row) -> bool:
        if not of_folder.items() <= row.items() or row["objective"] not in OBJECTIVES:
            return False
        run = Run(row["objective"], row["weight"], row["seed"])
        return row["settings"] == tables.settings(run_config(base, run), of_images)

    rows = [row for row in known.values() if of_today(row)]
    columns = (tables.ERROR, *SHARES, *SHARES.values())
    record.show(tables.over_seeds(rows, columns), "By the face detector")
    ratios = tables.at_equal_error(rows, BASELINES)
    if ratios:
        record.show(ratios, "Frechet distance over that of a baseline at equal error")
    content = {
        "rows": list(known.values()),
        "training images called faces": found,
        "test images called faces": also,
        "distance of test images": least.value,
    }
    record.write(args.json, content)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
