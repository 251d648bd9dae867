"""What compare.py makes of evaluations: rows, distances at equal error, the picture of the trade-off, and samples."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import record
from matplotlib.ticker import LogLocator, NullLocator

import gamix_jax
from gamix_jax.config import default_config, flatten
from gamix_jax.errors import InputError
from gamix_jax.steps import to_levels

ERROR, DISTANCE = "squared error", "Frechet distance"
# Of an evaluation: column, and the path to its number.
COLUMNS = {
    ERROR: ("images", "reconstructions", "squared_error", "value"),
    DISTANCE: ("images", "samples, prior", "frechet_distance", "value"),
    "Frechet, fitted Gaussian": (
        *("images", "samples, fitted Gaussian"),
        *("frechet_distance", "value"),
    ),
    "Frechet, fitted mixture": (
        *("images", "samples, fitted mixture"),
        *("frechet_distance", "value"),
    ),
    "Frechet, reconstructions": (
        "images",
        "reconstructions",
        "frechet_distance",
        "value",
    ),
    "precision": ("images", "samples, prior", "precision", "value"),
    "recall": ("images", "samples, prior", "recall", "value"),
    "sharpness": ("images", "samples, prior", "sharpness", "value"),
    "sharpness of the data": ("images", "held-out images", "sharpness", "value"),
    "KL": ("latent", "kl"),
    "KL of q(z), at least": ("latent", "aggregate_kl_lower"),
    "at most": ("latent", "aggregate_kl_upper"),
    "images in the bracket": ("latent", "bounded_images"),
    "by a fitted Gaussian, at least": (
        *("latent", "aggregate_kl_lower_by_fit"),
        *("fitted Gaussian", "value"),
    ),
    "by a fitted mixture, at least": (
        *("latent", "aggregate_kl_lower_by_fit"),
        *("fitted mixture", "value"),
    ),
    "moments' KL": ("latent", "aggregate_kl"),
    "active units": ("latent", "active_units"),
    **{
        f"labels of {count:,}": (
            *("latent", "accuracy", str(count)),
            *("nearest_neighbours", "value"),
        )
        for count in (200, 1000, 5000)
    },
    "bits per dimension": ("likelihood", "bits_per_dimension", "value"),
}
# The second is fair to an objective whose q(z) has other moments than the prior, which is
# mended after training at no cost.
COMPARED = {
    DISTANCE: "prior",
    "Frechet, fitted Gaussian": "fitted Gaussian",
}
# Two tables, for one is too wide. The bracket is of KL(q(z) || N(0, I)), under a VampPrior
# too, q(z) being of so many images alone: where they are narrow, the mean KL less the
# logarithm of their number.
OF_IMAGES = (
    *(ERROR, DISTANCE, "Frechet, fitted Gaussian", "Frechet, fitted mixture"),
    *("Frechet, reconstructions", "precision", "recall"),
    *("sharpness", "sharpness of the data"),
)
OF_LATENTS = (
    *(ERROR, "KL", "KL of q(z), at least", "at most", "moments' KL"),
    *("images in the bracket", "by a fitted Gaussian, at least"),
    "by a fitted mixture, at least",
    *("active units", "labels of 200", "labels of 1,000", "labels of 5,000"),
    *("bits per dimension", "GFLOP"),
)
Row = dict[str, Any]


def read_row(workdir: Path) -> Row:
    """The numbers of one evaluation; without those it lacks (accuracy, where there are no labels)."""
    content = json.loads((workdir / "evaluation.json").read_text())
    row = {}
    for column, path in COLUMNS.items():
        value = content
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            row[column] = value
    environment = workdir / "environment.json"
    if environment.exists():
        row["environment"] = json.loads(environment.read_text())
    return row


def digest_images(path: Path | None) -> str:
    """Of a file's bytes, or of the names and sizes of a folder's files; "" without a path."""
    if path is None:
        return ""
    if path.is_file():
        content = path.read_bytes()
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = [f"{file.relative_to(path)} {file.stat().st_size}" for file in files]
        content = "\n".join(listed).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def settings(config: ml_collections.ConfigDict, images: str) -> str:
    """Digest of what a configuration has other than the default, and of the images wherever they are."""
    default = flatten(default_config())
    other = {
        key: value
        for key, value in flatten(config).items()
        if value != default[key] and key != "data.dir"
    }
    text = json.dumps([images, other], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_known(path: Path | None) -> dict[tuple[str, str], Row]:
    """The rows that were written before, by their settings and classifier."""
    if not (path and path.exists()):
        return {}
    try:
        rows = json.loads(path.read_text())["rows"]
        needed = {ERROR, *COMPARED}
        if any(needed - set(row) for row in rows):
            raise KeyError(needed)
        return {(row["settings"], row["classifier"]): row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not what this version writes; move it away, or name another --json."
        ) from None


def report(rows: list[Row], baselines: Sequence[str], title: str, out: Path) -> None:
    """Prints the tables, and draws the trade-off to OUT/compare_TITLE.png, of the title's first word."""
    for columns in (OF_IMAGES, OF_LATENTS):
        record.show(over_seeds(rows, columns), title)
    ratios = at_equal_error(rows, baselines)
    if ratios:
        record.show(ratios, "Frechet distance over that of a baseline at equal error")
    draw(rows, title, out / f"compare_{title.split(',')[0]}.png")


