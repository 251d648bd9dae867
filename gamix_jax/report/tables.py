"""The tables of a report: what evaluation.json holds, with standard errors and protocols."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gamix_jax import plots
from gamix_jax.errors import InputError
from gamix_jax.evaluate import shown, signed

# What the names in evaluation.json mean, and whether more or less is better.
TITLES = {
    "frechet_distance": "Fréchet distance ↓",
    "kernel_distance": "Kernel distance x 1000 ↓",
    "precision": "Precision ↑",
    "recall": "Recall ↑",
    "density": "Density ↑",
    "coverage": "Coverage ↑",
    "sharpness": "Sharpness (variance of the Laplacian)",
    "squared_error": "Mean squared error of [-1, 1] ↓",
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "log_prob": "log p(x), importance-sampled, nats ↑",
    "elbo": "ELBO, nats ↑",
    "elbo_reconstruction": "ELBO: reconstruction, nats",
    "elbo_kl": "ELBO: KL, nats",
    "bits_per_dimension": "Bits per dimension ↓",
    "scale": "Scale of the Laplace likelihood",
    "kl": "KL of each image's posterior, nats",
    "aggregate_kl": "Aggregate KL of the moments, nats",
    "active_units": "Active units",
    "components_used": "Components used",
    "component_entropy": "Entropy of the components, nats",
    "collapse_penalty": "Collapse penalty",
    "bounded_images": "Images in the brackets",
    "aggregate_kl_lower_by_fit": "KL(q(z) ‖ N(0, I)) of new images, at least, nats",
    "fitted Gaussian": "by the fitted Gaussian",
    "fitted mixture": "by the fitted mixture",
    "sliced_wasserstein": "Sliced Wasserstein distance to N(0, I)",
    "distance": "of z",
    "null_mean": "of as many draws of N(0, I), mean",
    "null_quantile_95": "95 % of such draws are below",
    "nearest_neighbours": "Nearest neighbours",
    "linear_probe": "Linear probe",
    "auroc": "AUROC ↑",
    "auprc": "AUPRC ↑",
}
# Of "..._lower" and "..._upper", which are one row.
BRACKETS = {
    "aggregate_kl": "KL(q(z) ‖ N(0, I)), bracket, nats",
    "mutual_information": "Mutual information of image and z, bracket, nats",
}


class Table(NamedTuple):
    """Texts in rows; the first of each is its name.

    Attributes:
      head: of the columns; () is none.
      rows: each as long as `head`, if there is one.
    """

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Section(NamedTuple):
    """A side of a model that was measured.

    Attributes:
      title: of the section.
      tables: one or more.
      protocol: how the numbers were made.
      chart: SVG, or None.
    """

    title: str
    tables: list[Table]
    protocol: str
    chart: bytes | None = None


def read_evaluation(workdir: Path, step: int) -> tuple[dict[str, Any] | None, str]:
    """What `--mode=evaluate` found of a checkpoint, or None and why there is nothing.

    Raises:
      InputError: the file is damaged.
    """
    path = workdir / "evaluation.json"
    try:
        found = json.loads(path.read_text())
        if int(found["step"]) != step:
            return None, (
                f"evaluation.json is of step {int(found['step']):,}; this report is of step "
                f"{step:,}."
            )
        return found, ""
    except FileNotFoundError:
        return None, "This run was not evaluated yet."
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(_damaged(path, error)) from error


def evaluation_sections(workdir: Path, found: dict[str, Any]) -> list[Section]:
    """The tables of an evaluation; of anomaly detection only where there was one.

    Raises:
      InputError: the file is damaged.
    """
    try:
        protocol = found["protocol"]
        sections = [
            Section("Images", [images_table(found["images"])], protocol["images"]),
            Section(
                "Likelihood",
                [Table((), scalar_rows(found["likelihood"]))],
                protocol["likelihood"],
            ),
            latent_section(found["latent"], protocol["latent"]),
        ]
        if found["anomaly"]:
            tables = [scores_table("Score", found["anomaly"])]
            sections.append(Section("Anomaly detection", tables, protocol["anomaly"]))
        return sections
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(_damaged(workdir / "evaluation.json", error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be read ({type(error).__name__}: {error}); move it away, or make it "
        "anew with --mode=evaluate."
    )


def images_table(images: dict[str, dict[str, Any]]) -> Table:
    """A column for each kind of images, a row for each measure that one of them has."""
    names = list(dict.fromkeys(name for kind in images.values() for name in kind))
    return Table(
        ("", *(kind.capitalize() for kind in images)),
        [
            (
                title(name),
                *(
                    shown(kind[name], name) if name in kind else ""
                    for kind in images.values()
                ),
            )
            for name in names
        ],
    )


def scores_table(meaning: str, scores: dict[str, dict[str, Any]]) -> Table:
    """A row for each score, a column for each of its numbers."""
    names = list(next(iter(scores.values())))
    return Table(
        (meaning, *map(title, names)),
        [
            (row, *(shown(of[name], name) for name in names))
            for row, of in scores.items()
        ],
    )


def latent_section(latent: dict[str, Any], protocol: str) -> Section:
    """Scalars, accuracies by number of labels, and the variances of each dimension as a chart."""
    latent = dict(latent)
    accuracy = latent.pop("accuracy", None)
    variances = [latent.pop(f"{kind}_variance") for kind in ("within", "between")]
    tables = [Table((), scalar_rows(latent))]
    if accuracy:
        labels = {f"{int(count):,}": row for count, row in accuracy.items()}
        tables.append(scores_table("Accuracy with so many labels", labels))
    chart = plots.svg(plots.variance_by_dimension(*map(np.array, variances)))
    return Section("Latent space", tables, protocol, chart)


def scalar_rows(values: dict[str, Any], group: str = "") -> list[tuple[str, str]]:
    """Names and numbers; both ends of a bracket in one row, a group's name before those of its members."""
    rows = []
    for name, value in values.items():
        stem, _, side = name.rpartition("_")
        if stem in BRACKETS and side == "lower":
            upper = values[f"{stem}_upper"]
            rows.append(
                (
                    BRACKETS[stem],
                    f"{signed(f'{value:#.4g}')} to {signed(f'{upper:#.4g}')}",
                )
            )
        elif stem in BRACKETS and side == "upper":
            continue
        elif isinstance(value, dict) and "value" not in value:
            rows += scalar_rows(value, title(name))
        else:
            place = f"{group}, {title(name)}" if group else title(name)
            rows.append((place, shown(value, name)))
    return rows


def title(name: str) -> str:
    """What a name in evaluation.json means, in words."""
    return TITLES.get(name, name.replace("_", " ").capitalize())
