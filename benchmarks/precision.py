"""The losses of trainings in bfloat16 beside float32, from the same weights, images and noise, over several seeds.

    python benchmarks/precision.py --images=DIR --runs=runs/precision --picture=docs/precision.png --seeds=30 --json=benchmarks/precision.json

`--images` is a folder of photos. The configuration is configs/celeba.py:folder with its
objective, normalisation, weights and learning rates, but of 32x32 images and networks
narrow enough for a CPU. A folder of runs is of one version of the code. Draws the curves. Trainings drift apart from the first rounding, so each seed is
trained a third time, in float32 with the autoencoder's learning rate larger by a
millionth: what differs there is chance. The first table has how the means over the last
fifth of the steps differ between bfloat16, float32 and that control, relative to the mean
size of float32's, averaged over the seeds, with the standard error and the mean size of a
seed's difference, and how much float32's own differ from seed to seed (standard
deviation). The second has the losses of float32's last state of the first seed in both
precisions, of one draw of noise and the first training images, unmirrored: the mean
difference, its standard error over the batches, and the largest. The third has that
state's gradients of the first batch by kinds of arrays: kernels, biases, scales.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import optax
import record
from jax.flatten_util import ravel_pytree

from gamix_jax.compiled import keep_compiled
from gamix_jax.cpu import keep_freed_memory
from gamix_jax.data import open_images
from gamix_jax.errors import InputError
from gamix_jax.logs import read_metrics
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
NARROW = {
    "data.size": 32,
    "model.widths": (16, 32),
    "model.encoder_blocks": 0,
    "discriminator.widths": (16, 32),
    "discriminator.strides": (2, 1),
    "train.batch_size": 16,
}
PLAYERS = ("generator", "discriminator")
DTYPES = ("float32", "bfloat16")
CONTROL = "float32 again"
BATCHES = 50  # for the losses of one state
Gradient = dict[str, np.ndarray]  # arrays by their names


def config_of(
    name: str, seed: int, images: Path, steps: int
) -> ml_collections.ConfigDict:
    """Of a training in one of DTYPES, or of the CONTROL."""
    config = record.load_config("celeba:folder")
    config.update_from_flattened_dict(NARROW)
    config.data.dir, config.seed = str(images), seed
    config.model.dtype = "float32" if name == CONTROL else name
    if name == CONTROL:
        config.optimizer.generator_learning_rate *= 1 + 1e-6
    config.train.log_every = 1
    config.train.steps = config.train.evaluate_every = steps
    config.train.checkpoint_every = steps
    return config


def curves(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[dict[str, np.ndarray], TrainState]:
    """The losses at each step, [steps], and the last state."""
    state = train(config, workdir)
    rows = logged(workdir)
    if len(rows) < config.train.steps:
        raise SystemExit("Stopped; the same command goes on.")
    jax.clear_caches()  # or programs of some 30 trainings fill the process's maps
    return {loss: np.array([row[loss] for row in rows]) for loss in LOSSES}, state


def logged(workdir: Path) -> list[dict]:
    """What a run logged at each of its steps so far."""
    return [row for row in read_metrics(workdir, sys.maxsize) if "kl" in row]


def at_one_state(
    config: ml_collections.ConfigDict, state: TrainState
) -> tuple[dict[str, np.ndarray], dict[str, Gradient]]:
    """The losses of one state, which stays as it is, of as many batches as BATCHES, and both players' gradients of the first."""
    config.optimizer.beta1 = 0.0  # so that Adam's first moment is the gradient
    images, size = open_images(config.data, "train"), config.train.batch_size
    step, state = map_over_devices(make_train_step(config)), replicate(state)
    found, gradients = [], {}
    for first in range(0, BATCHES * size, size):
        batch = images.read(np.arange(first, first + size) % len(images))
        after, metrics = step(state, put_on_devices(batch))
        found.append(jax.device_get(metrics))
        if first == 0:
            if int(after.skipped) > int(state.skipped):
                raise SystemExit(
                    "This state's first step diverges; it has no gradient."
                )
            gradients = {player: gradient_of(after, player) for player in PLAYERS}
    losses = {loss: np.array([metrics[loss] for metrics in found]) for loss in LOSSES}
    return losses, gradients


