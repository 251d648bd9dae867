"""Saving and restoring the training state and the position in the data: the only file that imports Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gamix_jax.errors import InputError
from gamix_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in WORKDIR/checkpoints; written in the background, the last few kept."""

    def __init__(self, workdir: Path, kept: int = 3):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=kept),
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
        # Copying to the host is what a save is for, also where reads are forbidden.
        with jax.transfer_guard_device_to_host("allow"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                ),
            )

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
