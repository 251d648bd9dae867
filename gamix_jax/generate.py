"""`--mode=sample|reconstruct|interpolate|traverse|latent`: what a trained model makes, as pictures and arrays."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from gamix_jax import figures, plots
from gamix_jax.data import Images
from gamix_jax.errors import NO_ROOM, InputError, make_folder
from gamix_jax.run_images import choose, open_run_images, read_chosen, read_images
from gamix_jax.sampling import LatentSampler, fit_sampler, prior_sampler
from gamix_jax.steps import to_levels
from gamix_jax.trained import TrainedModel, load

CODED_AT_ONCE = 256  # images
MOST_IN_GRID = 1_024  # images in one picture
STEPS = 9  # of a walk in a grid
FRAMES = 24  # of a walk in an animation
MAPPED = 2_000  # images in a latent map
TRAVERSED = 8  # dimensions, unless named


class Options(NamedTuple):
    """What is asked for; each mode takes some of it.

    Attributes:
      out: folder of what is made; "" is WORKDIR/MODE.
      count: images, or pairs of them; None is the mode's own, or all of the user's.
      seed: of what is random.
      images: folder, zip, tar or file of the user's images; "" takes held-out ones.
      crop: of the user's images, see `data.fit_image`.
      sampler: "prior" or "gmm", a mixture fitted to the aggregate posterior.
      temperature, truncation: of samples, see `LatentSampler.draw`.
      dimensions: latent dimensions to traverse; () takes the most active.
      deviations: how far to traverse, standard deviations of the prior.
      data_dir: where the run's data are now; "" is where they were.
    """

    out: str = ""
    count: int | None = None
    seed: int = 0
    images: str = ""
    crop: str = "center"
    sampler: str = "prior"
    temperature: float = 1.0
    truncation: float | None = None
    dimensions: tuple[int, ...] = ()
    deviations: float = 3.0
    data_dir: str = ""


class Task(NamedTuple):
    """A mode at work: its model, options and folder."""

    model: TrainedModel
    options: Options
    out: Path

    def held_out(self) -> Images:
        """The run's images that it was not trained on."""
        return open_run_images(self.model.config, self.options.data_dir)["test"]

    def inputs(self, count: int | None, default: int) -> np.ndarray:
        """The first of the user's images, or random held-out ones, uint8 [n, H, W, C]; `count` None takes all, or as many as `default` held-out ones."""
        if self.options.images:
            place = Path(self.options.images).expanduser()
            return read_images(place, self.model.config.data, self.options.crop, count)
        images = self.held_out()
        wanted = min(default, len(images)) if count is None else count
        return read_chosen(images, choose(images, wanted, "test"))[0]


def generate(mode: str, workdir: Path, options: Options, console: Console) -> Path:
    """Makes the pictures and arrays of a mode from the newest checkpoint of a run.

    Args:
      mode: a key of MODES.
      workdir: of the run.
      options: what to make.
      console: told where it is.

    Returns:
      The folder.

    Raises:
      InputError: there is no run or no checkpoint, or an option does not fit it.
    """
    out = Path(options.out).expanduser() if options.out else workdir / mode
    task = Task(load(workdir), options, out)
    make_folder(out, "out")
    try:
        MODES[mode](task)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"{error.filename or out} could not be written ({error.strerror}); make room."
        ) from error
    console.print(f"Made {out}", soft_wrap=True)
    return out


def sample(task: Task) -> None:
    """samples.png, a grid; samples.npz, "z" and uint8 "images"; images/, each by itself, numbered."""
    model, options = task.model, task.options
    sampler = None if options.sampler == "prior" else fit_to_run(model, options)
    sampler = sampler or prior_sampler(model.prior)
    key, count = jax.random.key(options.seed), options.count or 64
    z = sampler.draw(key, count, options.temperature, options.truncation)
    images = np.asarray(model.decode(z))
    shown = images[:MOST_IN_GRID]
    columns = max(8, math.isqrt(len(shown)))
    figures.save_picture(figures.image_grid(shown, columns), task.out / "samples.png")
    figures.save_numbered(images, task.out / "images")
    np.savez(task.out / "samples.npz", z=z, images=to_levels(images))


def fit_to_run(model: TrainedModel, options: Options) -> LatentSampler:
    """A mixture fitted to one draw of z from each of the training images, at most MOST_IMAGES."""
    images = open_run_images(model.config, options.data_dir)["train"]
    chosen, key = choose(images, None, "train"), jax.random.key(options.seed)
    draws = []
    for start in range(0, len(chosen), CODED_AT_ONCE):
        pixels, _ = read_chosen(images, chosen[start : start + CODED_AT_ONCE])
        posterior = model.encode(pixels)
        draws.append(posterior.sample(jax.random.fold_in(key, start)))
    return fit_sampler(np.concatenate(draws), options.seed)


def reconstruct(task: Task) -> None:
    """reconstructions.png, each below its original; images/, each by itself, numbered as its original in the order of the paths."""
    inputs = task.inputs(task.options.count, 32)
    made = np.asarray(task.model.reconstruct(inputs))
    scaled = inputs / np.float32(127.5) - np.float32(1.0)
    columns = min(8, len(made))
    shown = (x[:MOST_IN_GRID] for x in (scaled, made))
    padding = -min(len(made), MOST_IN_GRID) % columns
    grid = figures.reconstruction_grid(
        *(np.pad(x, ((0, padding), *[(0, 0)] * 3), constant_values=1.0) for x in shown),
        columns=columns,
    )
    figures.save_picture(grid, task.out / "reconstructions.png")
    figures.save_numbered(made, task.out / "images")


