"""`--mode=evaluate`: what a trained model is worth, in one file, in tables and in TensorBoard."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from gamix_jax.data.images import FILTER
from gamix_jax.errors import InputError, make_folder
from gamix_jax.feature_sets import MOST_KEPT
from gamix_jax.files import written_whole
from gamix_jax.likelihood import ELBO_SAMPLES
from gamix_jax.logs import write_scalars
from gamix_jax.measurements import SCORED_IMAGES, Evaluation, Options
from gamix_jax.metrics.latents import CHOICES
from gamix_jax.run_images import name_of
from gamix_jax.sampling import FITTED_COMPONENTS

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
      What the file holds: "step", "count" (images of each kind), "protocol" (how each
      number was made), "images", "likelihood", "latent" and "anomaly".

    Raises:
      InputError: as `Evaluation`.
    """
    evaluation = Evaluation(workdir, options)
    make_folder(workdir, "workdir")
    # Accelerators' default is 8 to 11 bits: other numbers of one checkpoint on each kind.
    with jax.default_matmul_precision("highest"):
        result = _jsonable(measure(evaluation))
    bad = [name for name, x in _scalars("", result) if not math.isfinite(x)]
    if bad:
        raise InputError(
            f"Not finite: {', '.join(bad)}; the model has diverged, go back to an earlier one."
        )
    path = workdir / FILE
    with written_whole(path) as file:
        file.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
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
        "count": len(evaluation.chosen["test"]),
        "protocol": protocol(evaluation),
        "images": evaluation.measure_images(coded["test"], samplers),
        "likelihood": likelihood | {"scale": scale},
        "latent": evaluation.measure_latents(coded, samplers),
        "anomaly": anomaly,
    }


def protocol(evaluation: Evaluation) -> dict[str, str]:
    """How the numbers were made, in words, by section."""
    config, options = evaluation.model.config, evaluation.options
    held_out, other = (len(evaluation.chosen.get(x, ())) for x in ("test", "other"))
    coded = len(evaluation.chosen["train"])
    features = "none, so neither distances nor precision"
    if evaluation.features:
        features = (
            f"{evaluation.features.name}, {evaluation.features.size} of each image of whole levels "
            f"(weights {evaluation.features.digest[:12]})"
        )
    prior = "N(0, I)" if config.model.prior == "normal" else config.model.prior
    return {
        "images": (
            f"{held_out:,} held-out images of {name_of(config.data)} at "
            f"{config.data.size}x{config.data.size}x{config.data.channels} (crop {config.data.crop}, {FILTER}), chosen at "
            "random, are the reference for as many reconstructions (the decoder's mean at the mean of "
            "the weightiest component), samples and, as a measure of what to expect at best, training "
            f"images (as many, or all). Networks in {config.model.dtype}, averaged weights (EMA), rounded to levels, seed "
            f"{options.seed}. Features: {features}. The Frechet distance is biased upwards, the more the fewer "
            "images; the kernel distance is not (100 subsets of at most 1,000). All of them flatter "
            "reconstructions, which are paired with the reference, beside samples and training images, the more the "
            "fewer images: of other images they would be as far as training images at best. Precision and recall "
            f"have k = 3, density and coverage k = 5; what compares images in pairs takes the first {MOST_KEPT:,}. SSIM: "
            "Gaussian window of 11 pixels or as many as there are. PSNR is averaged over images (what "
            f"training logs is that of the mean squared error). Prior: {prior}. Fitted Gaussian and mixture: one "
            f"and up to {FITTED_COMPONENTS} Gaussians fitted to one draw of z from each of {coded:,} training images. Standard "
            "errors: of means over images; Frechet by leaving out one of ten blocks; kernel of "
            "images and subsets; precision to coverage with the neighbourhoods held fixed, so too small. That of a "
            "share of 0 or 1 is 0: N images bound it by 3 / N."
        ),
        "likelihood": (
            "Discretised Laplace over the 256 levels of each pixel and channel (an exact probability, no "
            "dequantisation), one scale, the mean absolute error of training images reconstructed from "
            f"one draw. log_prob: importance sampling, {options.likelihood_samples} draws from the posterior, in expectation a "
            "lower bound (so bits_per_dimension an upper one), whose gap the standard error leaves "
            f"out and more draws narrow; ELBO: {ELBO_SAMPLES} draws; nats, of {min(held_out, SCORED_IMAGES):,} held-out images. "
            "bits_per_dimension is -log_prob / (H W C log 2)."
        ),
        "latent": (
            "Of the held-out images; distances are to N(0, I). The bracket and the information "
            "are of bounded_images of them, of whose own q(z) they tell. aggregate_kl_lower_by_fit: in expectation "
            "a lower bound on the KL of new images' q(z) from N(0, I), the mean log-ratio to it of the fitted "
            "Gaussian or mixture at one draw an image; its standard error is of the images, the fit held "
            "fixed. sliced_wasserstein: one draw an image, beside the same for "
            "as many draws of N(0, I). accuracy: of labels from posterior means on held-out images, by 5 "
            f"nearest neighbours and logistic regression fitted to so many of {coded:,} training "
            f"images, the mean of {CHOICES} choices of them; standard errors are for the held-out images and the choices. within_variance: of one image's posterior, the spread of its components "
            "included; between_variance: of the posterior means."
        ),
        "anomaly": "No other images were given."
        if not other
        else (
            f"{min(held_out, SCORED_IMAGES):,} held-out images against {other:,} of {options.ood}, which are "
            "positive. Scores: minus the ELBO; minus its reconstruction term; minus the log-density, "
            "under the fitted mixture, of one draw from the posterior."
        ),
    }


