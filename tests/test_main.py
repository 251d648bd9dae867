"""The command line, as a user types it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from raw_files import write_mnist
from test_config import get_config

from gamix_jax.data import open_images, train_batches

ROOT = Path(__file__).parents[1]


def gamix(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gamix_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_digits_trains_and_leaves_pictures(tmp_path):
    """README's first command, for two steps of a small network."""
    result = gamix(
        "--config=configs/digits.py",
        f"--workdir={tmp_path}",
        "--config.train.steps=2",
        "--config.train.batch_size=16",
        "--config.model.widths=(8,)",
        "--config.discriminator.widths=(8,)",
        "--config.discriminator.strides=(2,)",
    )
    assert result.returncode == 0, result.stderr
    assert "step 2 " in result.stdout
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "reconstructions_00000002.png",
        "samples_00000002.png",
    ]
    assert (tmp_path / "checkpoints/2").is_dir()


def test_a_gpu_that_jax_cannot_use_is_told():
    """By JAX, a warning of whose module "jax._src.xla_bridge" must not be switched off."""
    script = """
import atexit, logging
from absl import app
from gamix_jax.main import main
logger = logging.getLogger("jax._src.xla_bridge")
atexit.register(lambda: logger.warning("Falling back to cpu."))
app.run(main, argv=["main", "unknown"])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert "unknown argument" in result.stderr
    assert "Falling back to cpu." in result.stderr


@pytest.mark.parametrize("distributed", [False, True])
def test_what_is_compiled_is_kept_unless_only_one_process_would_write(
    distributed, tmp_path, monkeypatch
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    result = gamix(
        "--config=configs/digits.py",
        f"--distributed={distributed}",
        f"--cache_dir={tmp_path}",
    )
    assert "--workdir is missing" in result.stderr
    assert (tmp_path / "compiled").exists() != distributed


def test_a_published_set_is_prepared_for_its_configuration(tmp_path):
    """Drawn images in MNIST's files, and the data of configs/mnist.py."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    split = (images, np.arange(40) % 10)
    write_mnist(tmp_path / "raw", {"train": split, "test": split})
    result = gamix(
        "--mode=prepare",
        "--dataset=mnist",
        f"--images={tmp_path / 'raw'}",
        f"--out={tmp_path / 'tfds'}",
    )
    assert result.returncode == 0, result.stderr
    assert "40 train, 40 test" in result.stdout
    config = get_config(ROOT / "configs/mnist.py")
    config.data.dir = str(tmp_path / "tfds")
    batches = train_batches(open_images(config.data, "train"), 16, 0, False)
    assert next(batches).shape == (16, 32, 32, 1)
    assert len(open_images(config.data, "test")) == 40


@pytest.mark.slow
def test_describe_counts_the_author_s_parameters():
    """DESIGN.md section 2: 9,908,140 + 24,326 and 411,075 + 1,026; one step is about 547 GFLOP an image."""
    result = gamix("--config=configs/celeba_hq.py:author", "--mode=describe")
    assert result.returncode == 0, result.stderr
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:4]]
        for line in result.stdout.splitlines()
        if "│" in line
    }
    assert rows["autoencoder"] == ["9,908,140", "24,326"]
    assert rows["discriminator"] == ["411,075", "1,026"]
    assert "variance: between" in result.stdout
    gflop = float(
        next(line for line in result.stdout.splitlines() if "GFLOP" in line).split()[0]
    )
    assert gflop == pytest.approx(547, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [
                "--config=configs/digits.py",
                "--workdir=unmade",
                "--config.train.stepz=3",
            ],
            "stepz",
        ),
        (
            [
                "--config=configs/digits.py",
                "--workdir=unmade",
                "--config.train.steps=many",
            ],
            "invalid literal for int() with base 10: 'many'",
        ),
        (
            [
                "--config=configs/digits.py",
                "--workdir=unmade",
                "--config.model.norm=layer",
            ],
            "config.model.norm is 'layer'",
        ),
        (["--config=configs/nothing.py", "--workdir=unmade"], "configs/nothing.py"),
        (
            ["--config=configs/celeba.py:bad", "--workdir=unmade"],
            "has the variants ('folder', '128', 'small'), not 'bad'",
        ),
        (
            ["--config=configs/digits.py:bad", "--workdir=unmade"],
            "this --config has no variants",
        ),
        (["--config=configs/digits.py"], "--workdir is missing"),
        (["--workdir=unmade"], "--config=FILE is required"),
        (
            ["--config=configs/digits.py", "--workdir=unmade", "--mode=dance"],
            "train|describe|prepare",
        ),
        (
            ["--config=configs/digits.py", "--workdir=unmade", "extra"],
            "unknown argument 'extra'",
        ),
        (
            [
                *("--mode=train_features", "--config=configs/digits.py"),
                *("--features_file=unmade.npz", "--config.data.channels=2"),
            ],
            "config.data.channels is 2",
        ),
        (["--mode=prepare", "--images=x", "--size=8"], "--images=DIR and --out=DIR"),
        (["--mode=prepare", "--images=x", "--out=unmade"], "either --size=N"),
        (
            ["--mode=prepare", "--images=x", "--out=unmade", "--size=8"],
            "x does not exist",
        ),
        (
            ["--mode=prepare", "--images=x", "--out=unmade", "--size=0"],
            "0 is not a positive integer",
        ),
        (
            [
                "--mode=prepare",
                "--images=x",
                "--out=unmade",
                "--dataset=mnist",
                "--crop=none",
            ],
            "--crop is for photos",
        ),
        (
            [
                "--mode=prepare",
                "--images=x",
                "--out=unmade",
                "--size=8",
                "--workdir=unmade",
            ],
            "--workdir is for --mode=train or sample or",
        ),
        (
            ["--config=configs/digits.py", "--workdir=unmade", "--size=8"],
            "--size is for --mode=prepare, not train",
        ),
        (
            ["--config=configs/digits.py", "--workdir=gs://bucket/run"],
            "--workdir=gs://bucket/run is no folder of this machine",
        ),
        (
            ["--config=configs/digits.py", "--workdir=unmade", "--num_processes=2"],
            "--num_processes is for --distributed",
        ),
        (
            ["--config=configs/digits.py", "--mode=describe", "--distributed"],
            "--distributed is for --mode=train, not describe",
        ),
        (
            ["--config=configs/digits.py", "--workdir=unmade", "--distributed"],
            "--distributed could not start (coordinator_address should be defined.)",
        ),
        (
            [
                *("--config=configs/digits.py", "--workdir=unmade", "--distributed"),
                *("--coordinator_address=localhost", "--num_processes=2"),
            ],
            "--coordinator_address=localhost must be HOST:PORT",
        ),
    ],
)
def test_bad_commands_end_with_one_sentence(arguments, sentence):
    result = gamix(*arguments)
    assert result.returncode == 1
    assert sentence in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (ROOT / "unmade").exists()
