"""Where JAX keeps what it compiled, for the next start."""

import os
import shutil
import warnings
from pathlib import Path

import jax

from gamix_jax.errors import InputError, make_folder

ROOM = 2**30  # bytes that must be free for more to be kept


def keep_compiled(folder: Path) -> None:
    """Has JAX keep every program that it compiles; to be called before the first one.

    Nothing is changed where the user chose JAX's cache (`JAX_COMPILATION_CACHE_DIR`), or
    where the folder cannot be written to. Of several processes JAX lets the first one
    write.

    Args:
      folder: made if missing.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        make_folder(folder, "cache_dir")
        # JAX leaves half a file where a disk becomes full, and never writes it anew.
        if shutil.disk_usage(folder).free < ROOM:
            return
    except (InputError, OSError):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The run goes on without; the next start compiles again.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