def print_tables(result: dict[str, Any], console: Console) -> None:
    """The main numbers with their standard errors."""
    sets = result["images"]
    title = f"Images, {result['count']:,} of each, step {result['step']:,}"
    table = Table("", *sets, title=title)
    for name, title in TITLES.items():
        found = [row.get(name) for row in sets.values()]
        cells = ["" if number is None else shown(number, name) for number in found]
        if any(cells):
            table.add_row(title, *cells)
    console.print(table)
    for title in ("likelihood", "latent"):
        table = Table("", title, show_header=False, title=title.capitalize())
        for name, value in _numbers("", result[title]):
            table.add_row(name, shown(value))
        console.print(table)
    if result["anomaly"]:
        table = Table("score", "AUROC", "AUPRC", title="Other images")
        for name, row in result["anomaly"].items():
            table.add_row(name, *(shown(row[x]) for x in ("auroc", "auprc")))
        console.print(table)


def _jsonable(tree: Any) -> Any:
    """Named tuples as dictionaries, names as strings."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, dict):
        return {str(name): _jsonable(value) for name, value in tree.items()}
    return tree


def shown(number: float | dict[str, float], name: str = "") -> str:
    """A number as it is printed; with a standard error, to that error's second digit."""
    factor = 1000.0 if name == "kernel_distance" else 1.0
    if not isinstance(number, dict):
        value = factor * number
        whole = float(value).is_integer()
        return signed(f"{value:,.0f}" if whole else f"{value:.4g}")
    value, error = (factor * number[key] for key in ("value", "standard_error"))
    if not (math.isfinite(error) and error > 0):
        return signed(f"{value:.4g} ± {error:.2g}")
    digits = max(0, 1 - math.floor(math.log10(error)))
    return signed(f"{value:,.{digits}f} ± {error:.{digits}f}")


def signed(number: str) -> str:
    """A printed number with the sign that printers use."""
    return number.replace("-", "\N{MINUS SIGN}")


def _numbers(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number of a nested dictionary with its name, alone or with its standard error."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, dict) and "value" not in value:
            yield from _numbers(path, value)
        elif isinstance(value, (dict, int, float)):
            yield path, value


def _scalars(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The same without the standard errors."""
    for path, value in _numbers(prefix, tree):
        yield path, value["value"] if isinstance(value, dict) else value
