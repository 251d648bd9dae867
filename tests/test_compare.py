"""What benchmarks/compare.py says of runs: means over seeds, ratios at equal error, and what is done already."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_main import ROOT

from gamix_jax.errors import InputError
from gamix_jax.features import train_classifier


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compare

    return compare


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compare_tables

    return compare_tables


def row(objective, weight, seed, error, distance):
    return {
        "objective": objective,
        "weight": weight,
        "seed": seed,
        "squared error": error,
        "Frechet distance": distance,
        "Frechet, fitted Gaussian": distance,
    }


def curve(objective, seed, factor, errors):
    """Distances that fall as factor / error, a straight line in the logarithms of both."""
    return [row(objective, 1 / e, seed, e, factor / e) for e in errors]


def test_means_over_seeds_with_their_standard_errors(tables):
    rows = [row("a", 10.0, seed, 1.0, 2.0 * seed) for seed in range(3)]
    (found,) = tables.over_seeds(rows, ["Frechet distance", "sharpness"])
    # Of 0, 2 and 4: mean 2, standard deviation 2, of the mean 2 / sqrt(3).
    assert found["Frechet distance"] == "2 ± 1.2"
    assert (found["seeds"], found["weight"]) == ("3", "10")
    assert "sharpness" not in found  # no row has it
    rows[0]["sharpness"] = 1.0  # two seeds of three are without
    (found,) = tables.over_seeds(rows, ["Frechet distance", "sharpness"])
    assert (found["Frechet distance"], found["sharpness"]) == ("2 ± 1.2", "")
    (alone,) = tables.over_seeds(rows[1:2], ["Frechet distance"])
    assert alone["Frechet distance"] == "2"


def ratios(tables, rows):
    """Those of the samples of the prior, by objective and weight."""
    name = "prior / base"
    found = tables.at_equal_error(rows, ("base",))
    return {(row["objective"], row["weight"]): row[name] for row in found}


def test_a_baseline_is_as_good_as_its_best_run_of_no_more_error(tables):
    """Interpolated between two worse runs it would be made worse than it is."""
    rows = [row("base", 9.0, 0, 0.01, 1.0), row("base", 5.0, 0, 0.02, 4.0)]
    rows += [row("base", 1.0, 0, 0.04, 3.0), row("ours", 5.0, 0, 0.03, 2.0)]
    rows += [row("ours", 1.0, 0, 0.05, 2.0)]  # beyond them all
    assert ratios(tables, rows) == {("ours", "5"): "2 (1)", ("ours", "1"): "2 (1)"}


def test_ratios_are_at_the_error_of_each_run(tables):
    """Of each seed by itself; where the baseline has no run of so small an error, beside its least, and it is said."""
    rows = curve("base", 0, 1.0, [0.01, 0.02, 0.04])
    rows += curve("base", 1, 3.0, [0.01, 0.04])
    rows += [row("ours", 5.0, 0, 0.015, 0.5 / 0.015)]
    rows += [row("ours", 5.0, 1, 0.03, 1.8 / 0.03)]
    rows += [row("ours", 9.0, 0, 0.02, 0.7 / 0.02), row("ours", 9.0, 1, 0.009, 1.0)]
    rows += [row("ours", 20.0, 0, 0.05, 1.0)]
    # Of 0.5 and 0.6: sqrt(0.3) = 0.548; half of log(1.2) = 0.091 of it is 0.05.
    expected = {("ours", "5"): "0.548 ± 0.05 (2)"}
    # 0.7, and 1 beside the 3 / 0.01 of the second seed's least error: sqrt(0.7 / 300) = 0.0483;
    # half of log(0.7 * 300) = 2.67 of it is 0.129. 0.01 is 1.11 times 0.009.
    expected["ours", "9"] = "0.0483 ± 0.13 (2, 1 beside up to 11.1% more error)"
    expected["ours", "20"] = "0.04 (1)"  # 1 beside the 25 of the baseline's last
    assert ratios(tables, rows) == expected


def test_a_seed_that_the_baseline_lacks_has_no_ratio(tables):
    base = curve("base", 0, 1.0, [0.01, 0.02])
    other = curve("other", 1, 9.0, [0.01, 0.02])
    assert ratios(tables, base + other) == ratios(tables, other) == {}
    assert ratios(tables, base + curve("other", 0, 9.0, [0.02])) == {
        ("other", "50"): "9 (1)"
    }


def test_a_baseline_is_compared_with_the_other(tables):
    rows = curve("a", 0, 1.0, [0.01, 0.02]) + curve("b", 0, 0.5, [0.01, 0.02])
    (one, two, _, four) = tables.at_equal_error(rows, ("a", "b"))
    assert (one["objective"], one["prior / b"]) == ("a", "2 (1)")
    assert (four["objective"], four["prior / a"]) == ("b", "0.5 (1)")
    assert one["prior / a"] == two["prior / a"] == four["prior / b"] == ""


def test_samples_are_shown_at_the_error_of_the_baselines_middle(tables):
    rows = curve("base", 0, 1.0, [0.01, 0.02, 0.04])
    rows += curve("ours", 0, 1.0, [0.017, 0.1, 0.5]) + curve("ours", 1, 1.0, [0.02])
    assert tables.nearest_in_error(rows, "base") == {
        "base, weight 50, seed 0, error 0.02": ("base", 50.0, 0),
        "ours, weight 58.8235, seed 0, error 0.017": ("ours", 1 / 0.017, 0),
    }


def test_every_objective_is_a_configuration_that_could_train(compare):
    """Of all images; and no two runs have one folder."""
    from gamix_jax.config_check import check_config

    for data, (_, _, weights) in compare.DATA.items():
        base = compare.base_config(data, "somewhere", steps=100)
        runs = [
            compare.Run(objective, weight, 0)
            for objective in compare.OBJECTIVES
            for weight in weights
        ]
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            config = compare.run_config(base, run)
            check_config(config, 1)
            # The author's weights: 100 of the adversarial term, 5,000 of the error.
            ratio = {True: 100 / 5000, False: base.adversarial.weight / run.weight}
            found = config.adversarial.weight / config.objective.reconstruction_weight
            assert found == pytest.approx(ratio["PatchGAN" in run.objective])
            assert config.adversarial.start < config.train.steps
            of_samples = config.adversarial.prior_samples
            assert config.model.norm == ("group" if of_samples else "batch")
            assert config.optimizer.generator_learning_rate == 3e-3
            if "PatchGAN" in run.objective:
                rate = config.optimizer.discriminator_learning_rate
                assert rate == (1e-3 if config.data.channels == 3 else 5e-4)


def test_moments_are_remembered_of_as_many_images_whatever_the_batch(compare):
    run = compare.Run("full, KL 25, memory", 1000.0, 0)
    decay = {
        data: compare.run_config(
            compare.base_config(data, "somewhere", steps=100), run
        ).objective.moment_decay
        for data in ("mnist", "faces")
    }
    # Exactly, or compare_mnist.json would not count as done. Batches of 64 and of 32.
    assert decay["mnist"] == 0.9
    assert 32 / (1 - decay["faces"]) == pytest.approx(64 / (1 - 0.9))


def test_mnist_is_padded_not_resized(compare, tmp_path):
    images = np.random.default_rng(0).integers(1, 255, (3, 28, 28), np.uint8)
    labels = np.arange(3)
    arrays = {f"{s}_images": images for s in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", train_labels=labels, **arrays)
    (tmp_path / "runs").mkdir()
    path = compare.padded(tmp_path / "mnist.npz", tmp_path / "runs")
    with np.load(path) as found:
        assert found["test_images"].shape == (3, 32, 32)
        np.testing.assert_array_equal(found["train_images"][:, 2:-2, 2:-2], images)
        assert found["train_images"].sum() == images.sum()
        np.testing.assert_array_equal(found["train_labels"], labels)


def test_other_images_are_other_runs(compare, tmp_path, monkeypatch):
    """Neither the padded copy nor the runs of images that lay at the same place before."""
    for value in (1, 2):
        images = np.full((3, 28, 28), value, np.uint8)
        arrays = {f"{s}_images": images for s in ("train", "test")}
        np.savez(tmp_path / "mnist.npz", **arrays)
        words = ["compare.py", "--data=mnist", "--jobs=0"]
        paths = [f"--{x}={tmp_path / x}" for x in ("runs", "out")]
        images = f"--images={tmp_path / 'mnist.npz'}"
        monkeypatch.setattr(sys, "argv", [*words, *paths, images])
        with pytest.raises(SystemExit, match="No run is done"):
            compare.main()
    padded = (tmp_path / "runs").glob("mnist-*/mnist_padded.npz")
    assert sorted(int(np.load(path)["test_images"].max()) for path in padded) == [1, 2]


def test_what_is_done(compare, tmp_path):
    """A run stopped before its last step is not, though it was evaluated; one by another classifier is refused."""
    config = compare.base_config("mnist", "mnist.npz", steps=100)
    assert not compare.is_done(tmp_path, config, "0123456789abcdef")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    protocol = {"images": "Features: classifier (weights 0123456789ab)."}
    for step in (99, 100):
        content = json.dumps({"step": step, "protocol": protocol})
        (tmp_path / "evaluation.json").write_text(content)
        done = compare.is_done(tmp_path, config, "0123456789abcdef")
        assert done == (step == 100)
    with pytest.raises(SystemExit, match="another classifier; use another --runs"):
        compare.is_done(tmp_path, config, "f" * 16)


def test_what_another_machine_did_is_known_by_its_settings(compare, tmp_path):
    """Not by the place of the images; another weight, seed or number of steps is another run."""
    here, there = (compare.base_config("mnist", x, steps=100) for x in "ab")
    run = compare.Run("beta-VAE", 100.0, 0)
    found = compare.tables.settings(compare.run_config(here, run), "i")
    assert found == compare.tables.settings(compare.run_config(there, run), "i")
    assert found != compare.tables.settings(compare.run_config(here, run), "j")
    longer = compare.base_config("mnist", "a", steps=200)
    others = [
        compare.run_config(here, run._replace(seed=1)),
        compare.run_config(here, run._replace(weight=200.0)),
        compare.run_config(here, run._replace(objective="full, KL 25")),
        compare.run_config(longer, run),
    ]
    assert found not in [compare.tables.settings(other, "i") for other in others]
    assert compare.tables.read_known(tmp_path / "none.json") == {}
    rows = [{"settings": found, "classifier": "c"} | row("a", 1.0, 0, 1.0, 2.0)]
    (tmp_path / "found.json").write_text(json.dumps({"rows": rows}))
    assert compare.tables.read_known(tmp_path / "found.json") == {(found, "c"): rows[0]}
    lacking = '{"rows": [{"settings": "a", "classifier": "c"}]}'
    for damaged in ("{", '{"rows": [{"weight": 1}]}', lacking):
        (tmp_path / "found.json").write_text(damaged)
        with pytest.raises(InputError, match="not what this version writes"):
            compare.tables.read_known(tmp_path / "found.json")


def test_images_are_known_by_what_they_are(compare, tmp_path):
    for name, size in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(bytes(size))
    a, b, c = (compare.tables.digest_images(tmp_path / name) for name in "abc")
    assert a == b != c
    files = [tmp_path / name / "1.png" for name in "abc"]
    a, b, c = map(compare.tables.digest_images, files)
    assert a == b != c


@pytest.mark.slow
def test_two_objectives_of_digits(compare, tmp_path):
    """Trained and evaluated at their smallest; again at once, and with other settings not at all."""
    from rich.console import Console

    from gamix_jax.data import open_images

    folder = tmp_path / "runs/digits"
    config = compare.base_config("digits", "", steps=2)
    splits = (open_images(config.data, split) for split in ("train", "test"))
    train_classifier(*splits, folder / "classifier.npz", Console(quiet=True), steps=20)

    def run(*arguments):
        script = [sys.executable, ROOT / "benchmarks/compare.py", "--data=digits"]
        places = [f"--runs={tmp_path}/runs", f"--out={tmp_path}"]
        objectives = ["--objectives", "beta-VAE", "full, KL 25, memory, PatchGAN"]
        written = [f"--json={tmp_path}/found.json", "--seeds=1"]
        return subprocess.run(
            [*script, *places, *objectives, *written, *arguments],
            capture_output=True,
            text=True,
            timeout=400,
        )

    for wrong in (["--weights", "nan"], ["--weights", "-1"], ["--seeds=0"]):
        refused = run(*wrong)
        named = wrong[0].split("=")[0] in refused.stderr.splitlines()[-1]
        assert (refused.returncode, named) == (2, True)
    result = run("--steps=2", "--weights", "100", "200", "100")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": done") == 4, result.stdout
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(r["objective"], r["weight"]) for r in rows] == [
        (objective, weight)
        for objective in ("beta-VAE", "full, KL 25, memory, PatchGAN")
        for weight in (100, 200)
    ]
    for found in rows:
        # There are 1,617 digits to train on.
        assert set(compare.tables.COLUMNS) - set(found) == {"labels of 5,000"}
        assert found.pop("environment")["device"]
        numbers = (x for x in found.values() if not isinstance(x, str))
        assert all(math.isfinite(x) for x in numbers)
    for name in ("compare_digits.png", "compare_digits_samples.png"):
        assert (tmp_path / name).stat().st_size > 1000
    # What the JSON has is done without its folder, but for its samples.
    for weight in (100.0, 200.0):
        name = compare.Run("full, KL 25, memory, PatchGAN", weight, 0).name
        shutil.rmtree(folder / name)
    again = run("--steps=2")
    assert again.returncode == 0, again.stderr
    assert ": done" not in again.stdout
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 4
    assert "No samples are drawn" in again.stdout
    (tmp_path / "found.json").unlink()
    again = run("--steps=2", "--jobs=0")
    assert (
        "Not done, so not in the tables: full__KL_25__memory__PatchGAN-100.0-0, "
        "full__KL_25__memory__PatchGAN-200.0-0" in again.stderr
    )
    assert ": done" not in again.stdout
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(rows) == 2
    other = run("--steps=3")
    assert other.returncode != 0
    assert "was run with another train.evaluate_every, train.steps;" in other.stderr
