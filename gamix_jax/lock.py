"""One process at a time in a folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from gamix_jax.errors import InputError

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds FOLDER/.lock, which says who does; the lock ends with the process, whatever ends it.

    Args:
      folder: is there and can be written to.
      warn: gets a sentence where the file system has no locks.

    Raises:
      InputError: another process holds it.
    """
    try:
        file = open(folder / NAME, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"{folder / NAME} cannot be written to ({error.strerror}); name another folder."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"{folder} is in use by {file.read() or 'another process'}; wait for its end, "
                "or name another folder."
            ) from error
        except OSError as error:
            warn(
                f"{folder} cannot be locked ({error.strerror}); see to it that nothing "
                "else writes to it."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        os.fsync(file.fileno())  # so that other hosts read it, too
        yield


def read_holder(folder: Path) -> str | None:
    """Who holds the lock, or held it last; None where nobody ever did."""
    try:
        return (folder / NAME).read_text()
    except FileNotFoundError:
        return None
