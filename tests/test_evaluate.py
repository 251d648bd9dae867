"""A whole evaluation of a tiny run of digits: what it writes, that it counts every image, and what it refuses."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

import gamix_jax
from gamix_jax.errors import InputError
from gamix_jax.evaluate import evaluate
from gamix_jax.features import open_features, train_classifier
from gamix_jax.measurements import Evaluation, Options
from gamix_jax.metrics.frechet import FeatureStatistics, frechet_distance
from gamix_jax.run_images import open_run_images
from gamix_jax.steps import to_levels

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def options(digits_run, tmp_path_factory):
    """With a classifier of a few steps, since any network's features do here; other images are the held-out ones again."""
    folder = tmp_path_factory.mktemp("features")
    images = open_run_images(gamix_jax.load(digits_run).config)
    file = folder / "digits.npz"
    train_classifier(images["train"], images["test"], file, QUIET, steps=3)
    return Options(
        features="classifier",
        features_file=str(file),
        likelihood_samples=2,
        ood="digits",
        cache=folder / "cache",
    )


@pytest.fixture(scope="module")
def evaluated(digits_run, options, tmp_path_factory):
    """The folder, the result and what was printed."""
    workdir = shutil.copytree(digits_run, tmp_path_factory.mktemp("run") / "run")
    console = Console(width=200, file=io.StringIO())
    result = evaluate(workdir, options, console)
    return workdir, result, console.file.getvalue()


def test_the_file_the_table_and_the_curves(evaluated):
    workdir, result, printed = evaluated
    assert json.loads((workdir / "evaluation.json").read_text()) == result
    assert result["step"] == 4
    assert list(result) == [
        *("step", "protocol", "images", "likelihood", "latent", "anomaly")
    ]
    value = result["images"]["reconstructions"]["frechet_distance"]["value"]
    assert f"{value:.4g} ± " in printed
    assert "180 held-out images of digits" in result["protocol"]["images"]
    assert len(list((workdir / "evaluation").glob("events.out.tfevents.*"))) == 1


def test_every_set_of_images_has_its_numbers(evaluated):
    _, result, _ = evaluated
    compared = {
        *("frechet_distance", "kernel_distance"),
        *("precision", "recall", "density", "coverage"),
    }
    samples = compared | {"sharpness"}
    assert {name: set(row) for name, row in result["images"].items()} == {
        "held-out images": {"sharpness"},
        "training images": compared,
        "reconstructions": samples | {"squared_error", "psnr", "ssim"},
        "samples, prior": samples,
        "samples, fitted mixture": samples,
    }


def test_reconstructions_are_measured_as_they_would_be_saved(
    evaluated, options, digits_run
):
    """Against the same of the whole set at once, on one device."""
    model = gamix_jax.load(digits_run)
    images = open_run_images(model.config)["test"].read(np.arange(180))
    levels = np.asarray(to_levels(model.reconstruct(images)))
    found = evaluated[1]["images"]["reconstructions"]
    squares = ((images / 127.5 - levels / 127.5) ** 2).mean(axis=(1, 2, 3))
    for name, values in (
        ("squared_error", squares),
        ("psnr", 10 * np.log10(4 / squares)),
    ):
        # Rounding to another level, at chance, would change one error by about 1 %.
        np.testing.assert_allclose(found[name]["value"], values.mean(), rtol=1e-4)
        error = values.std(ddof=1) / np.sqrt(180)
        np.testing.assert_allclose(found[name]["standard_error"], error, rtol=1e-3)
    features = open_features("classifier", options.cache.parent / "digits.npz", 8, 1)
    sets = []
    for of_set in (images, levels):
        sets.append(FeatureStatistics(features.size))
        sets[-1].add(np.asarray(features.apply(features.variables, of_set)))
    expected = frechet_distance(*sets)
    np.testing.assert_allclose(
        found["frechet_distance"]["value"], expected.value, rtol=1e-3
    )


