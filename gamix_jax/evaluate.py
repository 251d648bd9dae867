"""`--mode=evaluate`: what a trained model is worth, in one file, in tables and in TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gamix_jax.data.images import FILTER
from gamix_jax.feature_sets import MOST_KEPT
from gamix_jax.likelihood import ELBO_SAMPLES
from gamix_jax.logs import write_scalars
from gamix_jax.measurements import SCORED_IMAGES, Evaluation, Options
from gamix_jax.run_images import MOST_IMAGES

FILE = "evaluation.json"
TITLES = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance x1000",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "squared_error": "mean squared error",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "sharpness": "sharpness",
}


def evaluate(workdir: Path, options: Options, console: Console) -> dict[str, Any]:
    """Measures the newest checkpoint of a run; writes WORKDIR/evaluation.json and points for TensorBoard, prints tables.

    Args:
      workdir: of the run, which may still be training.
      options: what to measure with.
      console: for the tables.

    Returns:
      What the file holds: "step", "protocol" (how each number was made), "images",
      "likelihood", "latent" and "anomaly".

    Raises:
      InputError: as `Evaluation`.
    """
    evaluation = Evaluation(workdir, options)
    result = _jsonable(measure(evaluation))
    path = workdir / FILE
    unnamed = path.with_suffix(".new")
    unnamed.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    os.replace(unnamed, path)
    write_scalars(workdir, result["step"], dict(_scalars("evaluation", result)))
    print_tables(result, console)
    console.print(f"All numbers, and how each was made: {path}", soft_wrap=True)
    return result


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """All that is measured, by section."""
    coded = {split: evaluation.code(split) for split in ("train", "test")}
    scale = float(coded["train"].averages.mean("draw_error"))
    samplers = evaluation.samplers(coded["train"])
    likelihood, anomaly = evaluation.measure_likelihood(
        scale, samplers["fitted mixture"]
    )
    return {
        "step": int(evaluation.model.state.step),
        "protocol": protocol(evaluation),
        "images": evaluation.measure_images(coded["test"], samplers),
        "likelihood": likelihood | {"scale": scale},
        "latent": evaluation.measure_latents(coded),
        "anomaly": anomaly,
    }


def protocol(evaluation: Evaluation) -> dict[str, str]:
    """How the numbers were made, in words, by section."""
    config, options = evaluation.model.config, evaluation.options
    counts = {split: len(chosen) for split, chosen in evaluation.chosen.items()}
    features = "none, so neither distances nor precision"
    if evaluation.features:
        features = (
            f"{evaluation.features.name}, {evaluation.features.size} of each image of whole levels "
            f"(weights {evaluation.features.digest[:12]})"
        )
    prior = "N(0, I)" if config.model.prior == "normal" else config.model.prior
    return {
        "images": (
            f"{counts['test']:,} held-out images of {config.data.source} {config.data.name} "
            f"at {config.data.size}x{config.data.size}x{config.data.channels} (crop {config.data.crop}, "
            f"{FILTER}) are the reference; as many reconstructions (the decoder's mean at the mean of the "
            f"weightiest component) and samples, {counts['train']:,} training images; averaged weights "
            f"(EMA), rounded to levels. Features: {features}; what compares images in pairs takes the "
            f"first {MOST_KEPT:,}. PSNR is averaged over images (what training logs is that of the mean "
            f"squared error). Prior: {prior}. Fitted mixture: Gaussians fitted to one draw of z from "
            "each training image. Standard errors: of means over images; Frechet by "
            "leaving out one of ten blocks; kernel over subsets; precision to coverage with "
            "the neighbourhoods held fixed."
        ),
        "likelihood": (
            f"Discretised Laplace over the 256 levels of each pixel and channel (an exact probability, no "
            "dequantisation), one scale, the mean absolute error of training images. "
            f"log_prob: importance sampling, {options.likelihood_samples} draws from the posterior; ELBO: "
            f"{ELBO_SAMPLES} draws; nats, of the first {SCORED_IMAGES:,} held-out images; bits_per_dimension "
            "is -log_prob / (H W C log 2)."
        ),
        "latent": (
            "Of the held-out images; distances are to N(0, I). The bracket and the information "
            "are of the first bounded_images. sliced_wasserstein: one draw an image, beside the same "
            "for as many draws of N(0, I). accuracy: of labels from posterior means, on held-out "
            f"images, by classifiers fitted to so many of the first {MOST_IMAGES:,} training images."
        ),
        "anomaly": (
            f"Held-out images against {options.ood or 'none'}, the first {SCORED_IMAGES:,} of each; "
            "higher scores are the other images'."
        ),
    }


def print_tables(result: dict[str, Any], console: Console) -> None:
    """The main numbers with their standard errors."""
    sets = result["images"]
    table = Table("", *sets, title="Images")
    for name, title in TITLES.items():
        cells = [_shown(row.get(name), name) for row in sets.values()]
        if any(cells):
            table.add_row(title, *cells)
    console.print(table)
    for title in ("likelihood", "latent"):
        table = Table("", title, show_header=False, title=title.capitalize())
        for name, value in _scalars("", result[title]):
            table.add_row(name, value if isinstance(value, str) else f"{value:.4g}")
        console.print(table)
    if result["anomaly"]:
        table = Table("score", "AUROC", "AUPRC", title="Other images")
        for name, row in result["anomaly"].items():
            table.add_row(name, *(_shown(row[x], x) for x in ("auroc", "auprc")))
        console.print(table)


def _jsonable(tree: Any) -> Any:
    """Named tuples as dictionaries, names as strings."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, dict):
        return {str(name): _jsonable(value) for name, value in tree.items()}
    return tree


def _shown(number: dict[str, float] | None, name: str) -> str:
    if number is None:
        return ""
    factor = 1000.0 if name == "kernel_distance" else 1.0
    value, error = (factor * number[key] for key in ("value", "standard_error"))
    return f"{value:.4g} ± {error:.2g}"


def _scalars(prefix: str, tree: Any) -> Any:
    """Every number of a nested dictionary with its name; a value with a standard error goes by the name alone."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, dict) and "value" in value:
            yield path, value["value"]
        elif isinstance(value, dict):
            yield from _scalars(path, value)
        elif isinstance(value, (int, float)):
            yield path, value
