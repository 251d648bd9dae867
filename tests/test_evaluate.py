"""A whole evaluation of a tiny run of digits: what it writes, that it counts every image, and what it refuses."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from test_steps import tiny_config

import gamix_jax
from gamix_jax import run_images
from gamix_jax.errors import InputError
from gamix_jax.evaluate import evaluate, shown
from gamix_jax.features import open_features, train_classifier
from gamix_jax.likelihood import discretised_laplace_log_prob
from gamix_jax.measurements import Evaluation, Options
from gamix_jax.metrics.frechet import FeatureStatistics, frechet_distance
from gamix_jax.metrics.manifold import manifold
from gamix_jax.run_images import open_run_images
from gamix_jax.steps import scale_images, to_levels

QUIET = Console(quiet=True)


def noise():
    return np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)


def held_out(model):
    """All of them, in the source's order."""
    return open_run_images(model.config)["test"].read(np.arange(180))


@pytest.fixture(scope="module")
def options(digits_run, tmp_path_factory):
    """With a classifier of a few steps, since any network's features do here; other images are noise."""
    folder = tmp_path_factory.mktemp("features")
    images = open_run_images(gamix_jax.load(digits_run).config)
    file = folder / "digits.npz"
    np.save(folder / "noise.npy", noise())
    train_classifier(images["train"], images["test"], file, QUIET, steps=3)
    return Options(
        features="classifier",
        features_file=str(file),
        likelihood_samples=2,
        ood=f"array:{folder / 'noise.npy'}",
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
        *("step", "count", "protocol", "images", "likelihood", "latent", "anomaly")
    ]
    assert shown(result["images"]["reconstructions"]["frechet_distance"]) in printed
    assert shown(result["likelihood"]["log_prob"]) in printed
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
        "samples, fitted Gaussian": samples,
        "samples, fitted mixture": samples,
    }


def test_reconstructions_are_measured_as_they_would_be_saved(
    evaluated, options, digits_run
):
    """Against the same of the whole set at once, on one device."""
    model = gamix_jax.load(digits_run)
    images = held_out(model)
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
    sets = [FeatureStatistics(features.size) for _ in range(2)]
    for of_set, x in zip(sets, (images, levels), strict=True):
        of_set.add(np.asarray(features.apply(features.variables, x)))
    np.testing.assert_allclose(
        found["frechet_distance"]["value"], frechet_distance(*sets).value, rtol=1e-3
    )


def test_held_out_images_are_the_reference(evaluated, options, digits_run):
    """Precision and recall are those of training images among them, and not the other way round."""
    evaluation = Evaluation(digits_run, options)
    apply, variables = evaluation.features.apply, evaluation.features.variables
    reference, training = (
        np.asarray(
            apply(variables, evaluation.images[x].read(evaluation.chosen[x][:180]))
        )
        for x in ("test", "train")
    )
    found = evaluated[1]["images"]["training images"]
    expected = manifold(reference, training)._asdict()
    for name, estimate in expected.items():
        # Two images, for a distance at a ball's edge may round to either side of it.
        np.testing.assert_allclose(found[name]["value"], estimate.value, atol=2 / 180)
    assert abs(expected["precision"].value - expected["recall"].value) > 4 / 180


