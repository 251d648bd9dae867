"""`--mode=report`: one page about a trained model that can be sent and opens without a network."""

import contextlib
import platform
import shlex
import subprocess
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from gamix_jax.checkpoint import saved_at
from gamix_jax.config import default_config, flatten
from gamix_jax.describe import parameter_table
from gamix_jax.errors import InputError
from gamix_jax.evaluate import shown, signed
from gamix_jax.figures import TILE
from gamix_jax.files import try_writing, written_whole
from gamix_jax.logs import read_metrics
from gamix_jax.pods import software
from gamix_jax.report.curves import draw_curves
from gamix_jax.report.pictures import data_uri, make_pictures
from gamix_jax.report.tables import evaluation_sections, read_evaluation
from gamix_jax.run_images import name_of, open_run_images
from gamix_jax.trained import TrainedModel, load

FILE = "report.html"
DATE = "%d %B %Y, %H:%M %Z"


def report(workdir: Path, data_dir: str, console: Console) -> Path:
    """Writes WORKDIR/report.html about the newest checkpoint of a run, which may still be training.

    It holds what the run's folder has (configuration, curves, evaluation.json if that is
    of the same checkpoint) and pictures made anew; an older report is replaced at the end.

    Args:
      workdir: of the run.
      data_dir: where the run's data are now; "" is where they were.
      console: told where the report is.

    Returns:
      The file.

    Raises:
      InputError: there is no run, no checkpoint or no data, evaluation.json is damaged, or
        the folder cannot be written to.
    """
    model = load(workdir)
    path = workdir / FILE
    with _explained(workdir):
        try_writing(path)
    page = render(contents(workdir, model, data_dir, console))
    with _explained(workdir), written_whole(path) as file:
        file.write(page)
    size = path.stat().st_size / 2**20
    console.print(f"Made {path} ({size:.1f} MiB)", soft_wrap=True)
    return path


@contextlib.contextmanager
def _explained(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{workdir / FILE} cannot be written ({error.strerror}); make room and leave to "
            "write there, or copy the run to another folder."
        ) from error