def test_latent_numbers_are_of_all_held_out_images(evaluated, digits_run):
    latent = evaluated[1]["latent"]
    assert latent["bounded_images"] == 180
    model = gamix_jax.load(digits_run)
    images = open_run_images(model.config)["test"].read(np.arange(180))
    mean, variance = (np.asarray(x) for x in model.encode(images).moments())
    np.testing.assert_allclose(
        latent["within_variance"], variance.mean(axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(latent["between_variance"], mean.var(axis=0), rtol=1e-3)
    assert set(latent["accuracy"]) == {"200", "1000"}  # 1,617 have labels


def test_the_evidence_bounds_are_in_order(evaluated):
    likelihood = evaluated[1]["likelihood"]
    elbo, log_prob = (likelihood[name]["value"] for name in ("elbo", "log_prob"))
    assert elbo < log_prob < 0
    terms = likelihood["elbo_reconstruction"]["value"] - likelihood["elbo_kl"]["value"]
    np.testing.assert_allclose(elbo, terms, rtol=1e-6)
    bits = likelihood["bits_per_dimension"]["value"]
    np.testing.assert_allclose(bits, -log_prob / (64 * np.log(2)), rtol=1e-6)


def test_the_same_images_are_not_told_apart(evaluated):
    """Noise belongs to the image, so all scores are ties: an area of one half."""
    for scores in evaluated[1]["anomaly"].values():
        assert scores["auroc"]["value"] == 0.5


def test_batches_change_nothing(digits_run, options):
    """The last of 180 images fills a batch of 40 by half, one of 64 less."""
    results = []
    for size in (40, 64):
        evaluation = Evaluation(digits_run, options)
        evaluation.batch_size = size
        coded = evaluation.code("test")
        sampled = [
            rows["image"]
            for rows in evaluation.sample(evaluation.samplers(coded)["prior"])
        ]
        results.append((coded, np.concatenate(sampled)))
    (first, first_samples), (second, second_samples) = results
    np.testing.assert_allclose(first.z, second.z, atol=1e-5)
    np.testing.assert_array_equal(first.index, second.index)
    assert first.averages.count == second.averages.count == 180
    for name in ("draw_error", "ssim", "sharpness"):
        np.testing.assert_allclose(
            *(x.averages.mean(name) for x in (first, second)), rtol=1e-5
        )
    assert len(first_samples) == 180
    # One level where rounding falls on the other side of a half.
    np.testing.assert_allclose(
        first_samples.astype(int), second_samples.astype(int), atol=1
    )


def test_features_of_real_images_are_kept(evaluated, digits_run, options, monkeypatch):
    """They are read where they lie, computed again where they are damaged, and of other images they are others."""
    evaluation = Evaluation(digits_run, options)
    files = sorted(options.cache.iterdir())
    assert len(files) == 2  # held out, and for training
    kept = evaluation.real_features("test").kept

    def fail(batches):
        raise AssertionError("computed again")

    extract = evaluation.extract
    evaluation.extract = fail
    np.testing.assert_array_equal(evaluation.real_features("test").kept, kept)
    fewer = Evaluation(digits_run, options._replace(count=60))
    assert len(fewer.real_features("test").kept) == 60
    assert len(list(options.cache.iterdir())) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AssertionError, match="computed again"):
        evaluation.real_features("test")
    evaluation.extract = extract
    np.testing.assert_array_equal(evaluation.real_features("test").kept, kept)


def test_moved_data_are_found(digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": "array", "dir": "/gone/images.npy"}
    (run / "config.json").write_text(json.dumps(config))
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(InputError, match=r"/gone/images.npy.*is no file"):
        Evaluation(run, Options())
    found = Evaluation(run, Options(data_dir=str(tmp_path / "images.npy")))
    assert {split: len(x) for split, x in found.images.items()} == {
        "train": 45,
        "test": 5,
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 181}, "--count=181 images are asked for, and 180 are held out"),
        ({"ood": "nowhere"}, "--ood=nowhere is no source of images"),
        ({"ood": "folder:nowhere"}, "'nowhere', which is no folder"),
        ({"features_file": "gone.npz"}, "gone.npz does not exist"),
        ({"features": "inception"}, "is a features file of another network"),
    ],
)
def test_what_does_not_fit_is_refused(digits_run, options, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Evaluation(digits_run, options._replace(**changes))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        evaluate(tmp_path, Options(), QUIET)
