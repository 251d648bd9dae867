"""The page about a run: what it says, that it needs nothing else, and what it refuses."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.metadata import version
from io import BytesIO, StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_steps import tiny_config

from gamix_jax.errors import InputError
from gamix_jax.evaluate import shown
from gamix_jax.logs import read_metrics
from gamix_jax.report import page as report_module
from gamix_jax.report.curves import draw_curves, panels
from gamix_jax.report.page import (
    code_version,
    configuration,
    key_numbers,
    render,
    report,
    weighted_terms,
)
from gamix_jax.report.pictures import Picture, Pictures, embed
from gamix_jax.report.tables import evaluation_sections, read_evaluation

HOSTILE = "<script>alert('x')</script> & \"run\""


class Page(HTMLParser):
    """Every element with its attributes, and the text of each table cell."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.cells, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, text):
        self.text += text
        if self.lasttag in ("td", "th") and self.cells:
            self.cells[-1] += text


def number(value, error):
    return {"value": value, "standard_error": error}


def evaluation(step=4):
    """As evaluate.py writes it, with numbers made up here."""
    return {
        "step": step,
        "protocol": {
            name: f"Protocol of {name} <b>&</b>."
            for name in ("images", "likelihood", "latent", "anomaly")
        },
        "images": {
            "held-out images": {"sharpness": number(1.5, 0.25)},
            "reconstructions": {"psnr": number(18.034, 0.142)},
            "samples, prior": {
                "frechet_distance": number(12.3456, 0.213),
                "kernel_distance": number(0.0032149, 0.00023),
            },
        },
        "likelihood": {
            "log_prob": number(-251.34, 2.1),
            "bits_per_dimension": number(5.6651, 0.0473),
            "scale": 0.14231,
        },
        "latent": {
            "active_units": 4.0,
            "aggregate_kl_lower": 4.7657,
            "aggregate_kl_upper": 5.005,
            "bounded_images": 180.0,
            "aggregate_kl_lower_by_fit": {"fitted mixture": number(1.234, 0.056)},
            "sliced_wasserstein": {"distance": 0.1234, "null_mean": 0.0912},
            "accuracy": {"1000": {"linear_probe": number(0.889, 0.023)}},
            "within_variance": [0.5, 0.25, 0.125, 1.0],
            "between_variance": [0.5, 0.75, 0.875, 0.0],
        },
        "anomaly": {"negative ELBO": {"auroc": number(0.981, 0.011)}},
    }


def write_evaluation(workdir, **changes):
    content = json.dumps(evaluation() | changes)
    (workdir / "evaluation.json").write_text(content)


