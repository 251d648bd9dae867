"""The loop over the steps of a run, and what is due at some of them."""

import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from rich.console import Console

from gamix_jax import data, figures
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.cpu import compiler_options
from gamix_jax.divergence import reason
from gamix_jax.errors import InputError
from gamix_jax.interrupts import Stopped, StopSignals
from gamix_jax.logs import MetricLog, ProgressBar
from gamix_jax.objective import Metrics
from gamix_jax.parallel import map_over_devices
from gamix_jax.profiling import StepTrace
from gamix_jax.state import TrainState
from gamix_jax.steps import make_steps, scale_images
from gamix_jax.validate import validate

SAMPLES, RECONSTRUCTIONS = 64, 32  # in a picture


class Run(NamedTuple):
    """What a run is made of, but for its state.

    Attributes:
      config: the experiment.
      workdir: folder of the run.
      images: "train" and "test".
      batches: of the training images, at their position.
      begun_with: what the run is compared with when it goes on, JSON-able.
      checkpoints: of the run.
      log: of its numbers; None where another process keeps it.
      console: quiet on all processes but one.
      profile: steps that are traced, to WORKDIR/profile; none if empty.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    images: dict[str, data.Images]
    batches: data.TrainBatches
    begun_with: dict[str, Any]
    checkpoints: Checkpoints
    log: MetricLog | None
    console: Console
    profile: range


def run_steps(run: Run, state: TrainState, pending: bool) -> TrainState:
    """Trains from `state` to the last step, or until a signal asks to stop.

    Nothing is read from the devices but where it is due.

    Args:
      run: all but the state.
      state: replicated over this process's devices.
      pending: an evaluation of this state is owed, and comes first.

    Returns:
      The last state.

    Raises:
      InputError: more steps than allowed diverged, images could not be read, or
        a checkpoint found no room.
    """
    options, start, console = run.config.train, int(state.step), run.console
    steps = make_steps(run.config)
    train_step = map_over_devices(steps.train_step, donate_state=True)
    eval_step = map_over_devices(steps.eval_step)
    jit = partial(jax.jit, compiler_options=compiler_options())
    draw = _painter(run, jit(steps.sample), jit(steps.reconstruct))
    skipped, recent = int(state.skipped), []
    reported = dict.fromkeys(run.images, 0)

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == options.steps

    def measured(state: TrainState, step: int) -> bool:
        """Evaluates, unless a signal asks to stop."""
        batches = _test_batches(run)
        try:
            values = validate(eval_step, state, signals.unless_stopped(batches))
        except Stopped:
            return False
        if run.log:
            draw(state, step)
            _log_evaluation(run, step, values)  # last, the sign that it is done
        return True

    console.print(
        f"Training {run.workdir} from step {start} to {options.steps} on {jax.device_count()} {jax.devices()[0].device_kind}"
    )
    with (
        StopSignals() as signals,
        ProgressBar(start, options.steps, console) as bar,
        StepTrace(run.profile, run.workdir / "profile", console) as trace,
        jax.transfer_guard_device_to_host("disallow"),
    ):
        step = start
        stopping = pending = pending and not measured(state, start)
        mark, marked = time.perf_counter(), start
        while step < options.steps and not stopping:
            with trace.step(step, state):
                state, metrics = train_step(state, next(run.batches))
            step += 1
            trace.end(step, state)
            recent.append((step, metrics))
            bar.step(step)
            stopping = signals.stop_here()
            logs = due(step, options.log_every) or due(step, options.checkpoint_every)
            pending = due(step, options.evaluate_every)
            if logs or pending or stopping:  # all that may be saved is checked
                values = _read(metrics)
                if values["skipped_steps"] > skipped:
                    _report_skipped(recent, skipped, run)
                skipped = values["skipped_steps"]
                recent.clear()
                _report_unreadable(run, reported)
            if logs:
                seconds = time.perf_counter() - mark
                values["images_per_second"] = (
                    (step - marked) * options.batch_size / seconds
                )
                values = _finite(values)
                if run.log:
                    run.log.write(step, values)
                bar.show(step, values)
                mark, marked = time.perf_counter(), step
            if pending:
                paused = time.perf_counter()
                pending = not measured(state, step)
                mark += time.perf_counter() - paused
            stopping = stopping or pending
            if due(step, options.checkpoint_every) or stopping:
                _save(run, step, state, pending)
        run.checkpoints.wait()  # while signals are only noted
    _report_unreadable(run, reported)
    if skipped:
        console.print(
            f"{skipped:.0f} of {step} steps were left out, for they were not finite or diverged."
        )
    if signals.received:
        console.print(
            f"Stopped by {signals.received} after step {step}, which is saved; the same "
            "command goes on."
        )
    return state


def _test_batches(run: Run) -> Iterator[dict[str, np.ndarray]]:
    return data.evaluation_batches(
        run.images["test"],
        run.config.train.batch_size,
        jax.process_index(),
        jax.process_count(),
        run.config.data.prefetch,
    )


def _save(run: Run, step: int, state: TrainState, pending: bool) -> None:
    position = {
        "batches": run.batches.get_state(),
        "begun_with": run.begun_with,
        "evaluation_pending": pending,
    }
    run.checkpoints.save(step, state, position)


def _log_evaluation(run: Run, step: int, values: dict[str, float]) -> None:
    """What is finite; names what is not."""
    finite = _finite(values)
    run.log.write(step, {f"test/{name}": x for name, x in finite.items()})
    bad = ", ".join(sorted(set(values) - set(finite)))
    if bad:
        run.console.print(
            f"Not finite of the held-out images at step {step}, so left out of the log: {bad}.",
            soft_wrap=True,
        )


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in values.items() if math.isfinite(x)}


def _read(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _report_skipped(recent: list[tuple[int, Metrics]], skipped: int, run: Run) -> None:
    """Names each step that was left out and why; raises where it is one too many."""
    allowed = run.config.train.skip_nonfinite
    for step, metrics in recent:
        what = reason(step, _read(metrics))
        if not what:
            continue
        skipped += 1
        if skipped > allowed:
            saved = run.checkpoints.latest_step()
            kept = f"checkpoint {saved} is kept" if saved else "nothing was saved yet"
            raise InputError(
                f"{what} ({kept}); lower the learning rate, or a weight that was raised or "
                "whose term had grown, or have more such steps left out by "
                f"--config.train.skip_nonfinite, which is {allowed}."
            )
        run.console.print(
            f"{what}; the step was left out, {skipped:.0f} of at most {allowed}.",
            soft_wrap=True,
        )


def _report_unreadable(run: Run, reported: dict[str, int]) -> None:
    """Names the images that cannot be decoded and were not named yet; `reported` counts those that were, by split."""
    for split, images in run.images.items():
        new = list(images.unreadable.values())[reported[split] :]
        for sentence in new:
            reported[split] += 1
            line = f"{sentence} Left out, {reported[split]} of the {len(images):,} images ({split})."
            if run.console.quiet:  # no other process knows
                print(f"process {jax.process_index()}: {line}", file=sys.stderr)
            else:
                run.console.print(line, soft_wrap=True, highlight=False)


def _painter(run: Run, sample, reconstruct):
    """A function of (state, step) that writes both pictures, always of the same random keys and images."""
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    test_images, directory = run.images["test"], run.workdir / "figures"
    originals = np.stack(
        [test_images[i % len(test_images)] for i in range(RECONSTRUCTIONS)]
    )

    def draw(state: TrainState, step: int) -> None:
        samples = jax.device_get(sample(state, keys))
        reconstructions = jax.device_get(reconstruct(state, originals))
        inputs = jax.device_get(scale_images(originals))
        for name, picture in (
            ("samples", figures.image_grid(samples, columns=8)),
            ("reconstructions", figures.reconstruction_grid(inputs, reconstructions)),
        ):
            figures.save_picture(picture, directory / f"{name}_{step:08d}.png")

    return draw
