"""Charts of numbers, drawn by Matplotlib: no model code."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

MOST_COLOURED = 20  # classes with a colour of their own
TRAINING, HELD_OUT = "#31688e", "#d1603d"  # colours of curves


def in_two_dimensions(codes: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Codes [N, D], N at least 3, by principal components and by t-SNE (van der Maaten and Hinton 2008): titles and points [N, 2]; those of at most two dimensions as they are."""
    if codes.shape[1] <= 2:
        return {"z": np.pad(codes, ((0, 0), (0, 2 - codes.shape[1])))}
    principal = PCA(2, random_state=seed).fit(codes)
    explained = principal.explained_variance_ratio_.sum()
    perplexity = min(30.0, (len(codes) - 1) / 3)
    near = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    # Its threads wait for each other 1,000 times: on busy cores six times as long as one.
    with threadpool_limits(1, "openmp"):
        return {
            f"principal components ({explained:.0%} of the variance)": principal.transform(
                codes
            ),
            "t-SNE": near.fit_transform(codes),
        }


def latent_map(maps: dict[str, np.ndarray], groups: np.ndarray, meaning: str) -> Figure:
    """Codes in two dimensions, coloured by group.

    Args:
      maps: titles and points [N, 2], of `in_two_dimensions`.
      groups: [N], integers.
      meaning: what the groups are, such as "label".
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    shown = np.unique(groups)[:MOST_COLOURED]
    colours = matplotlib.colormaps["tab20" if len(shown) > 10 else "tab10"]
    for axes, (title, points) in zip(
        np.atleast_1d(figure.subplots(1, len(maps))), maps.items(), strict=True
    ):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        for place, group in enumerate(shown):
            inside = groups == group
            axes.scatter(*points[inside].T, s=6, color=colours(place), label=str(group))
        others = ~np.isin(groups, shown)
        axes.scatter(*points[others].T, s=6, color="lightgrey")
    if len(shown) > 1:
        figure.legend(
            *axes.get_legend_handles_labels(),
            title=meaning,
            loc="outside right upper",
            markerscale=2,
        )
    return figure


def variance_histogram(within: np.ndarray, target: float) -> Figure:
    """How wide the posteriors are: all variances of all images and dimensions, [N, D], beside the collapse target."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    exponents = np.log10(np.maximum(within.ravel(), 1e-12))
    axes.hist(10.0**exponents, bins=np.logspace(exponents.min(), exponents.max(), 60))
    axes.axvline(target, color="black", linestyle="--", label="collapse target")
    axes.set_xscale("log")
    axes.set_xlabel("variance of a posterior in one dimension")
    axes.set_ylabel("count")
    axes.legend()
    return figure


def aggregate_against_normal(z: np.ndarray, most: int = 16) -> Figure:
    """The aggregate posterior of each dimension, by draws z [N, D], beside N(0, 1); the dimensions with the farthest moments first."""
    deviation = z.mean(axis=0) ** 2 + (z.std(axis=0) - 1.0) ** 2
    chosen = np.argsort(-deviation)[:most]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    bins = int(np.clip(np.sqrt(len(z)), 12, 60))
    reach = max(4.0, float(np.abs(z[:, chosen]).max()))
    points = np.linspace(-reach, reach, 200)
    density = np.exp(-0.5 * points**2) / np.sqrt(2 * np.pi)
    for axes, dimension in zip(grid.ravel(), chosen, strict=False):
        axes.hist(z[:, dimension], bins=bins, range=(-reach, reach), density=True)
        axes.plot(points, density, color="black", linewidth=1)
        axes.set_title(f"dimension {dimension}", fontsize=9)
        axes.set_yticks([])
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    return figure


def training_curve(
    training: np.ndarray, held_out: np.ndarray, last_step: int
) -> Figure:
    """One term over the steps, as small as it can be read; logarithmic where it spans much.

    Args:
      training: [n, 2], steps and values of training batches; may be empty.
      held_out: [n, 1 + m], steps and values of evaluations; m = 2 are the lower and the
        upper end of a bracket. May be empty.
      last_step: where the axis ends.
    """
    figure = Figure(figsize=(3.2, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.plot(*training.T, color=TRAINING, linewidth=1.3)
    steps, *ends = held_out.T
    if len(ends) == 2:
        axes.fill_between(steps, *ends, color=HELD_OUT, alpha=0.3, linewidth=0)
    for values in ends:
        axes.plot(
            steps,
            values,
            "o-",
            color=HELD_OUT,
            linewidth=1,
            markersize=3,
            clip_on=False,
        )
    values = np.concatenate([training[:, 1], *ends])
    if values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
    axes.set_xlim(0, last_step)
    axes.margins(y=0.08)
    if np.ptp(values) == 0 and values[0]:
        axes.set_ylim(*sorted((0.0, 1.25 * values[0])))
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(labelsize=7, colors="0.3", which="both", length=2)
    axes.locator_params(axis="x", nbins=5)
    return figure


def variance_by_dimension(within: np.ndarray, between: np.ndarray) -> Figure:
    """Variance of the aggregate posterior by dimension, most informative first: between the images' means, and within their posteriors; both [D]."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-between)
    places = np.arange(len(order))
    axes.bar(places, between[order], label="between images", color=TRAINING)
    axes.bar(places, within[order], bottom=between[order], label="within", color="0.75")
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="N(0, I)")
    if len(order) <= 32:
        axes.set_xticks(places, order)
    axes.set_xlabel("dimension")
    axes.set_ylabel("variance")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def svg(figure: Figure) -> bytes:
    """The chart as SVG, the same every time, letters as outlines."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gamix_jax"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def save_plot(figure: Figure, path: Path) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
