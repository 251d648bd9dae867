"""Where the numbers of a run go: metrics.jsonl, TensorBoard event files and the terminal."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gamix_jax.files import written_whole

TERMS = ("reconstruction", "kl", "collapse_penalty", "adversarial")


class MetricLog:
    """Appends to WORKDIR/metrics.jsonl and to event files beside it; lines past `step`, of a run cut off, are dropped."""

    def __init__(self, workdir: Path, step: int):
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in _lines(path) if _step_of(line) <= step]
            with written_whole(path) as file:
                file.writelines(line + "\n" for line in lines)
        self._file = path.open("a")
        # Not tensorboardX's SummaryWriter: once the disk is full, its thread dies and
        # its queue blocks the run for good.
        suffix = f".{os.getpid()}.{step}"  # a file begun in the same second is another
        self._events = EventsWriter(str(workdir / "events"), suffix)
        start = SessionLog(status=SessionLog.START)  # hides the points after `step`
        self._events.write_event(
            Event(wall_time=time.time(), step=step + 1, session_log=start)
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, and one point of each curve."""
        line = json.dumps({"step": step, **values}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # no checkpoint outlives the lines before it
        self._events.write_event(_event(step, values))
        self._events.flush()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._events.close()


def write_scalars(workdir: Path, step: int, values: dict[str, float]) -> None:
    """Points of TensorBoard curves, in WORKDIR/evaluation, apart from those of a training that may go on."""
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    events.write_event(_event(step, values))
    events.close()


def _event(step: int, values: dict[str, float]) -> Event:
    points = [
        Summary.Value(tag=name, simple_value=value) for name, value in values.items()
    ]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=points))


def read_metrics(workdir: Path, step: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to a step, of training and of evaluations, in order; what is damaged or not finite is left out."""
    path = workdir / "metrics.jsonl"
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for line in _lines(path)
        if _step_of(line) <= step
    ]


def holds_evaluation(workdir: Path, step: int) -> bool:
    """Whether metrics.jsonl has the evaluation of a step."""
    path = workdir / "metrics.jsonl"
    return any('"test/' in line for line in _lines(path) if _step_of(line) == step)


def _lines(path: Path) -> list[str]:
    """Damaged bytes are replaced: a power cut may leave any."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, written as the run was cut off


class ProgressBar(Progress):
    """Step, time left and, a line below, images a second and the main terms.

    Where the output is no terminal, each log step prints a plain line instead.
    """

    def __init__(self, step: int, steps: int, console: Console):
        self._terms = ""
        super().__init__(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.add_task("", total=steps, completed=step)

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar and the line of terms."""
        yield from super().get_renderables()
        yield Text(self._terms)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows the numbers of a log step."""
        self._terms = f"{values['images_per_second']:.0f} img/s  " + "  ".join(
            f"{name} {values[name]:.3g}" for name in TERMS if name in values
        )
        if self.disable:
            line = f"step {step}  {self._terms}"
            self.console.print(line, soft_wrap=True, highlight=False)

    def step(self, step: int) -> None:
        """Moves the bar."""
        self.update(self._task, completed=step)
