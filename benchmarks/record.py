"""What the benchmarks share: timing in turn, and a record of where and when."""

import argparse
import json
import os
import platform
import re
import runpy
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always"]
    try:
        said = subprocess.run([*command, "--dirty"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


COMMIT = _commit()  # at the start: the tree may change while a script runs


def environment() -> dict[str, Any]:
    """Device, versions, commit and date."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "flax", "torch", "grain", "numpy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    devices = jax.devices()
    device = f"{len(devices)} {devices[0].device_kind}, {os.cpu_count()} cores"
    processors = Path("/proc/cpuinfo")  # of Linux
    if processors.exists():
        names = re.findall(r"model name\s*: (.*)", processors.read_text())
        device += f" of {names[0]}" if names else ""
    return {
        "device": device,
        "versions": versions,
        "commit": COMMIT,
        "date": date.today().isoformat(),
    }


def load_config(name: str) -> ml_collections.ConfigDict:
    """The configuration of a file in configs/, such as "digits" or, with its variant, "celeba:small"; or of another, by its absolute path without ".py"."""
    stem, *variant = name.split(":")
    path = Path(__file__).parents[1] / "configs" / f"{stem}.py"
    try:
        return runpy.run_path(str(path))["get_config"](*variant)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"error: no configuration {name!r}: {error}") from error


def positive_int(text: str) -> int:
    """A type of argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return int(text)


def file_to_write(text: str) -> Path:
    """The path of a JSON or a picture, as a type of argparse: refused before anything is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} is no file that can be written")
    return path


def time_in_turn(
    functions: dict[str, Callable[[], Any]], rounds: int = 5, seconds: float = 2.0
) -> dict[str, np.ndarray]:
    """Seconds of a call of each function, [rounds], taken in turn (A B A B ...), so that a machine that changes its speed changes it for all.

    Args:
      functions: each returns when its work is done; already warm.
      rounds: how often each has its turn.
      seconds: of one turn, about; at least one call.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < seconds:
                function()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls)
    return {name: np.array(of_each) for name, of_each in times.items()}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Prints rows of the same keys as a table in Markdown."""
    table = Table(*rows[0], title=title, title_justify="left", box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=240).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def write(path: Path | None, content: dict[str, Any]) -> None:
    """Writes JSON with the environment, if a path is given: the whole of it or nothing."""
    if path:
        text = json.dumps(content | {"environment": environment()}, indent=1)
        new = path.with_name(f"{path.name}.new")
        new.write_text(text + "\n")
        new.replace(path)
