"""What compare.py makes of evaluations: rows, distances at equal error, the picture of the trade-off, and samples."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import gamix_jax
from gamix_jax.steps import to_levels

ERROR, DISTANCE = "squared error", "Frechet distance"
# Of an evaluation: column, and the path to its number.
COLUMNS = {
    ERROR: ("images", "reconstructions", "squared_error", "value"),
    DISTANCE: ("images", "samples, prior", "frechet_distance", "value"),
    "fitted Gaussian": (
        *("images", "samples, fitted Gaussian"),
        *("frechet_distance", "value"),
    ),
    "fitted mixture": (
        *("images", "samples, fitted mixture"),
        *("frechet_distance", "value"),
    ),
    "reconstructions": ("images", "reconstructions", "frechet_distance", "value"),
    "precision": ("images", "samples, prior", "precision", "value"),
    "recall": ("images", "samples, prior", "recall", "value"),
    "sharpness": ("images", "samples, prior", "sharpness", "value"),
    "sharpness of the data": ("images", "held-out images", "sharpness", "value"),
    "KL": ("latent", "kl"),
    "KL of q(z), at least": ("latent", "aggregate_kl_lower"),
    "at most": ("latent", "aggregate_kl_upper"),
    "moments' KL": ("latent", "aggregate_kl"),
    "active units": ("latent", "active_units"),
    "kNN, 1,000 labels": (
        *("latent", "accuracy", "1000"),
        *("nearest_neighbours", "value"),
    ),
    "bits per dimension": ("likelihood", "bits_per_dimension", "value"),
}
# The second is fair to an objective whose q(z) has other moments than the prior, which is
# mended after training at no cost.
COMPARED = {
    DISTANCE: "samples of the prior",
    "fitted Gaussian": "samples of the Gaussian fitted to q(z)",
}
# Two tables, for one is too wide.
OF_IMAGES = tuple(COLUMNS)[:8]
OF_LATENTS = (ERROR, *tuple(COLUMNS)[9:])


def read_row(workdir: Path) -> dict[str, float]:
    """The numbers of one evaluation; without those it lacks (accuracy, where there are no labels)."""
    content = json.loads((workdir / "evaluation.json").read_text())
    row = {}
    for column, path in COLUMNS.items():
        value = content
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            row[column] = value
    return row


def over_seeds(
    rows: list[dict[str, Any]], columns: Sequence[str]
) -> list[dict[str, str]]:
    """Means over seeds with their standard errors, a row for each objective and weight."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["objective"], row["weight"]].append(row)
    table = []
    for (objective, weight), group in groups.items():
        cells = {"objective": objective, "weight": f"{weight:g}"}
        for column in (c for c in columns if c in group[0]):
            cells[column] = _shown([row[column] for row in group])
        table.append(cells | {"seeds": str(len(group))})
    return table


def _shown(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3g} ± {error:.2g}"


def at_equal_error(
    rows: list[dict[str, Any]],
    baseline: str,
    distance: str = DISTANCE,
    points: int = 3,
) -> list[dict[str, str]]:
    """A distance of each objective over the baseline's, at errors that both reach.

    Distances are interpolated linearly in log error along the weights of each seed; the
    errors divide the range common to all curves of the two objectives evenly in log. The
    standard error is over seeds.
    """
    curves = defaultdict(dict)
    for row in rows:
        of_seed = curves[row["objective"]].setdefault(row["seed"], [])
        of_seed.append((np.log(row[ERROR]), row[distance]))
    table = []
    for objective, of_objective in curves.items():
        seeds = sorted(of_objective.keys() & curves.get(baseline, {}).keys())
        pairs = [
            [np.array(sorted(of[seed])).T for of in (of_objective, curves[baseline])]
            for seed in seeds
        ]
        if objective == baseline or not pairs:
            continue
        lowest = max(curve[0].min() for pair in pairs for curve in pair)
        highest = min(curve[0].max() for pair in pairs for curve in pair)
        if lowest >= highest:
            continue  # no error that both reach
        cells = {"objective": objective}
        for i, error in enumerate(np.linspace(lowest, highest, points)):
            ratios = [
                float(np.interp(error, *ours) / np.interp(error, *theirs))
                for ours, theirs in pairs
            ]
            cells[f"error {i + 1}"] = f"{np.exp(error):.3g}"
            cells[f"ratio {i + 1}"] = _shown(ratios)
        table.append(cells | {"seeds": str(len(seeds))})
    return table


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """The trade-off: a line for each objective and seed, a point for each weight."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    curves = defaultdict(list)
    for row in rows:
        curves[row["objective"], row["seed"]].append((row[ERROR], row[DISTANCE]))
    colors = {}
    for (objective, _), curve in curves.items():
        label = None if objective in colors else objective
        color = colors.setdefault(objective, f"C{len(colors)}")
        axes.plot(*zip(*sorted(curve), strict=True), "o-", color=color, label=label)
    axes.set(
        title=title,
        xscale="log",
        yscale="log",
        xlabel="mean squared error of reconstructions, images in [-1, 1]",
        ylabel="Frechet distance of samples of the prior",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_samples(workdirs: dict[str, Path], path: Path, count: int = 12) -> None:
    """A row of samples for each model, of the same draws where the prior is N(0, I)."""
    figure, rows = plt.subplots(
        len(workdirs), 1, figsize=(count, 1.25 * len(workdirs)), layout="constrained"
    )
    for axes, (title, workdir) in zip(
        np.atleast_1d(rows), workdirs.items(), strict=True
    ):
        images = gamix_jax.load(workdir).sample(jax.random.key(0), count)
        levels = np.concatenate(list(np.asarray(to_levels(images))), axis=1)
        axes.imshow(levels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, loc="left", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)
