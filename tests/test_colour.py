"""All that is done with a trained model, for colour photos in classes, several components and a learned prior."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_train import small_run

from gamix_jax.evaluate import evaluate
from gamix_jax.generate import MODES, Options, generate
from gamix_jax.measurements import Options as EvaluationOptions
from gamix_jax.report.page import report
from gamix_jax.train import train

QUIET = Console(quiet=True)


@pytest.mark.slow
def test_colour_components_and_a_learned_prior(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photos/{kind}/{i:02}.png")
    (tmp_path / "photos/a/00.png").write_bytes(b"not a photo")
    config = small_run(
        data__source="folder",
        data__dir=str(tmp_path / "photos"),
        data__channels=3,
        data__size=16,
        data__test_fraction=0.25,
        data__max_bad_fraction=0.05,
        model__components=3,
        model__prior="vamp",
        model__prior_components=5,
        objective__kl="elbo",
        objective__covariance="diagonal",
        objective__moment_decay=0.0,
    )
    workdir = tmp_path / "run"
    train(config, workdir)
    found = evaluate(
        workdir, EvaluationOptions(likelihood_samples=2, ood="digits"), QUIET
    )
    assert found["count"] == 30
    assert 1 <= found["latent"]["components_used"] <= 3
    assert found["latent"]["accuracy"] == {}  # fewer than 200 have labels
    assert set(found["images"]["samples, fitted mixture"]) == {"sharpness"}
    for mode in MODES:
        options = Options(out=str(tmp_path / mode), count=4, sampler="gmm")
        generate(mode, workdir, options, QUIET)
    maps = {path.name for path in (tmp_path / "latent").glob("map_by_*")}
    assert maps == {"map_by_label.png", "map_by_component.png"}
    with Image.open(tmp_path / "sample/images/00003.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
    page = report(workdir, "", QUIET).read_text("utf-8")
    assert "a mixture of 3 Gaussians" in page
