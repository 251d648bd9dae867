"""Seconds from the start of the process to the end of the first training step, with an empty cache of compiled programs and with a full one.

    python benchmarks/startup.py --json=benchmarks/startup.json

Each round empties the cache, starts a run (cold) and then another one in another workdir
(warm). A start ends when the first step is in metrics.jsonl; the process is killed then.
JAX's own events say how long it traced, lowered and compiled, or loaded from the cache.
Where the rest went: imports before the first of them, the first step after the last.
The faces are 500 drawn JPEGs of 178x218, kept in the page cache.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
from input_pipeline import draw_photos

CONFIGS = {
    "digits": ["--config=configs/digits.py"],
    "faces 64x64": [
        "--config=configs/celeba.py:folder,small",
        "--config.data.dir={photos}",
        "--config.train.batch_size=8",
    ],
}
# The command as users type it, but that it tells when what has happened.
CHILD = """
import runpy, sys, time
import jax, gamix_jax.train
def tell(event, seconds=0.0, **_):
    print("@", event.split("/")[-1], time.monotonic(), seconds, flush=True)
tell("imports")
jax.monitoring.register_event_duration_secs_listener(tell)
runpy.run_module("gamix_jax.main", run_name="__main__", alter_sys=True)
"""
STAGES = {
    "jaxpr_trace_duration": "trace",
    "jaxpr_to_mlir_module_duration": "lower",
    "backend_compile_duration": "compile or load",
}


def start(arguments: list[str], scratch: Path) -> dict[str, float]:
    """Seconds of one start: in all, and of each stage."""
    workdir = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-c", CHILD, *arguments, f"--workdir={workdir}"]
    command += [f"--cache_dir={scratch / 'cache'}", "--config.train.log_every=1"]
    environment = dict(os.environ, PYTHONPATH=".")
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    metrics, said = workdir / "metrics.jsonl", workdir / "said"
    begun = time.monotonic()
    with said.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    sys.exit(said.read_text())
                time.sleep(0.005)
            done = time.monotonic()
        finally:
            process.kill()
            process.wait()
    stages = {"imports": 0.0, **dict.fromkeys(STAGES.values(), 0.0)}
    for line in said.read_text().splitlines():
        if not line.startswith("@ "):
            continue
        _, event, when, seconds = line.split()
        if event == "imports":
            stages["imports"] = float(when) - begun
        elif event in STAGES and float(when) <= done:
            stages[STAGES[event]] += float(seconds)
            compiled = float(when)
    stages["first step"] = done - compiled
    stages["the rest"] = done - begun - sum(stages.values())
    return {"in all": done - begun, **stages}


def measure(name: str, scratch: Path, rounds: int) -> list[dict]:
    """The rows of one configuration: medians over the rounds."""
    arguments = [a.format(photos=scratch / "photos") for a in CONFIGS[name]]
    starts = {"cold": [], "warm": []}
    for _ in range(rounds):
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        for cache in starts:
            starts[cache].append(start(arguments, scratch))
    rows = []
    for cache, of_each in starts.items():
        stages = {k: statistics.median(s[k] for s in of_each) for k in of_each[0]}
        rows.append({"configuration": name, "cache": cache, **stages})
    for row in rows:
        row["of cold"] = f"{row['in all'] / rows[0]['in all']:.0%}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--rounds", type=record.positive_int, default=3)
    parser.add_argument("--json", type=record.file_to_write)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "photos").mkdir()
        draw_photos(scratch / "photos", 500)
        rows = [
            row
            for name in arguments.configs
            for row in measure(name, scratch, arguments.rounds)
        ]
    record.show(rows, "Seconds to the end of the first training step")
    record.write(arguments.json, {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
