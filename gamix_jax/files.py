"""Files that are there whole or not at all, whenever the process is killed."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file, or replaces one.

    Raises:
      OSError: it cannot be written; what was there is left.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