def needs_nothing(content):
    """No address of a network, and nothing is loaded but what the page holds."""
    page = Page(content)
    assert not re.search(r"https?:", re.sub(r"base64,[\w+/=]+", "", content))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "srcset", "href", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#"))
    assert "url(" not in content
    assert "@import" not in content
    return page


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A small run, and its report."""
    workdir = tmp_path_factory.mktemp("runs") / "small & <b>"
    shutil.copytree(digits_run, workdir)
    written = StringIO()
    path = report(workdir, "", Console(file=written, width=80))
    return workdir, path, written.getvalue()


def test_a_run_becomes_one_page_that_needs_nothing_else(run):
    workdir, path, said = run
    assert path == workdir / "report.html"
    assert f"Made {path}" in said
    assert not list(workdir.glob("report.*new"))
    page = needs_nothing(path.read_text("utf-8"))
    assert "small & <b>" in page.text  # the name, as text
    assert "8\N{MULTIPLICATION SIGN}8 grey images" in page.text
    # scikit-learn's 1,797 digits, a tenth of them held out
    assert "1,617 for training, 180 held out" in " ".join(page.text.split())
    assert "This run was not evaluated yet." in page.text
    assert "--mode=evaluate" in page.text
    for _, attributes in page.elements:
        if "src" in attributes:
            kind, content = attributes["src"].split(";base64,")
            content = base64.b64decode(content, validate=True)
            if kind == "data:image/svg+xml":
                assert content.startswith(b"<?xml")
            else:
                with Image.open(BytesIO(content)) as picture:
                    assert kind == f"data:image/{picture.format.lower()}"
    moving = [
        attributes
        for _, attributes in page.elements
        if attributes.get("src", "").startswith("data:image/gif")
    ]
    # Linear and spherical interpolations, traversals; 8 images of 48 pixels, lines
    # between, or the 4 dimensions of the latent space
    assert [attributes["width"] for attributes in moving] == ["391", "391", "195"]


def test_every_row_of_the_traversal_has_its_dimension(run):
    text = run[1].read_text("utf-8")
    rows = re.search(r'id="traversals".*?class="rows">(.*?)</div>', text, re.S)[1]
    assert sorted(re.findall(r"<sub>(\d+)</sub>", rows)) == ["0", "1", "2", "3"]


def test_what_cannot_be_written_is_one_sentence(run, monkeypatch):
    """Before any picture is made; the older report stays."""
    workdir, path, _ = run
    before = path.read_bytes()

    def refuse(*arguments):
        raise AssertionError("worked before it was sure of its place")

    def touch(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report_module, "load", lambda workdir: None)
    monkeypatch.setattr(report_module, "contents", refuse)
    monkeypatch.setattr(report_module.Path, "touch", touch)
    with pytest.raises(InputError, match=r"report\.html cannot be written \(Perm"):
        report(workdir, "", Console(quiet=True))
    assert path.read_bytes() == before


def test_no_run_and_a_damaged_evaluation_are_one_sentence(run, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        report(tmp_path, "", Console(quiet=True))
    (tmp_path / "evaluation.json").write_text('{"step": 4, "ima')
    with pytest.raises(InputError, match=r"evaluation\.json cannot be read \(JSON"):
        read_evaluation(tmp_path, 4)
    write_evaluation(tmp_path, latent={"active_units": 4.0})
    found, _ = read_evaluation(tmp_path, 4)
    with pytest.raises(InputError, match="KeyError: 'within_variance'"):
        evaluation_sections(tmp_path, found)


def hand_made(**changes):
    """What the template is given, without a model: one black pixel for each picture."""
    config = tiny_config()
    pixel = BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")
    content = base64.b64encode(pixel.getvalue()).decode()
    picture = Picture(f"data:image/png;base64,{content}", 1, 1)
    names = (
        *("sample/samples", "reconstruct/reconstructions", "interpolate/linear"),
        *("interpolate/linear.gif", "interpolate/spherical", "traverse/traversal"),
        *("interpolate/spherical.gif", "traverse/traversal.gif", "latent/variances"),
        *("latent/map_by_label", "latent/aggregate"),
    )
    counts = {"sample": 64, "reconstruct": 32, "latent": 180}
    return {
        "name": HOSTILE,
        "step": 1234,
        "written": None,
        "made": "1 January 2030",
        "config": config,
        "images": "digits",
        "counts": {"train": 1617, "test": 180},
        "posterior": "q",
        "objective": weighted_terms(config),
        "key_numbers": [],
        "evaluation": [],
        "missing": "",
        "evaluate_command": HOSTILE,
        "curves": [],
        "pictures": Pictures(
            dict.fromkeys(names, picture), ["label"], [3, 1], 3.0, counts
        ),
        "small": True,
        "parameters": [("  encoder", "10", "0"), ("autoencoder", "20", "0")],
        "configuration": configuration(config),
        "environment": [("Command", HOSTILE)],
        **changes,
    }


def test_hostile_names_stay_text():
    config = tiny_config(data__dir=HOSTILE)
    content = render(
        hand_made(
            missing=HOSTILE,
            configuration=configuration(config),
            key_numbers=[(HOSTILE, "1")],
        )
    )
    page = needs_nothing(content)
    assert page.text.count(HOSTILE) == 7  # title, heading, key number, note, ...
    assert "Step 1,234 of 1,000" in page.text


def test_tables_show_numbers_to_the_second_digit_of_their_error(tmp_path):
    write_evaluation(tmp_path)
    found, missing = read_evaluation(tmp_path, 4)
    sections = evaluation_sections(tmp_path, found)
    assert not missing
    charts = [section.chart is not None for section in sections]
    assert charts == [False, False, True, False]
    page = Page(
        render(
            hand_made(evaluation=[section._replace(chart=None) for section in sections])
        )
    )
    cells = [cell.strip() for cell in page.cells]

    def row(name, width=1):
        place = cells.index(name)
        return cells[place + 1 : place + 1 + width]

    assert row("", 3) == ["Held-out images", "Reconstructions", "Samples, prior"]
    assert row("Fréchet distance ↓", 3) == ["", "", "12.35 ± 0.21"]
    assert row("Kernel distance x 1000 ↓", 3) == ["", "", "3.21 ± 0.23"]
    assert row("PSNR, dB ↑", 3) == ["", "18.03 ± 0.14", ""]
    assert row("log p(x), importance-sampled, nats ↑") == ["\N{MINUS SIGN}251.3 ± 2.1"]
    assert row("Scale of the Laplace likelihood") == ["0.1423"]
    assert row("Active units") == ["4"]
    assert row("KL(q(z) ‖ N(0, I)), bracket, nats") == ["4.766 to 5.005"]
    assert row("Sliced Wasserstein distance to N(0, I), of z") == ["0.1234"]
    assert row(
        "KL(q(z) ‖ N(0, I)) of new images, at least, nats, by the fitted mixture"
    ) == ["1.234 ± 0.056"]
    assert row("1,000") == ["0.889 ± 0.023"]
    assert row("negative ELBO") == ["0.981 ± 0.011"]
    for name in ("images", "likelihood", "latent", "anomaly"):
        assert f"Protocol of {name} <b>&</b>." in page.text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1234.5, 37.0, "1,234 ± 37"),
        (0.5, 0.0099, "0.5000 ± 0.0099"),
        (3.0, 0.0, "3 ± 0"),
        (-0.25, 0.1, "\N{MINUS SIGN}0.25 ± 0.10"),
    ],
)
def test_a_number_and_its_error(value, error, text):
    assert shown(number(value, error)) == text


def test_an_evaluation_of_another_step_is_not_shown(tmp_path):
    write_evaluation(tmp_path, step=2000)
    found, missing = read_evaluation(tmp_path, 4)
    assert found is None
    assert missing == "evaluation.json is of step 2,000; this report is of step 4."
    page = Page(render(hand_made(missing=missing, evaluate_command="COMMAND")))
    assert missing in page.text
    assert "COMMAND" in page.text


def test_damaged_lines_of_the_curves_are_left_out(tmp_path):
    assert read_metrics(tmp_path, 10) == []
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 2, "kl": 0.5}\n'
        b'{"step": 4, "kl": NaN, "reconstruction": 0.25}\n'
        b'{"step": 4, "test/psnr": 18.0, "test/kl": "x"}\n'
        b'\xff\x00{"step": 6}\n[6]\n"step"\n\n{"step": "six"}\n{"step": null}\n'
        b'{"step": 12, "kl": 1.0}\n{"step": 6, "k'
    )
    assert read_metrics(tmp_path, 10) == [
        {"step": 2, "kl": 0.5},
        {"step": 4, "reconstruction": 0.25},
        {"step": 4, "test/psnr": 18.0},
    ]


def test_curves_are_drawn_of_what_there_is():
    config = tiny_config()
    assert draw_curves(config, [], 4) == []
    lines = [
        {"step": 2, "kl": 0.5},
        {"step": 4, "kl": 0.01},
        {"step": 4, "test/psnr": 18.0, "test/aggregate_kl_lower": 1.0},
    ]
    charts = draw_curves(config, lines, 4)
    assert [title for title, _ in charts] == [
        "KL of the aggregate's moments, nats",
        "PSNR, dB",
    ]  # of the bracket one end is missing
    assert charts == draw_curves(config, lines, 4)  # byte by byte
    titles = [panel.title for panel in panels(tiny_config(adversarial__loss="none"))]
    assert not any(
        "dversarial" in title or "discriminator" in title for title in titles
    )


def test_only_numbers_of_one_definition_share_a_panel():
    """Evaluations have the moments' KL of the total, diagonal variance alone."""

    def shown(**objective):
        return {
            (panel.training, panel.held_out)
            for panel in panels(tiny_config(**objective))
            if panel.title.startswith("KL of")
        }

    assert shown() == {("kl", ("aggregate_kl",))}
    apart = {("kl", ()), ("", ("aggregate_kl",))}
    assert shown(objective__covariance="full") == apart
    assert shown(objective__variance="between") == apart
    assert shown(objective__kl="elbo") == {("kl", ("kl",))}


