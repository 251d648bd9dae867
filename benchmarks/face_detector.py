"""How much like faces samples are to a face detector, whose features see what those of a classifier of CIFAR-10 pass over.

    python benchmarks/face_detector.py --images=DIR --runs=RUNS/faces-DIGEST --json=benchmarks/face_detector.json

`--runs` is the folder in which compare.py has its runs on the faces of `--images`. The
detector is the last of MTCNN's three networks (Zhang et al. 2016, "Joint Face Detection and
Alignment using Multitask Cascaded Convolutional Networks"), with the weights of the package
`mtcnn`: images of 48x48 to 256 features, and from these to the probability of a face. It is
given the middle of each image, which holds the face. Of each run: the Frechet distance
to the training images of samples of N(0, I) and of a Gaussian fitted to q(z), and of
reconstructions of the test images, and how many of each are called a face with 0.9 or more.
The faces themselves come first: whether the detector can be believed, and the distance that
is left between two sets of them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import compare_tables as tables
import flax.linen as nn
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import record
from compare_settings import BASELINES, OBJECTIVES, Run

import gamix_jax
from gamix_jax.data import open_images
from gamix_jax.metrics.frechet import FeatureStatistics, frechet_distance
from gamix_jax.sampling import fit_sampler
from gamix_jax.steps import to_levels
from gamix_jax.trained import read_config

COUNT = 10_000  # samples, and training images, at most
# Rows and columns of an image: of the squares tried, the one in which the detector is
# surest of the faces of the test images.
MIDDLE = (slice(8 / 32, 28 / 32), slice(6 / 32, 26 / 32))
RECONSTRUCTIONS = "Frechet, reconstructions"
COLUMNS = (
    *(tables.ERROR, *tables.COMPARED, RECONSTRUCTIONS),
    *("samples called faces", "reconstructions called faces"),
)
Detect = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def open_detector() -> Detect:
    """A function of images [n, H, W, 3], uint8, to features [n, 256] and the probability of a face [n]."""
    folder = distribution("mtcnn").locate_file("mtcnn/assets/weights")
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


def look_at(detector: Detect, images: np.ndarray) -> tuple[FeatureStatistics, float]:
    """Statistics of the features, and the share of images [n, H, W, 3], uint8, that are called a face."""
    statistics, faces = FeatureStatistics(256), 0
    for start in range(0, len(images), 500):
        features, probability = detector(images[start : start + 500])
        statistics.add(np.asarray(features))
        faces += int(np.sum(probability >= 0.9))
    return statistics, faces / len(images)


def row_of(workdir: Path, detector: Detect, real: FeatureStatistics) -> tables.Row:
    """What the detector says of a run, with what the run is."""
    config, model = read_config(workdir), gamix_jax.load(workdir)
    weight = config.objective.reconstruction_weight
    runs = [Run(objective, weight, config.seed) for objective in OBJECTIVES]
    (run,) = (run for run in runs if run.name == workdir.name)
    train, test = (open_images(config.data, split) for split in ("train", "test"))
    posterior = model.encode(train.read(np.arange(min(len(train), COUNT))))
    key = jax.random.key(0)
    fitted = fit_sampler(np.asarray(posterior.sample(key)), seed=0, components=1)
    shown = {
        tables.DISTANCE: model.sample(key, COUNT),
        "Frechet, fitted Gaussian": model.sample(key, COUNT, fitted),
        RECONSTRUCTIONS: model.reconstruct(test.read(np.arange(len(test)))),
    }
    row = run._asdict() | tables.read_row(workdir)
    for column, images in shown.items():
        found, row[column + ", faces"] = look_at(detector, to_levels(images))
        row[column] = frechet_distance(real, found).value
    row["samples called faces"] = row[tables.DISTANCE + ", faces"]
    row["reconstructions called faces"] = row[RECONSTRUCTIONS + ", faces"]
    return {k: row[k] for k in ("objective", "weight", "seed", *COLUMNS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    workdirs = sorted(path.parent for path in args.runs.glob("*/evaluation.json"))
    if not workdirs:
        parser.error(f"{args.runs} has no run that was evaluated")
    detector, data = open_detector(), read_config(workdirs[0]).data
    data.dir = str(args.images)
    train, test = (open_images(data, split) for split in ("train", "test"))
    real, found = look_at(detector, train.read(np.arange(min(len(train), COUNT))))
    held_out, also = look_at(detector, test.read(np.arange(len(test))))
    least = frechet_distance(real, held_out)
    print(
        f"Called faces: {found:.1%} of the training images, {also:.1%} of the test "
        f"images, whose distance is {least.value:.3f} ± {least.standard_error:.3f}."
    )
    rows = [row_of(workdir, detector, real) for workdir in workdirs]
    record.show(tables.over_seeds(rows, COLUMNS), "By the face detector")
    ratios = tables.at_equal_error(rows, BASELINES)
    if ratios:
        record.show(ratios, "Frechet distance over that of a baseline at equal error")
    faces = {"training images called faces": found, "test images called faces": also}
    record.write(
        args.json, {"rows": rows, "distance of test images": least.value} | faces
    )


if __name__ == "__main__":
    main()
