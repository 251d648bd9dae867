"""The benchmarks run at their smallest and write what they promise; no time is judged."""

import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from test_data import photo
from test_main import ROOT
from test_steps import tiny_config

from gamix_jax.config import flatten
from gamix_jax.state import create_state


def rows(script, tmp_path, *arguments):
    """What a script writes; every number in it is finite."""
    path = tmp_path / "result.json"
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments, f"--json={path}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    assert set(content["environment"]) == {"device", "versions", "commit", "date"}
    for row in content["rows"]:
        assert all(math.isfinite(x) for x in row.values() if not isinstance(x, str))
        assert all(name in result.stdout for name in row)  # the table
    return content["rows"]


@pytest.fixture
def tiny(tmp_path):
    """A file of a configuration, as the scripts take it."""
    values = flatten(tiny_config())
    (tmp_path / "tiny.py").write_text(
        "from gamix_jax.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({values!r})\n"
        "    return config\n"
    )
    return str(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--configs", "nosuch"], "no configuration 'nosuch'"),
        (["--configs", "celeba:tiny"], "has the variants"),
        (["--configs", "digits:small"], "no configuration 'digits:small'"),
        (["--rounds", "0"], "0 is not positive"),
        (["--json", str(ROOT)], "is no file that can be written"),
        (["--json", "/nosuch/x.json"], "is no file that can be written"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments, said, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import train_step

    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
    monkeypatch.setattr(train_step.jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(train_step, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as ended:
        train_step.main()
    assert said in f"{ended.value}{capsys.readouterr().err}"


def test_the_script_for_a_gpu_wants_one(tmp_path):
    result = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", tmp_path],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "error: JAX sees no GPU here" in result.stdout


def test_the_script_for_a_gpu_ends_in_time(tmp_path):
    """With a Python that sees a GPU and does nothing else; bash goes on counting from SECONDS."""
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\n")
    python.chmod(0o755)

    def said(begun):
        result = subprocess.run(
            ["bash", ROOT / "benchmarks/gpu.sh", tmp_path / "out"],
            env=os.environ
            | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SECONDS": str(begun)},
            capture_output=True,
            text=True,
        )
        parts = [x for x in result.stdout.splitlines() if x.startswith("== ")]
        return result.returncode, parts

    status, parts = said(0)
    assert (status, len(parts)) == (0, 7)
    for part in parts:  # each is a script that is there
        assert (ROOT / part.split()[3]).exists()
    status, late = said(465)
    assert status == 1
    assert late == [
        f"{part.split(': ')[0]}: left out, for the time is up" for part in parts
    ]
    limits = tmp_path / "limits"
    (tmp_path / "timeout").write_text(f'#!/bin/bash\necho "$3" >> {limits}\n')
    (tmp_path / "timeout").chmod(0o755)
    said(400)  # of 470
    seconds = [int(limit) for limit in limits.read_text().split()]
    # Two looks for a GPU and seven parts; as written most of these have more.
    assert len(seconds) == 2 + 7
    assert 60 < max(seconds) <= 70


@pytest.mark.slow
def test_scaling(tmp_path, tiny):
    """Two processes; the script itself compares pmap's state and metrics with shard_map's."""
    found = rows(
        *("scaling.py", tmp_path, "--configs", tiny, "--model", tiny),
        *("--devices=2x1", "--seconds=0.01"),
    )
    (row,) = found
    assert (row["devices"], row["to 2x1"]) == ("2x1", 1.0)
    assert row["shard_map / pmap"] > 0


def test_scaling_tells_another_step_from_rounding(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from scaling_worker import ROUNDING, difference

    state, metrics = create_state(tiny_config()), {"loss": jnp.float32(3.0)}
    assert difference((state, metrics), (state, metrics)) == 0.0
    moved = state.replace(skipped=state.skipped + 1)
    assert difference((state, metrics), (moved, metrics)) > ROUNDING
    nearby = {"loss": jnp.float32(3.0 * (1 + 2**-22))}  # two units in the last place
    found = difference((state, metrics), (state, nearby))
    assert 2**-24 < found < ROUNDING


@pytest.mark.slow
def test_inference(tmp_path, tiny):
    found = rows(
        *("inference.py", tmp_path, "--configs", tiny, "--seconds=0.01"),
        *("--batches", "1", "3"),
    )
    assert [(row["batch"], row["operation"]) for row in found] == [
        (batch, name) for batch in (1, 3) for name in ("encode", "decode", "sample")
    ]
    for row in found:  # both are of the same turns
        assert row["images/s"] * row["ms a call"] == pytest.approx(1e3 * row["batch"])
        assert row["API / bare"] > 0


@pytest.mark.slow
def test_input_pipeline(tmp_path, tiny):
    for i in range(16):
        photo(tmp_path / f"photos/{i}.jpg", seed=i)
    found = rows(
        *("input_pipeline.py", tmp_path, f"--photos={tmp_path / 'photos'}"),
        *("--sizes=16", "--workers", "0", "1"),
        *("--eats", tiny, "--seconds=0.1"),
    )
    sources = ["plain loop of Pillow", *["folder"] * 2, *["prepared"] * 2]
    sources += [*["array (.npy)"] * 2, "in memory"]
    assert [row["source"] for row in found] == ["digits", *sources]
    digits, plain, *rest = found
    assert digits["read / eaten"] == digits["images/s"] / digits["step, images/s"]
    assert plain["to Pillow"] == 1.0
    # A process that reads holds at least its own interpreter and NumPy.
    assert all(row["memory, MiB"] > 20 for row in rest if row["workers"] == 1)


@pytest.mark.slow
def test_train_step(tmp_path, tiny, monkeypatch):
    # One device.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    found = rows(
        *("train_step.py", tmp_path, "--configs", tiny, "--batches", "8"),
        *("--remat", "no", "yes", "--rounds=1", "--loop=3"),
    )
    assert [(row["batch"], row["remat"]) for row in found] == [(8, False), (8, True)]
    assert found[0]["to the first"] == 1.0
    assert found[0]["memory, MiB"] > found[1]["memory, MiB"]  # remat saves some
    for row in found:
        floor = max(row["products, ms"], row["copies, ms"])
        assert row["floor / step"] == pytest.approx(floor / row["ms a step"])
        assert row["images/s"] * row["ms a step"] == pytest.approx(1e3 * row["batch"])
        assert 0.0 <= row["outside steps"] < 1.0


def test_share_outside_steps(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import train_step

    # By hand: from 9 to 14 two calls of 1.
    found = train_step.share_outside([(0.0, 9.0), (10.0, 11.0), (13.0, 14.0)])
    assert found == pytest.approx(1.0 - 2.0 / 5.0)


def test_differences_of_precision(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import precision

    float32 = np.array([[1.0, 3.0], [2.0, 4.0]])  # two seeds, two steps
    last = {
        "float32": float32,
        "bfloat16": float32 + np.array([[0.1], [0.3]]),
        precision.CONTROL: float32 + np.array([[0.2], [0.0]]),
    }
    found = {
        row["difference"]: (row["mean"], row["standard error"], row["mean size"])
        for row in precision.rows_of_trained("kl", last)
    }
    # By hand, in parts of 2.5, float32's mean size: 0 and 0.3; 0.1 and 0.3; 0.2 and 0.
    assert found == {
        "bfloat16 - mean of both float32": ("+6.00%", "6.00%", "6.0%"),
        "bfloat16 - float32": ("+8.00%", "4.00%", "8.0%"),
        "float32 again - float32": ("+4.00%", "4.00%", "4.0%"),
    }


def test_gradients_apart(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import precision

    float32 = {
        "a/kernel": np.array([3.0, 4.0]),
        "b/kernel": np.array([12.0]),
        "a/bias": np.array([2.0]),
        "n/scale": np.array([1.0]),
        "still/scale": np.array([0.0]),
    }
    bfloat16 = float32 | {"b/kernel": np.array([10.7]), "a/bias": np.array([-1.0])}
    found = {
        row["arrays"]: (row["along"], row["apart"], row["farthest"], row["which"])
        for row in precision.rows_of_gradients("generator", float32, bfloat16)
    }
    # By hand: (25 + 12 * 10.7) / 13^2, 1.3 of 13, 1.3 of 12; -2 / 4, 3 of 2; the same.
    assert found == {
        "kernel of 2": ("90.8%", "10.0%", "10.8%", "b/kernel"),
        "bias of 1": ("-50.0%", "150.0%", "150.0%", "a/bias"),
        "scale of 1": ("100.0%", "0.0%", "0.0%", "n/scale"),
    }
