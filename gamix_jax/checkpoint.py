"""Saving and restoring the training state and the position in the data: the only file that imports Orbax."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gamix_jax.errors import NO_ROOM, InputError
from gamix_jax.pods import agree
from gamix_jax.state import TrainState

SEAL = "sha256.json"  # of every file of a checkpoint, among them


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to `interrupts`: the one service for it takes one counter only."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, in WORKDIR/checkpoints; written in the background, the last few kept.

    Each is sealed, before it gets its name, with the SHA-256 of its files. What is not
    as sealed is set aside when the folder is opened, and the one before it is used.
    All processes open, save and restore together; process 0 writes.

    Args:
      workdir: folder of the run.
      kept: the last few.
      read_only: leaves the folder as it is, also of a run that is still training: what
        is damaged is passed over, and nothing can be saved.

    Attributes:
      directory: WORKDIR/checkpoints.
      warnings: a sentence on each checkpoint that was set aside or passed over.

    Raises:
      InputError: there are checkpoints, and all are damaged.
    """

    def __init__(self, workdir: Path, kept: int = 3, read_only: bool = False):
        self.directory = Path(workdir).absolute() / "checkpoints"
        first = jax.process_index() == 0
        self._passed_over, self.warnings = agree(
            lambda: (_pass_over(self.directory, read_only) if first else ([], []), {})
        )
        self._saving = -1
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=kept,
                read_only=read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        steps = self._manager.all_steps()
        return max((s for s in steps if s not in self._passed_over), default=None)

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        Args:
          step: steps done.
          state: the training state.
          position: of the training data, JSON-able.

        Raises:
          InputError: this or the save before it found no room.
        """
        self.wait()  # for the save before, which is sealed then
        self._saving = step
        check_room(self.directory, state)
        # Copying to the host is what a save is for, also where reads are forbidden. Of
        # arrays on devices Orbax would slice and compile every one for every replica; those
        # on the host, which on CPU are the devices' own, it copies before it returns.
        with jax.transfer_guard_device_to_host("allow"):
            state = jax.device_get(_present(state))
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                ),
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """One sentence for a full disk, which Orbax and TensorStore tell in many ways."""
        try:
            yield
        except Exception as error:
            causes = [c for c in map(os.strerror, NO_ROOM) if c in str(error)]
            if not causes:
                raise
            whole = self.latest_step()
            kept = f"checkpoint {whole} is kept" if whole else "nothing was saved yet"
            raise InputError(
                f"Checkpoint {self._saving} could not be written to {self.directory} "
                f"({causes[0]}; {kept}); make room, and the same command goes on."
            ) from error

    def _seal(self) -> None:
        # Called by Orbax's thread when all is written, before the folder gets its name.
        if jax.process_index() == 0:
            folders = self.directory.glob(f"{self._saving}.*")
            unnamed = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
            with (unnamed / SEAL).open("w") as file:
                file.write(json.dumps(_digests(unnamed), indent=1))
                file.flush()
                os.fsync(file.fileno())

    def read_position(self) -> dict[str, Any]:
        """What was saved with the newest checkpoint as its position."""
        restored = self._manager.restore(
            self.latest_step(), args=ocp.args.Composite(data=ocp.args.JsonRestore())
        )
        return restored["data"]

    def restore(self, like: TrainState) -> TrainState:
        """The state of the newest checkpoint, whatever devices and processes wrote it.

        Args:
          like: a state of the structure, shapes and dtypes expected; shapes suffice.

        Raises:
          InputError: what is saved has other arrays than `like`; names the first that
            differ.
        """
        step = self.latest_step()
        saved = self._manager.item_metadata(step)["state"]
        present = _present(like)
        differing = _differences(_shapes(saved), _shapes(present))
        if differing:
            raise InputError(
                f"The checkpoint of step {step} in {self.directory} is of another model or version: {'; '.join(differing)}. "
                "Give the configuration and the version of gamix_jax it was made with, or "
                "another --workdir."
            )
        # To the host, so that no sharding over the devices of then is asked for.
        wanted = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), present)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        )
        return like.replace(**jax.tree.map(jax.numpy.asarray, restored["state"]))

    def wait(self) -> None:
        """Until all that was begun is saved; raises as `save` does."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self.wait()
        self._manager.close()


def saved_at(workdir: Path, step: int) -> datetime | None:
    """When a checkpoint was written, as Orbax noted in it; None where it did not."""
    path = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    try:
        nanoseconds = json.loads(path.read_text())["commit_timestamp_nsecs"]
        return datetime.fromtimestamp(nanoseconds / 1e9).astimezone()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_room(folder: Path, state: TrainState) -> None:
    """Refuses a file system that has no room for a checkpoint.

    Raises:
      InputError: says how much there is and how much it takes.
    """
    wanted = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise InputError(
            f"A checkpoint takes {wanted / 2**20:,.0f} MiB, and {folder} has {free / 2**20:,.0f} "
            "MiB left; what was saved before is kept: make room, and the same command "
            "goes on."
        )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a folder by relative path, but for those that Orbax writes after the seal."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (
            SEAL,
            "commit_success.txt",
            "_CHECKPOINT_METADATA",
        ):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            result[str(path.relative_to(folder))] = digest
    return result


def _pass_over(directory: Path, read_only: bool) -> tuple[list[int], list[str]]:
    """Renames the checkpoints that are not as they were sealed and newer than the newest that is, unless `read_only`; their steps, and a sentence on each."""
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdecimal()]
    damaged = []
    for step in sorted(steps, reverse=True):
        if _is_whole(directory / str(step)):
            break
        damaged.append(step)
    if steps and len(damaged) == len(steps):
        raise InputError(
            f"No checkpoint in {directory} is as it was written ({', '.join(map(str, damaged))}, "
            f"by the sums in {SEAL}); give another --workdir, or move the folder away to begin "
            "anew."
        )
    warnings = []
    for step in damaged:
        done = "passed over"
        if not read_only:
            aside = Path(tempfile.mkdtemp(prefix=f"damaged_{step}_", dir=directory))
            (directory / str(step)).replace(aside)  # an empty folder may be replaced
            done = f"set aside as {aside}"
        warnings.append(f"Checkpoint {step} is not as it was written; it was {done}.")
    return damaged if read_only else [], warnings


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / SEAL).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


def _present(state: TrainState) -> dict[str, Any]:
    """The fields that a configuration has: without a new part it is saved as before there was one."""
    return {name: value for name, value in vars(state).items() if value is not None}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _differences(
    saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], most: int = 3
) -> list[str]:
    names = [
        name
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    listed = [
        f"{name} is {saved.get(name, 'absent')}, not {wanted.get(name, 'absent')}"
        for name in names[:most]
    ]
    return listed + ([f"and {len(names) - most} more"] if len(names) > most else [])
