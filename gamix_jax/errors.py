"""The one exception for what a user can mend, and what is raised for a folder that cannot be written to."""

import errno
import tempfile
from pathlib import Path

# Of a disk that takes no more: full, over its quota, a file above its limit.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """Bad input; the message is one sentence of cause and cure, which `main` prints without a traceback."""


def make_folder(folder: Path, flag: str) -> None:
    """Makes a folder and tries a file in it, before any long work.

    Args:
      folder: with those above it.
      flag: that named it.

    Raises:
      InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--{flag}={folder} cannot be written to ({error.strerror}); name another folder."
        ) from error


def raise_if_memory_is_full(error: Exception) -> None:
    """Raises InputError where JAX found no room on a device, to compile or to run a step."""
    if "RESOURCE_EXHAUSTED" in str(error):
        raise InputError(
            f"The memory of the devices does not suffice ({str(error).splitlines()[0][:200]}); "
            "lower config.train.batch_size or the sizes of the model, set "
            "config.model.remat, or use more devices."
        ) from error