def over_seeds(rows: list[Row], columns: Sequence[str]) -> list[dict[str, str]]:
    """Means over seeds with their standard errors, a row for each objective and weight; empty where a seed lacks the number."""
    columns = [column for column in columns if any(column in row for row in rows)]
    groups = defaultdict(list)
    for row in rows:
        groups[row["objective"], row["weight"]].append(row)
    table = []
    for (objective, weight), group in groups.items():
        cells = {"objective": objective, "weight": f"{weight:g}"}
        for column in columns:
            known = all(column in row for row in group)
            cells[column] = _shown([row[column] for row in group]) if known else ""
        table.append(cells | {"seeds": str(len(group))})
    return table


def _shown(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3g} ± {error:.2g}"


def at_equal_error(rows: list[Row], baselines: Sequence[str]) -> list[dict[str, str]]:
    """Distances of each objective and weight over those of the baselines at the same error.

    Of each seed a baseline's log distance is interpolated linearly in log error between
    its weights, or is that of its best run of no more error, if that is less; a run of less
    error than all of them stands beside the one of least error, and it is said of how many
    seeds, and how much more error that is at most. Ratios are geometric means over seeds, with the standard error of their logarithm
    times the ratio: of three seeds the 95 % interval is 4.3 of them either way, of the
    logarithm.
    """
    groups, curves = defaultdict(list), defaultdict(list)
    for row in rows:
        groups[row["objective"], row["weight"]].append(row)
        curves[row["objective"], row["seed"]].append(row)
    for curve in curves.values():
        curve.sort(key=lambda row: row[ERROR])
    table = []
    for (objective, weight), group in groups.items():
        cells = {}
        for baseline in baselines:
            for distance, samples in COMPARED.items():
                ratios, more = [], []
                for row in group:
                    curve = curves.get((baseline, row["seed"]), [])
                    if baseline == objective or not curve:
                        continue
                    errors, distances = (
                        np.log([other[column] for other in curve])
                        for column in (ERROR, distance)
                    )
                    error = np.log(row[ERROR])
                    there = np.interp(error, errors, distances)  # or at the nearest end
                    found = np.min(distances[errors <= error], initial=there)
                    ratios.append(np.log(row[distance]) - found)
                    if error < errors[0]:
                        more.append(np.expm1(errors[0] - error))
                cells[f"{samples} / {baseline}"] = _shown_ratio(ratios, more)
        if any(cells.values()):
            table.append({"objective": objective, "weight": f"{weight:g}"} | cells)
    return table


def _shown_ratio(logs: list[float], more: list[float]) -> str:
    """With the number of seeds, and of those beside a baseline of more error how much more."""
    if not logs:
        return ""
    ratio, seeds = np.exp(np.mean(logs)), f"{len(logs)}"
    if more:
        seeds += f", {len(more)} beside up to {max(more):.1%} more error"
    if len(logs) < 2:
        return f"{ratio:.3g} ({seeds})"
    error = ratio * np.std(logs, ddof=1) / np.sqrt(len(logs))
    return f"{ratio:.3g} ± {error:.2g} ({seeds})"


def nearest_in_error(
    rows: list[Row], baseline: str
) -> dict[str, tuple[str, float, int]]:
    """Of each objective the run of one seed whose error is nearest to that of the baseline's middle weight, by its title."""
    seed = min(row["seed"] for row in rows)
    rows = [row for row in rows if row["seed"] == seed]
    errors = sorted(row[ERROR] for row in rows if row["objective"] == baseline)
    errors = errors or sorted(row[ERROR] for row in rows)
    wanted = errors[len(errors) // 2]
    nearest = {}
    for objective in dict.fromkeys(row["objective"] for row in rows):
        row = min(
            (row for row in rows if row["objective"] == objective),
            key=lambda row: abs(np.log(row[ERROR] / wanted)),
        )
        words = f"weight {row['weight']:g}, seed {seed}, error {row[ERROR]:.3g}"
        nearest[f"{objective}, {words}"] = objective, row["weight"], seed
    return nearest


def draw(rows: list[Row], title: str, path: Path) -> None:
    """The trade-off: a line for each objective and seed, a point for each weight."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    curves = defaultdict(list)
    for row in rows:
        curves[row["objective"], row["seed"]].append((row[ERROR], row[DISTANCE]))
    colors = {}
    for (objective, _), curve in curves.items():
        label = None if objective in colors else objective
        color = colors.setdefault(objective, plt.get_cmap("tab20")(len(colors)))
        axes.plot(*zip(*sorted(curve), strict=True), "o-", color=color, label=label)
    axes.set(
        title=title,
        xscale="log",
        yscale="log",
        xlabel="mean squared error of reconstructions, images in [-1, 1]",
        ylabel="Frechet distance of samples of the prior",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    figure.legend(frameon=False, loc="outside right center")
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
        levels = np.pad(to_levels(images), [(0, 0), (0, 0), (0, 1), (0, 0)])
        levels = np.concatenate(list(levels), axis=1)
        axes.imshow(levels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, loc="left", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)