def test_the_objective_in_words_has_its_weights():
    terms = weighted_terms(
        tiny_config(
            objective__kl="siwae",
            objective__reconstruction_weight=200.0,
            objective__kl_weight=5.0,
            objective__kl_warmup=1000,
            objective__component_entropy_weight=0.5,
            objective__collapse_weight=0.0,
            adversarial__loss="none",
        )
    )
    # 200 / 5 = 40 within the bound (objective.py: weight of the errors)
    assert [weight for weight, _ in terms] == ["5", "\N{MINUS SIGN}0.5"]
    assert "within it 40 times the mean absolute error" in terms[0][1]
    assert "rising over the first 1,000 steps" in terms[0][1]


def test_what_the_discriminator_judges_is_in_words():
    config = tiny_config(adversarial__prior_samples=True, adversarial__start=10)
    weight, words = weighted_terms(config)[-1]
    assert (weight, words) == (
        "0.5",
        "adversarial term of a PatchGAN discriminator (hinge), of reconstructions and samples "
        "of the prior, from step 10",
    )
    assert "samples" not in str(weighted_terms(tiny_config()))


def test_the_negentropy_is_in_words_and_curves_where_the_objective_has_it():
    config = tiny_config(
        objective__negentropy_components=8,
        objective__negentropy_weight=0.25,
        objective__kl_weight=2.0,
    )
    (weight,) = (w for w, term in weighted_terms(config) if "8 Gaussians" in term)
    assert weight == "0.5"  # 0.25 * 2
    config.objective.negentropy_weight = 0.0
    assert "8 Gaussians" not in str(weighted_terms(config))
    (negentropy,) = (p for p in panels(config) if p.training == "negentropy_bound")
    assert negentropy not in panels(tiny_config())
    assert "8 Gaussians" not in str(weighted_terms(tiny_config()))