def gradient_of(state: TrainState, player: str) -> Gradient:
    """Adam's first moment."""
    _, unravel = ravel_pytree(getattr(state, f"{player}_params"))
    tree = unravel(optax.tree.get(getattr(state, f"{player}_opt_state"), "mu"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }


def draw(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A panel for each loss of [seeds, steps]: means of 10 steps and of the seeds, and the range of the seeds."""
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(15, 3), layout="constrained")
    for loss, axes in zip(LOSSES, panels, strict=True):
        for style, (dtype, of) in zip(("-", "--", ":"), found.items(), strict=True):
            seeds, steps = of[loss].shape
            values = of[loss][:, : steps // 10 * 10].reshape(seeds, -1, 10).mean(2)
            at = 10 * np.arange(1, values.shape[1] + 1)
            axes.plot(at, values.mean(0), style, label=dtype)
            axes.fill_between(at, values.min(0), values.max(0), alpha=0.2)
        late = np.concatenate([of[loss][:, steps // 10 :] for of in found.values()])
        axes.set(title=loss, xlabel="step", ylim=np.quantile(late, (0.0, 0.99)))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


def rows_of_trained(loss: str, last: dict[str, np.ndarray]) -> list[dict]:
    """How the runs differ over the last fifth of the steps, [seeds, steps]: bfloat16 from the mean of both float32's, which has less chance in it, and each from the first."""
    scale = np.mean(np.abs(last["float32"]))
    means = {name: losses.mean(1) for name, losses in last.items()}
    float32, again = means["float32"], means[CONTROL]
    differences = {
        "bfloat16 - mean of both float32": means["bfloat16"] - (float32 + again) / 2,
        "bfloat16 - float32": means["bfloat16"] - float32,
        "float32 again - float32": again - float32,
    }
    rows = []
    for name, apart in differences.items():
        apart = apart / scale
        rows.append(
            {
                "loss": loss,
                "float32": float(float32.mean()),
                "seed to seed": f"{float32.std(ddof=1) / scale:.2%}",
                "difference": name,
                "mean": f"{apart.mean():+.2%}",
                "standard error": f"{apart.std(ddof=1) / len(apart) ** 0.5:.2%}",
                "mean size": f"{np.abs(apart).mean():.1%}",
            }
        )
    return rows


def row_of_one_state(loss: str, float32: np.ndarray, bfloat16: np.ndarray) -> dict:
    """Of the losses [batches] of one state in both precisions."""
    apart, scale = bfloat16 - float32, np.mean(np.abs(float32))
    error = apart.std(ddof=1) / len(apart) ** 0.5
    return {
        "loss": loss,
        "float32": float(float32.mean()),
        "bfloat16 - float32": f"{apart.mean() / scale:+.3%}",
        "standard error": f"{error / scale:.3%}",
        "largest of a batch": f"{np.abs(apart).max() / scale:.3%}",
    }


def rows_of_gradients(player: str, float32: Gradient, bfloat16: Gradient) -> list[dict]:
    """Of the arrays of a kind: how much of float32's gradient bfloat16's has along it, how long their difference is beside it, and that of the farthest array."""
    apart = {name: np.linalg.norm(bfloat16[name] - float32[name]) for name in float32}
    length = {name: np.linalg.norm(float32[name]) for name in float32}
    rows = []
    for kind in ("kernel", "bias", "scale"):
        names = [n for n in float32 if n.endswith(f"/{kind}") and length[n] > 0.0]
        if not names:
            continue
        squared = sum(length[n] ** 2 for n in names)
        along = sum(np.vdot(float32[n], bfloat16[n]) for n in names) / squared
        difference = (sum(apart[n] ** 2 for n in names) / squared) ** 0.5
        farthest = max(names, key=lambda name: apart[name] / length[name])
        rows.append(
            {
                "player": player,
                "arrays": f"{kind} of {len(names)}",
                "along": f"{along:.1%}",
                "apart": f"{difference:.1%}",
                "farthest": f"{apart[farthest] / length[farthest]:.1%}",
                "which": farthest,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photos")
    parser.add_argument(
        "--runs", type=Path, required=True, help="gone on from, if there"
    )
    parser.add_argument(
        "--picture",
        type=record.file_to_write,
        required=True,
        help="of the curves, .png",
    )
    parser.add_argument("--steps", type=int, default=500, help="10 or more (500)")
    parser.add_argument(
        "--seeds", type=int, default=8, help="2 or more, three trainings each (8)"
    )
    parser.add_argument("--json", type=record.file_to_write, help="of all tables")
    args = parser.parse_args()
    if args.seeds < 2 or args.steps < 10:
        parser.error("needs 2 seeds and 10 steps, or more")
    if args.picture.suffix != ".png":
        parser.error(f"--picture={args.picture} is to end with .png")
    keep_freed_memory()  # as --mode=train does
    keep_compiled(args.runs / "compiled")  # or each training compiles anew
    configured = partial(config_of, images=args.images, steps=args.steps)
    runs, state = {name: [] for name in (*DTYPES, CONTROL)}, None
    workdirs = {
        (name, seed): args.runs / f"{name}_{seed}".replace(" ", "_")
        for seed in range(args.seeds)
        for name in runs
    }
    for workdir in workdirs.values():
        if len(logged(workdir)) > args.steps:
            parser.error(f"{workdir} has more steps; use another --runs")
    for (name, seed), workdir in workdirs.items():
        losses, ended = curves(configured(name, seed), workdir)
        runs[name].append(losses)
        state = ended if state is None else state
    found = {
        name: {loss: np.stack([of[loss] for of in of_seeds]) for loss in LOSSES}
        for name, of_seeds in runs.items()
    }
    draw(found, args.picture)
    fifth = args.steps // 5
    last = {
        loss: {name: of[loss][:, -fifth:] for name, of in found.items()}
        for loss in LOSSES
    }
    trained = [row for loss in LOSSES for row in rows_of_trained(loss, last[loss])]
    losses, gradients = zip(
        *(at_one_state(configured(dtype, 0), state) for dtype in DTYPES), strict=True
    )
    of_one_state = [
        row_of_one_state(loss, *(of[loss] for of in losses)) for loss in LOSSES
    ]
    of_gradients = [
        row
        for player in PLAYERS
        for row in rows_of_gradients(player, *(of[player] for of in gradients))
    ]
    record.show(trained, f"Losses, steps {args.steps - fifth + 1} to {args.steps}")
    record.show(of_one_state, f"Losses of float32's state after step {args.steps}")
    record.show(of_gradients, "Its gradients in bfloat16 beside float32's")
    means = {
        loss: {name: losses.mean(1).tolist() for name, losses in of.items()}
        for loss, of in last.items()
    }
    tables = {
        "trained": trained,
        "of one state": of_one_state,
        "gradients of one state": of_gradients,
        "means": means,
    }
    record.write(args.json, tables | {"steps": args.steps, "seeds": args.seeds})


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
