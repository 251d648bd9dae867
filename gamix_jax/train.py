"""Training, from its configuration to its loop: what is checked, opened and agreed on before."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
from rich.console import Console

from gamix_jax import data
from gamix_jax.checkpoint import Checkpoints, check_room
from gamix_jax.config import default_config, flatten
from gamix_jax.config_check import check_config
from gamix_jax.errors import NO_ROOM, InputError, make_folder, raise_if_memory_is_full
from gamix_jax.files import written_whole
from gamix_jax.lock import locked, read_holder
from gamix_jax.logs import MetricLog, holds_evaluation
from gamix_jax.loop import Run, run_steps
from gamix_jax.parallel import put_on_devices, replicate
from gamix_jax.pods import agree, fingerprint, gather, software
from gamix_jax.profiling import check_steps, steps_left
from gamix_jax.resume import check_continued
from gamix_jax.state import TrainState, create_state


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    accept_changes: bool = False,
    profile: range = range(0),
) -> TrainState:
    """Trains to `config.train.steps`, going on from the newest checkpoint in `workdir` if there is one.

    Leaves in `workdir`: config.json, metrics.jsonl, TensorBoard event files,
    figures/*.png and checkpoints/. The processes of a pod call this together, with a
    folder that all of them see; process 0 writes.

    Args:
      config: the experiment, as made from `config.default_config`.
      workdir: folder of the run, made if missing.
      accept_changes: go on with a configuration that the run was not begun with, as far
        as `resume.check_continued` allows it.
      profile: steps that are traced, to WORKDIR/profile; step n begins when n are done.
        Those done before are left out.

    Returns:
      The last state.

    Raises:
      InputError: bad configuration, data, folder or checkpoint, steps to trace beyond
        the last, processes that do not agree, a disk or a memory that is full,
        or more steps that diverge than allowed.
    """
    console = Console(quiet=jax.process_index() > 0)
    try:
        with contextlib.ExitStack() as stack:
            return _train(config, workdir, accept_changes, profile, console, stack)
    except jax.errors.JaxRuntimeError as error:
        raise_if_memory_is_full(error)
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"{error.filename or workdir} could not be written ({error.strerror}); make room, "
            "and the same command goes on from the last checkpoint."
        ) from error


def _train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    accept_changes: bool,
    profile: range,
    console: Console,
    stack: contextlib.ExitStack,
) -> TrainState:
    """As `train`; what is to be closed goes to the stack."""
    check_steps(profile, config.train.steps)
    images = agree(lambda: _open(config, workdir, profile, console, stack))
    agree(lambda: (None, {"the holder of --workdir's lock": read_holder(workdir)}))
    checkpoints = Checkpoints(workdir, config.train.checkpoints_kept)
    stack.callback(checkpoints.close)
    for warning in checkpoints.warnings:
        console.print(warning, soft_wrap=True)
    for split, of_split in images.items():
        console.print(f"{split}: {of_split.describe(config.data)}", soft_wrap=True)
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
    stack.callback(batches.close)
    workers = data.choose_workers(images["train"], config.data.workers)
    if workers:
        console.print(f"train: read by {workers} processes")
    begun_with = flatten(config) | {"number of training images": len(images["train"])}
    pending = False
    if checkpoints.latest_step() is None:
        state = agree(lambda: _begin(config, workdir))
    else:

        def restore() -> tuple[tuple, dict[str, Any]]:
            saved = checkpoints.read_position()
            # Keys that are newer than the run had the effect of their defaults.
            before = saved.get("begun_with", begun_with)
            before = flatten(default_config()) | before
            changes = check_continued(before, begun_with, accept_changes)
            # Its shapes suffice, so that it is not compiled.
            like = jax.eval_shape(lambda: create_state(config))
            found = checkpoints.restore(like), saved, changes
            return found, {
                "the step gone on from": checkpoints.latest_step(),
                "the state restored": _digest(found[0]),
            }

        state, saved, changes = agree(restore)
        for change in changes:
            console.print(f"Changed: {change}.", soft_wrap=True)
        batches.set_state(saved["batches"])
        profile = steps_left(profile, int(state.step), console)
        # Process 0 knows whether it was made up for since.
        done = gather(holds_evaluation(workdir, int(state.step)))[0]
        pending = saved["evaluation_pending"] and not done
    if int(state.step) >= config.train.steps and not pending:
        console.print(
            f"{workdir} holds {int(state.step)} steps already; raise --config.train.steps to go on"
            + (
                ", with --accept_changes, and learning rates rise again."
                if config.optimizer.decay_fraction
                else "."
            )
        )
        return state
    log = None
    if jax.process_index() == 0:
        with written_whole(workdir / "config.json") as file:
            file.write(json.dumps(config.to_dict(), indent=2) + "\n")
        log = stack.enter_context(MetricLog(workdir, int(state.step)))
    run = Run(
        config,
        workdir,
        images,
        batches,
        begun_with,
        checkpoints,
        log,
        console,
        profile,
    )
    return run_steps(run, replicate(state), pending)


def _open(
    config: ml_collections.ConfigDict,
    workdir: Path,
    profile: range,
    console: Console,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, data.Images], dict[str, Any]]:
    """The images, the folder locked; and what all processes must find alike."""
    check_config(config, jax.device_count())
    images = {
        split: data.open_images(config.data, split) for split in ("train", "test")
    }
    for split in images.values():
        split[0]  # what cannot be read at all is found before anything is compiled
    make_folder(workdir, "workdir")
    if profile:
        make_folder(workdir / "profile", "workdir")
    if jax.process_index() == 0:
        stack.enter_context(locked(workdir, console.print))
    facts = {}
    if jax.process_count() > 1:
        facts = software() | {f"config.{k}": v for k, v in flatten(config).items()}
        for split, of_split in images.items():
            facts[f"the number of {split} images"] = len(of_split)
            facts[f"the first {split} image"] = fingerprint(of_split[0])
    return images, facts


def _begin(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[TrainState, dict[str, Any]]:
    """The first state; and what all processes must find alike."""
    state = create_state(config)
    check_room(workdir, state)
    return state, {"the first state": _digest(state)}


def _digest(state: TrainState) -> str | None:
    """Of all its arrays, where there is another process to compare it with."""
    return fingerprint(state) if jax.process_count() > 1 else None