def test_latent_numbers_are_of_all_held_out_images(evaluated, digits_run):
    latent = evaluated[1]["latent"]
    assert latent["bounded_images"] == 180
    model = gamix_jax.load(digits_run)
    images = held_out(model)
    mean, variance = (np.asarray(x) for x in model.encode(images).moments())
    np.testing.assert_allclose(
        latent["within_variance"], variance.mean(axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(latent["between_variance"], mean.var(axis=0), rtol=1e-3)
    assert set(latent["accuracy"]) == {"200", "1000"}  # 1,617 have labels


def test_kl_of_new_images_is_by_what_was_fitted_to_training_images(
    evaluated, options, digits_run
):
    """By scikit-learn's densities, of the training images' draws; of the held-out images' own they would be others."""
    evaluation = Evaluation(digits_run, options)
    train, test = (np.float64(evaluation.code(x).z) for x in ("train", "test"))
    found = evaluated[1]["latent"]["aggregate_kl_lower_by_fit"]

    def bound(components, codes):
        r = GaussianMixture(components, random_state=options.seed).fit(codes)
        return np.mean(r.score_samples(test) - norm.logpdf(test).sum(axis=1))

    for name, components in (("fitted Gaussian", 1), ("fitted mixture", 10)):
        expected = bound(components, train)
        np.testing.assert_allclose(found[name]["value"], expected, atol=1e-3)
        assert abs(bound(components, test) - expected) > 3e-3


def test_splits_have_noise_of_their_own(options, digits_run):
    """Or where the posterior is the prior, held-out draws would be the very ones fitted to."""
    evaluation = Evaluation(digits_run, options)
    train, test = (evaluation.code(split) for split in ("train", "test"))
    at = {place: row for row, place in enumerate(train.index)}
    pairs = [(at[place], row) for row, place in enumerate(test.index) if place in at]
    assert len(pairs) > 100
    rows = np.array(pairs).T
    noise = [
        (coded.z - coded.mean)[row].ravel()
        for coded, row in zip((train, test), rows, strict=True)
    ]
    # Of n independent pairs a correlation has a standard deviation of n^-1/2.
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(len(noise[0]))


def test_the_evidence_bounds_are_in_order(evaluated):
    likelihood = evaluated[1]["likelihood"]
    elbo, log_prob = (likelihood[name]["value"] for name in ("elbo", "log_prob"))
    assert elbo < log_prob < 0
    terms = likelihood["elbo_reconstruction"]["value"] - likelihood["elbo_kl"]["value"]
    np.testing.assert_allclose(elbo, terms, rtol=1e-6)
    bits = likelihood["bits_per_dimension"]["value"]
    np.testing.assert_allclose(bits, -log_prob / (64 * np.log(2)), rtol=1e-6)


def test_scores_tell_noise_as_the_model_does(evaluated, digits_run, options):
    """Against scores of other draws of z: the area is of all pairs, so draws hardly move it."""
    model, anomaly = gamix_jax.load(digits_run), evaluated[1]["anomaly"]
    fitted = Evaluation(digits_run, options).samplers(
        Evaluation(digits_run, options).code("train")
    )["fitted mixture"]
    scores = {"reconstruction": [], "aggregate log-density": []}
    for images in (held_out(model), noise()[..., None]):
        z = model.encode(images).sample(jax.random.key(5))
        log_prob = discretised_laplace_log_prob(
            scale_images(jnp.asarray(images)),
            model.decode(z),
            evaluated[1]["likelihood"]["scale"],
        )
        scores["reconstruction"].append(-np.asarray(log_prob))
        scores["aggregate log-density"].append(-np.asarray(fitted.log_prob(z)))
    for name, (inside, outside) in scores.items():
        expected = roc_auc_score(
            np.repeat([0, 1], [180, 60]), np.concatenate([inside, outside])
        )
        assert abs(expected - 0.5) > 0.05  # or either orientation would do
        np.testing.assert_allclose(anomaly[name]["auroc"]["value"], expected, atol=0.08)
    # The likelihood, not the KL, is most of the ELBO.
    areas = [anomaly[x]["auroc"]["value"] for x in ("negative ELBO", "reconstruction")]
    np.testing.assert_allclose(*areas, atol=0.05)


def test_samplers_are_three(evaluated):
    rows = evaluated[1]["images"]
    names = [f"samples, {x}" for x in ("prior", "fitted Gaussian", "fitted mixture")]
    for number in ("frechet_distance", "sharpness"):
        assert len({rows[name][number]["value"] for name in names}) == 3


def test_the_first_of_those_chosen_stand_for_all(digits_run, options, tmp_path):
    """Of images in the order of their classes too."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    labels = np.repeat(np.arange(10), 100)
    np.savez(
        tmp_path / "sorted.npz",
        **{f"{s}_images": np.zeros((1000, 8, 8), np.uint8) for s in ("train", "test")},
        train_labels=labels,
        test_labels=labels,
    )
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": "array", "dir": str(tmp_path / "sorted.npz")}
    (run / "config.json").write_text(json.dumps(config))
    evaluation = Evaluation(run, Options())
    counts = np.bincount(labels[evaluation.chosen["test"][:200]], minlength=10)
    # 20 of each expected, standard deviation 4
    np.testing.assert_allclose(counts, 20, atol=16)
    assert len(set(evaluation.chosen["test"])) == 1000


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
    # SSIM is of reconstructions rounded to levels: what fell on the other side of a half
    # moved it by 1.4e-6, and seven times that may.
    for name, atol in (("draw_error", 0), ("sharpness", 0), ("ssim", 1e-5)):
        np.testing.assert_allclose(
            *(x.averages.mean(name) for x in (first, second)), rtol=1e-5, atol=atol
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
    assert len(files) == 2  # held out, and as many for training
    assert len(evaluation.real_features("train").kept) == 180
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
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(InputError, match=r"/gone/images.npy.*is no file"):
        Evaluation(run, Options())
    found = Evaluation(run, Options(data_dir=str(tmp_path / "images.npy")))
    assert {split: len(x) for split, x in found.images.items()} == {
        "train": 270,
        "test": 30,
    }


def test_a_device_gets_no_more_images_than_it_can_take(digits_run, tmp_path):
    """Though the run's batch, of many devices, was larger."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["train"]["batch_size"] = 100_000
    (run / "config.json").write_text(json.dumps(config))
    evaluation = Evaluation(run, Options())
    at_once = evaluation.model.images_at_once
    assert evaluation.batch_size == at_once * jax.local_device_count() < 100_000


def test_as_many_training_images_are_compared_as_held_out_ones(
    digits_run, options, monkeypatch
):
    """Also where that is more than what else is fitted to training images takes."""
    monkeypatch.setattr(run_images, "MOST_IMAGES", 50)
    evaluation = Evaluation(digits_run, options._replace(count=100))
    kept = [len(evaluation.real_features(split).kept) for split in ("train", "test")]
    assert kept == [100, 100]
    assert len(evaluation.chosen["train"]) == 50


@pytest.mark.parametrize(
    ("run", "data_dir", "where"),
    [
        ({"source": "tfds", "name": "mnist", "dir": "sets"}, "", "sets"),
        ({"source": "tfds", "name": "mnist", "dir": "sets"}, "moved", "moved"),
        ({"source": "tfds", "name": "", "dir": "sets/faces"}, "", ""),
        ({"source": "folder", "name": "", "dir": "photos"}, "moved", ""),
    ],
)
def test_other_sets_lie_where_the_runs_set_does(monkeypatch, run, data_dir, where):
    """Never in a folder of the user's images: TFDS would prepare them there."""
    opened = []
    monkeypatch.setattr(
        run_images.data, "open_images", lambda options, _: opened.append(options)
    )
    config = tiny_config().data
    config.update(run)
    run_images.open_other_images("tfds:cifar10", config, data_dir)
    assert [(options.name, options.dir) for options in opened] == [("cifar10", where)]


@pytest.mark.parametrize(
    ("source", "name", "place", "words"),
    [
        ("tfds", "celeb_a", "/sets", "celeb_a"),
        ("tfds", "", "/sets/faces64", "tfds faces64"),
        ("folder", "celeb_a", "/my/photos", "folder photos"),
        ("digits", "", "", "digits"),
    ],
)
def test_images_are_called_what_they_are(source, name, place, words):
    config = tiny_config().data
    config.update({"source": source, "name": name, "dir": place})
    assert run_images.name_of(config) == words


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 181}, "181 images are asked for, and 180 are held out"),
        ({"count": 19}, "takes at least 20 held-out images, not 19"),
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
