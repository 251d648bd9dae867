"""The training curves of a report."""

from typing import NamedTuple

import ml_collections
import numpy as np

from gamix_jax import plots


class Panel(NamedTuple):
    """One term over the steps.

    Attributes:
      title: what it is, with its unit.
      training: its name in the lines of training; "" is none.
      held_out: in those of evaluations, without "test/"; two are the ends of a bracket.
    """

    title: str
    training: str = ""
    held_out: tuple[str, ...] = ()


def panels(config: ml_collections.ConfigDict) -> list[Panel]:
    """What a run's curves show, the terms of its objective first."""
    objective = config.objective
    form = (objective.variance, objective.covariance)
    if objective.kl != "aggregate":
        kl = [Panel("KL of each image's posterior, nats", "kl", ("kl",))]
    elif form == ("total", "diagonal"):
        kl = [Panel("KL of the aggregate's moments, nats", "kl", ("aggregate_kl",))]
    else:  # evaluations have the diagonal of the total alone
        kl = [
            Panel(f"KL of the moments ({', '.join(form)}), nats", "kl"),
            Panel("KL of the moments (total, diagonal), nats", "", ("aggregate_kl",)),
        ]
    chosen = [
        Panel("Mean absolute error", "reconstruction", ("absolute_error",)),
        *kl,
        Panel("Collapse penalty", "collapse_penalty", ("collapse_penalty",)),
    ]
    if objective.negentropy_components:
        chosen.append(
            Panel("Aggregate KL beyond the moments, nats", "negentropy_bound")
        )
    if objective.kl == "siwae":
        chosen.append(Panel("Importance-weighted bound", "siwae"))
    if config.adversarial.loss != "none":
        chosen += [
            Panel("Adversarial term", "adversarial"),
            Panel("Loss of the discriminator", "discriminator_loss"),
        ]
    chosen += [
        Panel("PSNR, dB", "", ("psnr",)),
        Panel(
            "KL(q(z) ‖ N(0, I)), bracket, nats",
            "",
            ("aggregate_kl_lower", "aggregate_kl_upper"),
        ),
        Panel(
            "Mutual information, bracket, nats",
            "",
            ("mutual_information_lower", "mutual_information_upper"),
        ),
        Panel("Active units", "active_units", ("active_units",)),
        Panel("Mean variance of the posteriors", "variance_mean"),
    ]
    if config.model.components > 1:
        chosen.append(Panel("Components used", "components_used", ("components_used",)))
    chosen.append(
        Panel("Norm of the autoencoder's gradient", "generator_gradient_norm")
    )
    return chosen


def draw_curves(
    config: ml_collections.ConfigDict, lines: list[dict[str, float]], step: int
) -> list[tuple[str, bytes]]:
    """The title and the SVG of each panel that there are numbers of.

    Args:
      config: of the run.
      lines: of metrics.jsonl, as `logs.read_metrics` gives them.
      step: where the curves end.
    """
    charts = []
    for panel in panels(config):
        training = _points(lines, (panel.training,))
        held_out = _points(lines, tuple(f"test/{name}" for name in panel.held_out))
        if len(training) or len(held_out):
            chart = plots.training_curve(training, held_out, step)
            charts.append((panel.title, plots.svg(chart)))
    return charts


def _points(lines: list[dict[str, float]], names: tuple[str, ...]) -> np.ndarray:
    """[n, 1 + len(names)]: step and values of the lines that have them all."""
    wanted = ("step", *names)
    rows = [
        [line[name] for name in wanted]
        for line in lines
        if names and all(name in line for name in wanted)
    ]
    return np.array(rows, float).reshape(-1, len(wanted))
