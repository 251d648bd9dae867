"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def written_whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """Opens a file, "w" for text or "wb", that takes its place, or that of an older one, at the end.

    Raises:
      OSError: it cannot be written; what was there is left.
    """
    new = _beside(path)
    try:
        with new.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def try_writing(path: Path) -> None:
    """Raises OSError where `written_whole` would, to be told before long work."""
    new = _beside(path)
    new.touch()
    new.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.new")
