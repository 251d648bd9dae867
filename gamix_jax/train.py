"""Training: assembly and loop."""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from gamix_jax import data, figures
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import check_config
from gamix_jax.errors import InputError
from gamix_jax.evaluate import evaluate
from gamix_jax.interrupts import Stopped, StopSignals
from gamix_jax.logs import MetricLog, ProgressBar
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.state import TrainState, create_state
from gamix_jax.steps import make_steps, scale_images

SAMPLES, RECONSTRUCTIONS = 64, 32  # in a picture


def train(config: ml_collections.ConfigDict, workdir: Path) -> TrainState:
    """Trains to `config.train.steps`, going on from the newest checkpoint in `workdir` if there is one.

    Leaves in `workdir`: config.json, metrics.jsonl, TensorBoard event files,
    figures/*.png and checkpoints/.

    Args:
      config: the experiment, as made from `config.default_config`.
      workdir: folder of the run, made if missing.

    Returns:
      The last state.

    Raises:
      InputError: bad configuration, data or checkpoint, or a loss that is not finite.
    """
    check_config(config, jax.device_count())
    images = {
        split: data.open_images(config.data, split) for split in ("train", "test")
    }
    batches = data.train_batches(
        images["train"],
        config.train.batch_size,
        config.seed,
        config.data.flip,
        jax.process_index(),
        jax.process_count(),
        config.data.workers,
        config.data.prefetch,
        put_on_devices,
    )
    for split in images.values():
        split[0]  # what cannot be read at all is found before anything is compiled
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} cannot be written to ({error.strerror}); name "
            "another folder."
        ) from error
    checkpoints = Checkpoints(workdir, config.train.checkpoints_kept)
    origin = _origin(config, len(images["train"]))
    console = Console()
    for warning in checkpoints.warnings:
        console.print(warning, soft_wrap=True)
    for split, of_split in images.items():
        console.print(f"{split}: {of_split.describe(config.data)}", soft_wrap=True)
    workers = data.choose_workers(images["train"], config.data.workers)
    if workers:
        console.print(f"train: read by {workers} processes")
    pending = False
    try:
        state = create_state(config)
        if checkpoints.latest_step() is not None:
            state, saved = checkpoints.restore(state)
            _check_origin(saved["origin"], origin)
            batches.set_state(saved["position"])
            pending = saved["evaluation_pending"]
        if int(state.step) >= config.train.steps and not pending:
            console.print(
                f"{workdir} holds {int(state.step)} steps already; raise "
                "--config.train.steps to go on."
            )
            return state
        (workdir / "config.json").write_text(
            json.dumps(config.to_dict(), indent=2) + "\n"
        )
        with MetricLog(workdir, int(state.step)) as log:
            return _run(
                config,
                workdir,
                replicate(state),
                batches,
                origin,
                images["test"],
                pending,
                checkpoints,
                log,
                console,
            )
    finally:
        batches.close()
        checkpoints.close()


def _origin(config: ml_collections.ConfigDict, count: int) -> dict[str, Any]:
    """What the order of the training images depends on, JSON-able."""
    elsewhere = ("dir", "memory_gib", "workers", "prefetch")
    origin = {f"data.{k}": v for k, v in config.data.items() if k not in elsewhere}
    return origin | {
        "seed": config.seed,
        "train.batch_size": config.train.batch_size,
        "number of training images": count,
    }


def _check_origin(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [
        f"{key} was {saved.get(key)!r}, not {value!r}"
        for key, value in wanted.items()
        if saved.get(key) != value
    ]
    if differing:
        raise InputError(
            f"The run was begun with other data: {'; '.join(differing)}. Give what it "
            "was begun with, or another --workdir."
        )


def _run(
    config: ml_collections.ConfigDict,
    workdir: Path,
    state: TrainState,
    batches: data.TrainBatches,
    origin: dict[str, Any],
    test_images: data.Images,
    pending: bool,
    checkpoints: Checkpoints,
    log: MetricLog,
    console: Console,
) -> TrainState:
    """The loop, after an evaluation that is still `pending`. Nothing is read from the device in it but where it is due."""
    options, start = config.train, int(state.step)
    steps = make_steps(config)
    train_step = map_over_devices(steps.train_step, donate_state=True)
    eval_step = map_over_devices(steps.eval_step)
    draw = _painter(
        jax.jit(steps.sample),
        jax.jit(steps.reconstruct),
        test_images,
        workdir / "figures",
    )

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == options.steps

    def measured(state: TrainState, step: int) -> bool:
        """Evaluates, unless a signal asks to stop."""
        batch = data.evaluation_batches(
            test_images,
            options.batch_size,
            jax.process_index(),
            jax.process_count(),
            config.data.prefetch,
        )
        try:
            values = evaluate(eval_step, state, signals.unless_stopped(batch))
        except Stopped:
            return False
        log.write(step, {f"test/{k}": v for k, v in values.items()})
        draw(state, step)
        return True

    console.print(
        f"Training {workdir} from step {start} to {options.steps} on {jax.device_count()} {jax.devices()[0].device_kind}"
    )
    with (
        StopSignals() as signals,
        ProgressBar(start, options.steps, console) as bar,
        jax.transfer_guard_device_to_host("disallow"),
    ):
        step = start
        stopping = pending = pending and not measured(state, start)
        mark, marked = time.perf_counter(), start
        while step < options.steps and not stopping:
            state, metrics = train_step(state, next(batches))
            step += 1
            bar.step(step)
            stopping = signals.received is not None
            logs = due(step, options.log_every) or due(step, options.checkpoint_every)
            pending = due(step, options.evaluate_every)
            if logs or pending or stopping:  # all that may be saved is checked
                values = jax.device_get(metrics)
                values = {name: float(value) for name, value in values.items()}
                _check_finite(values, step, checkpoints.latest_step())
            if logs:
                seconds = time.perf_counter() - mark
                values["images_per_second"] = (
                    (step - marked) * options.batch_size / seconds
                )
                log.write(step, values)
                bar.show(step, values)
                mark, marked = time.perf_counter(), step
            if pending:
                paused = time.perf_counter()
                pending = not measured(state, step)
                mark += time.perf_counter() - paused
            stopping = stopping or pending
            if due(step, options.checkpoint_every) or stopping:
                position = {
                    "position": batches.get_state(),
                    "origin": origin,
                    "evaluation_pending": pending,
                }
                checkpoints.save(step, state, position)
    if signals.received:
        checkpoints.wait()
        console.print(
            f"Stopped by {signals.received} after step {step}, which is saved; the same "
            "command goes on."
        )
    return state


def _check_finite(values: dict[str, float], step: int, saved: int | None) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        kept = f"checkpoint {saved} is kept" if saved else "nothing was saved yet"
        raise InputError(
            f"Not finite at step {step}: {', '.join(bad)} ({kept}); lower the learning "
            "rate or the weight of a term that had grown."
        )


def _painter(sample, reconstruct, test_images, directory):
    """A function of (state, step) that writes both pictures, always of the same random keys and images."""
    keys = jax.random.split(jax.random.key(0), SAMPLES)
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
