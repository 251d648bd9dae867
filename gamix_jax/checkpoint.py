"""Saving and restoring the training state and the position in the data: the only file that imports Orbax."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gamix_jax.errors import InputError
from gamix_jax.state import TrainState

SEAL = "sha256.json"  # of every file of a checkpoint, among them


class Checkpoints:
    """The checkpoints of one run, in WORKDIR/checkpoints; written in the background, the last few kept.

    Each is sealed, before it gets its name, with the SHA-256 of its files. What is not
    as sealed is set aside when the folder is opened, and the one before it is used.

    Attributes:
      directory: WORKDIR/checkpoints.
      warnings: a sentence on each checkpoint that was set aside.

    Raises:
      InputError: there are checkpoints, and all are damaged.
    """

    def __init__(self, workdir: Path, kept: int = 3):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.warnings = _set_damaged_aside(self.directory)
        self._saving = -1
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=kept,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        Args:
          step: steps done.
          state: the training state.
          position: of the training data, JSON-able.
        """
        self._manager.wait_until_finished()  # with the save before, which is sealed then
        self._saving = step
        # Copying to the host is what a save is for, also where reads are forbidden.
        with jax.transfer_guard_device_to_host("allow"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                ),
            )

    def _seal(self) -> None:
        # Called by Orbax's thread when all is written, before the folder gets its name.
        if jax.process_index() == 0:
            folders = self.directory.glob(f"{self._saving}.*")
            unnamed = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
            (unnamed / SEAL).write_text(json.dumps(_digests(unnamed), indent=1))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint.

        Args:
          like: a state of the structure, shapes and dtypes expected.

        Returns:
          The state and the position of the training data.

        Raises:
          InputError: what is saved has other arrays than `like`; names the first that
            differ.
        """
        step = self.latest_step()
        saved = self._manager.item_metadata(step)["state"]
        # Orbax saves a random key as the integers that it is made of.
        raw = like.replace(key=jax.random.key_data(like.key))
        differing = _differences(_shapes(saved), _shapes(raw))
        if differing:
            raise InputError(
                f"The checkpoint of step {step} in {self.directory} is of another model: {'; '.join(differing)}. "
                "Give the configuration it was made with, or another --workdir."
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def wait(self) -> None:
        """Until all that was begun is saved."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self.wait()
        self._manager.close()


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


def _set_damaged_aside(directory: Path) -> list[str]:
    """Renames checkpoints that are not as they were sealed and newer than the newest that is, and says so."""
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdecimal()]
    damaged = []
    for step in sorted(steps, reverse=True):
        if _is_whole(directory / str(step)):
            break
        damaged.append(step)
    if steps and len(damaged) == len(steps):
        raise InputError(
            f"No checkpoint in {directory} is as it was written; give another --workdir, or "
            "remove the folder to begin anew."
        )
    warnings = []
    for step in damaged:
        aside = Path(tempfile.mkdtemp(prefix=f"damaged_{step}_", dir=directory))
        (directory / str(step)).replace(aside)  # an empty folder may be replaced
        warnings.append(
            f"Checkpoint {step} is not as it was written; it was set aside as {aside}."
        )
    return warnings


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / SEAL).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


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