def render(values: dict[str, Any]) -> str:
    """The page of what `contents` gives; whatever is text there is text in the page."""
    environment = Environment(
        loader=PackageLoader("gamix_jax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{FILE}.j2").render(values)


def contents(
    workdir: Path, model: TrainedModel, data_dir: str, console: Console
) -> dict[str, Any]:
    """What the template shows, by name."""
    config, step = model.config, int(model.state.step)
    # First what may be refused, then what takes time.
    evaluation, missing = read_evaluation(workdir, step)
    sections = evaluation_sections(workdir, evaluation) if evaluation else []
    lines = read_metrics(workdir, step)
    images = open_run_images(config, data_dir)
    written = saved_at(workdir, step)
    return {
        "name": workdir.resolve().name,
        "step": step,
        "written": written and f"{written:{DATE}}",
        "made": f"{datetime.now().astimezone():{DATE}}",
        "config": config,
        "images": name_of(config.data),
        "counts": {split: len(of_split) for split, of_split in images.items()},
        "posterior": posterior_in_words(config),
        "objective": weighted_terms(config),
        "key_numbers": key_numbers(config, lines, evaluation, step),
        "evaluation": [
            section._replace(chart=section.chart and _svg_uri(section.chart))
            for section in sections
        ],
        "missing": missing,
        "evaluate_command": _command("evaluate", workdir),
        "curves": [
            (title, _svg_uri(chart))
            for title, chart in draw_curves(config, lines, step)
        ],
        "pictures": make_pictures(model, data_dir, console),
        "small": config.data.size < TILE,
        "parameters": parameter_rows(config),
        "configuration": configuration(config),
        "environment": environment(workdir),
    }


def _svg_uri(chart: bytes) -> str:
    return data_uri(chart, "image/svg+xml")


def _command(mode: str, workdir: Path) -> str:
    folder = shlex.quote(str(workdir))
    return f"python -m gamix_jax.main --mode={mode} --workdir={folder}"


def posterior_in_words(config: ml_collections.ConfigDict) -> str:
    """What q(z|x) and p(z) are."""
    model = config.model
    posterior = "a Gaussian"
    if model.components > 1:
        posterior = (
            f"a mixture of {model.components} Gaussians of {model.weights} weights"
        )
    prior = {
        "normal": "N(0, I)",
        "mixture": f"a learned mixture of {model.prior_components} Gaussians",
        "vamp": f"a mixture of the posteriors of {model.prior_components} learned pseudo-inputs",
    }[model.prior]
    return (
        f"The posterior of an image is {posterior} in {model.latent_size} dimensions, the prior "
        f"is {prior}."
    )


def weighted_terms(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """The weight of each term of the autoencoder's loss, and what the term is; those of weight 0 are left out."""
    objective, adversarial = config.objective, config.adversarial
    error = "mean absolute error of the reconstruction, images in [-1, 1]"
    warmup = ""
    if objective.kl_warmup:
        warmup = f", the weight rising over the first {objective.kl_warmup:,} steps"
    if objective.kl == "siwae":
        inner = objective.reconstruction_weight / objective.kl_weight
        bound = (
            "negative importance-weighted bound (SIWAE), within it "
            f"{inner:g} times the {error}{warmup}"
        )
        terms = [(objective.kl_weight, bound)]
    else:
        kl = "KL of each image's posterior to the prior"
        if objective.kl == "aggregate":
            kl = (
                "KL of the aggregate posterior's moments to N(0, I), "
                f"{objective.covariance} covariance, {objective.variance} variance"
            )
        terms = [
            (objective.reconstruction_weight, error),
            (objective.kl_weight, kl + warmup),
        ]
        if objective.negentropy_components:
            beyond = (
                "KL of the aggregate posterior beyond its moments, by a mixture of "
                f"{objective.negentropy_components} Gaussians{warmup}"
            )
            weight = objective.kl_weight * objective.negentropy_weight
            terms.append((weight, beyond))
    collapse = f"penalty on variances that differ from {objective.collapse_target:g}"
    terms += [
        (objective.collapse_weight, collapse),
        (-objective.component_entropy_weight, "entropy of each image's weights"),
    ]
    if adversarial.loss != "none":
        term = f"adversarial term of a PatchGAN discriminator ({adversarial.loss})"
        if adversarial.prior_samples:
            term += ", of reconstructions and samples of the prior"
        if adversarial.start:
            term += f", from step {adversarial.start:,}"
        terms.append((adversarial.weight, term))
    return [(signed(f"{weight:g}"), term) for weight, term in terms if weight]


def key_numbers(
    config: ml_collections.ConfigDict,
    lines: list[dict[str, float]],
    evaluation: dict[str, Any] | None,
    step: int,
) -> list[tuple[str, str]]:
    """What to look at first, as far as it was measured at this step; of held-out images."""
    measured = {
        name.removeprefix("test/"): value
        for line in lines
        for name, value in line.items()
        if line["step"] == step and name.startswith("test/")
    }
    if evaluation:
        measured = evaluation["latent"]
    numbers = []
    if evaluation:
        samples = evaluation["images"].get("samples, prior", {})
        if "frechet_distance" in samples:
            distance = shown(samples["frechet_distance"])
            numbers.append(("Fréchet distance of samples", distance))
        bits = shown(evaluation["likelihood"]["bits_per_dimension"])
        numbers.append(("bits per dimension", bits))
        decibels = shown(evaluation["images"]["reconstructions"]["psnr"])
        numbers.append(("PSNR of reconstructions, dB", decibels))
    elif "psnr" in measured:
        decibels = f"{measured['psnr']:#.3g}"
        numbers.append(("PSNR of the mean squared error, dB", decibels))
    if by_fit := measured.get("aggregate_kl_lower_by_fit"):
        name = "KL(q(z) ‖ N(0, I)) of new images, at least, nats"
        numbers.append((name, shown(by_fit["fitted mixture"])))
    names = ("aggregate_kl_lower", "aggregate_kl_upper", "bounded_images")
    *ends, count = map(measured.get, names)
    if None not in (*ends, count):
        bracket = " to ".join(f"{end:#.3g}" for end in ends)
        numbers.append(
            (f"KL(q(z) ‖ N(0, I)) of {count:,.0f} images alone, nats", bracket)
        )
    if "active_units" in measured:
        units = f"{measured['active_units']:.0f} of {config.model.latent_size}"
        numbers.append(("active units", units))
    return numbers


def parameter_rows(config: ml_collections.ConfigDict) -> list[tuple[str, ...]]:
    """Module, trainable parameters, statistics; parts are indented."""
    columns = (column.cells for column in parameter_table(config).columns)
    return list(zip(*columns, strict=True))


def configuration(
    config: ml_collections.ConfigDict,
) -> dict[str, list[tuple[str, str, bool]]]:
    """Key, value and whether it is the default, by section."""
    defaults, sections = flatten(default_config()), {}
    for name, value in flatten(config).items():
        section, _, key = name.rpartition(".")
        row = (key, str(value) or '""', value == defaults[name])
        sections.setdefault(section or "run", []).append(row)
    return sections


def environment(workdir: Path) -> list[tuple[str, str]]:
    """What the report was made with."""
    devices = [device.device_kind for device in jax.devices()]
    found = software()
    digest = found.pop("the code of gamix_jax")
    kinds = ", ".join(
        f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)
    )
    return [
        ("Command", _command("report", workdir)),
        ("Code", code_version()),
        ("Digest of the code", digest),
        ("Devices", kinds),
        ("System", platform.platform()),
        *found.items(),
    ]


def code_version() -> str:
    """The git commit of a checkout, and whether the code was changed since; else the version that is installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = " with changes since" if git("status", "--porcelain", ".") else ""
        return f"git commit {git('rev-parse', 'HEAD')}{changed}"
    except (OSError, subprocess.CalledProcessError):
        with contextlib.suppress(PackageNotFoundError):
            return f"gamix-jax {version('gamix-jax')}, installed"
        return "neither installed nor in a git checkout"