def test_key_numbers_are_those_measured():
    config = tiny_config()
    assert key_numbers(config, [], None, 4) == []
    lines = [
        {"step": 2, "test/psnr": 10.0, "test/active_units": 1.0},
        {
            "step": 4,
            "test/psnr": 18.0,
            "test/aggregate_kl_lower": 4.7657,
            "test/aggregate_kl_upper": 5.005,
            "test/bounded_images": 180.0,
        },
        {"step": 4, "kl": 0.5},
    ]
    bracket = (
        "KL(q(z) ‖ N(0, I)) of 180 images alone, nats",
        "4.77 to 5.00",  # 5.005 is below 5.005 in binary
    )
    assert key_numbers(config, lines, None, 4) == [
        ("PSNR of the mean squared error, dB", "18.0"),
        bracket,
    ]
    assert key_numbers(config, lines, None, 6) == []  # those of step 4 are not of it
    assert key_numbers(config, lines[:1], evaluation(), 4) == [
        ("Fréchet distance of samples", "12.35 ± 0.21"),
        ("bits per dimension", "5.665 ± 0.047"),
        ("PSNR of reconstructions, dB", "18.03 ± 0.14"),
        ("KL(q(z) ‖ N(0, I)) of new images, at least, nats", "1.234 ± 0.056"),
        bracket,
        ("active units", "4 of 4"),
    ]


def test_only_changed_keys_are_marked():
    rows = {
        f"{section}.{key}": default
        for section, keys in configuration(tiny_config(train__steps=7)).items()
        for key, _, default in keys
    }
    assert not rows["train.steps"]
    assert rows["train.log_every"]
    assert rows["run.seed"]


def test_wide_pictures_are_reduced(tmp_path):
    """To 960 pixels, animations to 640, in proportion; all frames stay, and charts as they are."""
    levels = np.random.default_rng(0).integers(0, 256, (3, 15, 1920, 3), np.uint8)
    frames = [Image.fromarray(x) for x in levels]
    frames[0].save(tmp_path / "wide.png")
    frames[0].save(
        tmp_path / "wide.gif", save_all=True, append_images=frames[1:], duration=80
    )
    for name, size, count in (("wide.png", (960, 8), 1), ("wide.gif", (640, 5), 3)):
        picture = embed(tmp_path / name)
        assert (picture.width, picture.height) == size
        with Image.open(
            BytesIO(base64.b64decode(picture.uri.split(",")[1]))
        ) as reduced:
            assert reduced.size == size
            assert getattr(reduced, "n_frames", 1) == count
            assert reduced.info.get("duration", 80) == 80
    (tmp_path / "latent").mkdir()
    frames[0].save(tmp_path / "latent/chart.png")
    assert embed(tmp_path / "latent/chart.png").width == 1920


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_code_is_told_by_its_commit(tmp_path, monkeypatch):
    """And by the version installed where it lies in no checkout, or is not part of one."""

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    code = tmp_path / "report.py"
    code.write_text("")
    monkeypatch.setattr(report_module, "__file__", str(code))
    installed = f"gamix-jax {version('gamix-jax')}, installed"
    assert code_version() == installed
    git("init", "--quiet")
    assert code_version() == installed
    git("add", "report.py")
    git("commit", "--quiet", "--message=x")
    commit = git("rev-parse", "HEAD")
    assert code_version() == f"git commit {commit}"
    code.write_text("changed")
    assert code_version() == f"git commit {commit} with changes since"