def interpolate(task: Task) -> None:
    """linear.png and spherical.png: a row for each pair of images, from one's latent mean to the other's; and both as GIFs."""
    pairs = task.options.count
    images = task.inputs(None if pairs is None else 2 * pairs, 16)
    if len(images) < 2:
        raise InputError("To interpolate, give at least two images.")
    z = np.asarray(task.model.encode(images).weightiest_mean())
    first, second = z[: len(z) // 2 * 2 : 2], z[1::2]
    for name, between in (("linear", linear), ("spherical", spherical)):

        def walk(steps: int, between: Callable = between) -> np.ndarray:
            """[pairs, steps, H, W, C]"""
            path = np.stack(
                [between(first, second, t) for t in np.linspace(0, 1, steps)], 1
            )
            return np.asarray(task.model.decode(path))

        figures.save_walk(task.out / name, walk(STEPS), walk(FRAMES))


def linear(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """(1 - t) a + t b of latent vectors [n, D]."""
    return (1 - t) * first + t * second


def spherical(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """Along the great circle between directions, norms in between (White 2016); straight where they are parallel."""
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)]
    a, b = (
        x / np.maximum(n, 1e-12) for x, n in zip((first, second), norms, strict=True)
    )
    angle = np.arccos(np.clip(np.sum(a * b, axis=-1, keepdims=True), -1.0, 1.0))
    sine = np.sin(angle)
    safe = np.where(sine < 1e-6, 1.0, sine)
    direction = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / safe
    length = (1 - t) * norms[0] + t * norms[1]
    return np.where(sine < 1e-6, linear(first, second, t), length * direction)


def traverse(task: Task) -> None:
    """traversal.png: a row for each dimension, which goes from -s to s standard deviations of the prior, the others as in one image; and a GIF."""
    model, options = task.model, task.options
    if not 0.0 < options.deviations < 100.0:
        raise InputError(
            f"--deviations is {options.deviations}; it must be above 0 and below 100."
        )
    base = np.asarray(model.encode(task.inputs(1, 1)).weightiest_mean())[0]
    mean, variance = (np.asarray(x) for x in model.prior.moments())
    dimensions = np.array(options.dimensions or most_active(task), int)
    if dimensions.min() < 0 or dimensions.max() >= model.latent_size:
        raise InputError(
            f"--dimensions names {', '.join(map(str, dimensions))}; the run has 0 to "
            f"{model.latent_size - 1}."
        )

    def walk(steps: int) -> np.ndarray:
        """[dimensions, steps, H, W, C]"""
        z = np.tile(base, (len(dimensions), steps, 1))
        for row, dimension in enumerate(dimensions):
            reach = options.deviations * np.sqrt(variance[dimension])
            z[row, :, dimension] = mean[dimension] + np.linspace(-reach, reach, steps)
        return np.asarray(model.decode(z))

    figures.save_walk(task.out / "traversal", walk(STEPS), walk(FRAMES))
    (task.out / "dimensions.txt").write_text("".join(f"{d}\n" for d in dimensions))


def most_active(task: Task) -> np.ndarray:
    """The dimensions whose posterior mean varies most over held-out images (Burda et al. 2016)."""
    images = task.held_out()
    pixels, _ = read_chosen(images, choose(images, None, "test")[:MAPPED])
    mean, _ = task.model.encode(pixels).moments()
    return np.argsort(-np.var(np.asarray(mean), axis=0))[:TRAVERSED]


def latent(task: Task) -> None:
    """Maps of held-out images' posteriors, by label where there are some and by component; their variances; q(z) beside N(0, I); and latents.npz."""
    model, images = task.model, task.held_out()
    wanted = MAPPED if task.options.count is None else task.options.count
    chosen = choose(images, min(wanted, len(images)), "test")
    if len(chosen) < 3:
        raise InputError("A latent map takes at least 3 held-out images.")
    pixels, chosen = read_chosen(images, chosen)
    posterior = model.encode(pixels)
    mean, variance = (np.asarray(x) for x in posterior.moments())
    z = np.asarray(posterior.sample(jax.random.key(task.options.seed)))
    labels, groups = images.labels(), {}
    if labels is not None:
        groups["label"] = labels[chosen]
    if model.config.model.components > 1 or not groups:
        groups["component"] = np.argmax(posterior.logits, axis=-1)
    maps = plots.in_two_dimensions(mean, task.options.seed)
    for meaning, of_image in groups.items():
        chart = plots.latent_map(maps, of_image, meaning)
        plots.save_plot(chart, task.out / f"map_by_{meaning}.png")
    within = np.exp(np.asarray(posterior.log_var)).reshape(-1, model.latent_size)
    target = model.config.objective.collapse_target
    plots.save_plot(
        plots.variance_histogram(within, target), task.out / "variances.png"
    )
    plots.save_plot(plots.aggregate_against_normal(z), task.out / "aggregate.png")
    np.savez(
        task.out / "latents.npz",
        mean=mean,
        variance=variance,
        z=z,
        index=chosen,
        **groups,
    )


MODES: dict[str, Callable[[Task], None]] = {
    "sample": sample,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "traverse": traverse,
    "latent": latent,
}
