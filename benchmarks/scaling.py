"""What it costs to spread one training step over devices and processes, and pmap beside jit(shard_map) of that step.

    python benchmarks/scaling.py --json=benchmarks/scaling.json

The global batch stays the same. 8 is one process with 8 devices, 2x4 two processes with 4
each. Without GPUs the devices are shares of one CPU: more of them make nothing faster,
and what is above one device's time is the overhead of the mapping. With GPUs the same
command uses those that are there. Each step is taken by `map_over_devices` (pmap) and by
the shard_map of scaling_worker.py, which must give the same state and metrics before anything is timed.
A call is a step that only adds 1 to as many scalars as the state has arrays: the time of
the host. Last comes the model of communication over real links, for the step times given
(--step_ms celeba=45), else for an assumed rate of arithmetic.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import links
import numpy as np
import record
from scaling_worker import FORMS, ROUNDING

ROUNDS = 5


class Layout:
    """Processes that hold a step ready, such as "8" or "2x4" (processes x devices of each)."""

    def __init__(self, layout: str, name: str, gpus: list[str]):
        processes, devices = [1, *map(int, layout.split("x"))][-2:]
        self.devices, self.processes = processes * devices, []
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        worker = Path(__file__).with_name("scaling_worker.py")
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={devices}"
        for i in range(processes):
            environment = os.environ | {
                "XLA_FLAGS": flags,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # all layouts are held at once
            }
            if gpus:
                mine = gpus[i * devices : (i + 1) * devices]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            process = [f"localhost:{port}", str(processes), str(i)]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, worker, name, *process],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        self.checked = self._hear()

    def call(self, function: str, calls: int) -> None:
        """Takes a step so often; returns when all processes have."""
        for process in self.processes:
            process.stdin.write(json.dumps([function, calls]) + "\n")
            process.stdin.flush()
        self._hear()

    def _hear(self) -> dict[str, Any]:
        answers = []
        for process in self.processes:
            line = process.stdout.readline()
            while line and not line.startswith("{"):  # Gloo speaks too
                line = process.stdout.readline()
            if not line:
                code = process.wait()
                for other in self.processes:  # SIGTERM they would only note
                    other.kill()
                raise RuntimeError(f"A process ended with code {code}.")
            answers.append(json.loads(line))
        return answers[0]

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("null\n")
                process.stdin.close()
        for process in self.processes:
            process.wait()


def measure(
    name: str, layouts: list[str], gpus: list[str], seconds: float
) -> list[dict[str, Any]]:
    """A row for each layout; the first is what the others are compared with."""
    with contextlib.ExitStack() as stack:
        opened = {}
        for layout in layouts:
            opened[layout] = Layout(layout, name, gpus)
            stack.callback(opened[layout].close)
        first = opened[layouts[0]].checked["metrics"]
        for layout, of_layout in opened.items():
            checked = of_layout.checked
            if checked["devices"] != of_layout.devices:
                raise RuntimeError(f"{layout} has {checked['devices']} devices.")
            if not checked["difference"] < ROUNDING:
                raise RuntimeError(f"{name} {layout}: the forms differ: {checked}.")
            np.testing.assert_allclose(
                *([m[k] for k in first] for m in (first, checked["metrics"])),
                rtol=1e-3,
                atol=1e-4,
                err_msg=f"{name}: the metrics of {layouts[0]} and {layout}",
            )
        functions, calls = {}, {}
        for key in itertools.product(opened, ("step", "call"), FORMS):
            layout, *function = key
            take = functools.partial(opened[layout].call, " ".join(function))
            take(2)
            start = time.perf_counter()
            take(2)
            of_one = (time.perf_counter() - start) / 2
            calls[key] = max(1, round(seconds / of_one))
            functions[key] = functools.partial(take, calls[key])
        taken = record.time_in_turn(functions, ROUNDS, seconds=0.0)  # one turn a round
    times = {key: 1e3 * x / calls[key] for key, x in taken.items()}
    one, rows = times[layouts[0], "step", "pmap"], []
    for layout, of_layout in opened.items():
        pmap, shard_map = (times[layout, "step", form] for form in FORMS)
        row = {"config": name, "devices": layout, "pmap, ms a step": np.median(pmap)}
        row[f"to {layouts[0]}"] = np.median(pmap / one)
        row["shard_map, ms a step"] = np.median(shard_map)
        row["shard_map / pmap"] = np.median(shard_map / pmap)
        for form in FORMS:
            row[f"{form}, ms a call"] = np.median(times[layout, "call", form])
        row["relative difference"] = of_layout.checked["difference"]
        rows.append(row)
    return rows


def find_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; seen by another process, so that this one holds none of them."""
    code = "import jax; print(jax.device_count() * (jax.default_backend() == 'gpu'))"
    count = int(subprocess.check_output([sys.executable, "-c", code]))
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="*", default=["digits", "celeba:small"])
    parser.add_argument("--devices", nargs="+", default=["1", "2", "4", "8", "2x4"])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    modelled = ["celeba", "celeba:128", "celeba_hq"]
    parser.add_argument("--model", nargs="*", default=modelled, help="configs of it")
    parser.add_argument("--step_ms", nargs="*", default=[], help="CONFIG=MILLISECONDS")
    parser.add_argument("--json", type=record.file_to_write)
    options = parser.parse_args()
    gpus = find_gpus()
    layouts = options.devices
    if gpus:
        layouts = [x for x in layouts if math.prod(map(int, x.split("x"))) <= len(gpus)]
    if not layouts:
        parser.error(f"--devices: there are {len(gpus)} GPUs")
    rows = [
        row
        for name in options.configs
        for row in measure(name, layouts, gpus, options.seconds)
    ]
    if rows:
        record.show(rows, "The same global batch over more devices")
    step_ms = {k: float(v) for k, v in (x.split("=") for x in options.step_ms)}
    modelled = links.model(options.model, step_ms)
    if modelled:
        record.show(modelled, "Model: share of a step spent computing")
    record.write(options.json, {"rows": rows, "model": modelled})


if __name__ == "__main__":
    main()
