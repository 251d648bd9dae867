"""Soak: kills a training at random moments, starts it again, and compares its end with that of one never killed.

    python benchmarks/soak.py --kills=50

The same command trains the digits with a small network twice, in two folders: once in
one go; once killed (SIGKILL) at random moments of its start, its steps, its evaluations
and its checkpoint writes, of which there are many, and started again each time. Both
must end in the same bits of the whole training state and the same metrics.jsonl, each
step once, but for the measured speed. Prints the figures and writes soak.json beside
this script. About ten seconds a kill on 2 CPU cores.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import record

from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import default_config
from gamix_jax.state import create_state

SETTINGS = {
    "train.batch_size": 16,
    "train.log_every": 5,
    "train.evaluate_every": 50,
    "train.checkpoint_every": 10,
    "train.ema_decay": 0.99,
    "model.widths": (8,),
    "model.norm": "group",
    "model.components": 2,
    "objective.covariance": "full",
    "objective.moment_decay": 0.9,
    "objective.reconstruction_weight": 100.0,
    "discriminator.widths": (8,),
    "discriminator.strides": (2,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2_000, help="of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--json", type=record.file_to_write, default=Path(__file__).with_suffix(".json")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), options.kills, options.steps, options.seed)
    for name, value in result.items():
        print(f"{name}: {value}")
    record.write(options.json, result)
    sys.exit(0 if result["same state"] and result["same metrics"] else 1)


def soak(folder: Path, kills: int, steps: int, seed: int) -> dict:
    """Figures of one run in one go and one killed `kills` times, both in `folder`."""
    whole, killed = folder / "whole", folder / "killed"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(folder / "cache")
        )
    }
    command = [
        *(sys.executable, "-m", "gamix_jax.main", "--mode=train"),
        f"--config={Path(__file__).parents[1] / 'configs/digits.py'}",
        *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
        f"--config.train.steps={steps}",
    ]

    def start(workdir: Path, *extra: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *extra],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(workdir: Path, *extra: str) -> float:
        begun, process = time.perf_counter(), start(workdir, *extra)
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"The training failed: {error.strip()}")
        return time.perf_counter() - begun

    finish(folder / "compile", "--config.train.steps=1")
    starting = finish(folder / "start", "--config.train.steps=1")
    alone = finish(whole)
    moments, lived, writing, died = random.Random(seed), 0.0, 0, 0
    while died < kills:
        # A quarter while it starts; else so soon after that half of the steps are left
        # for the last life.
        life = moments.uniform(0.5, starting)
        if moments.random() > 0.25:
            life = starting + moments.uniform(0, 1.3 * (alone - starting) / kills)
        before = set(killed.glob("checkpoints/*tmp*"))
        process, begun = start(killed), time.perf_counter()
        # Where the machine has become faster, no life may go beyond its share of the steps.
        share = steps * (died + 1) / (kills + 1)
        while time.perf_counter() - begun < life and logged(killed) < share:
            if process.poll() is not None:
                _, error = process.communicate()
                raise RuntimeError(f"It ended by itself: {error.strip()}")
            time.sleep(0.02)
        process.kill()
        process.communicate()
        died += 1
        writing += bool(set(killed.glob("checkpoints/*tmp*")) - before)
        lived += time.perf_counter() - begun
    lived += finish(killed)
    return {
        "kills": died,
        "kills that left a checkpoint half written": writing,
        "same state": same_state(whole, killed),
        "same metrics": metrics(whole) == metrics(killed),
        "steps": steps,
        "seconds in one go": round(alone, 1),
        "seconds lost per kill": round((lived - alone) / max(kills, 1), 1),
    }


def logged(workdir: Path) -> int:
    """The last step in metrics.jsonl, of whole lines."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def same_state(*workdirs: Path) -> bool:
    """Whether the last checkpoints agree bit by bit, position of the data included."""
    config = default_config().unlock()
    config.update(json.loads((workdirs[0] / "config.json").read_text()))
    config.model.widths = tuple(config.model.widths)
    like = create_state(config)
    opened = [Checkpoints(workdir) for workdir in workdirs]
    bits = [
        np.asarray(leaf).tobytes()
        for checkpoints in opened
        for leaf in jax.tree.leaves(checkpoints.restore(like))
    ]
    half = len(bits) // 2
    first, second = (checkpoints.read_position() for checkpoints in opened)
    return bits[:half] == bits[half:] and first == second


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the measured speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "images_per_second"}
        for line in lines
    ]


if __name__ == "__main__":
    main()
