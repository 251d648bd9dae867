"""TFDS data sets by name: found prepared, or prepared on first use."""

import importlib.util
import os

import tensorflow_datasets as tfds
from etils import epath
from rich.console import Console

from gamix_jax.data.originals import FILES
from gamix_jax.errors import InputError


def open_set(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """A prepared TFDS data set; one that is not prepared yet is, as array_record.

    Args:
      name: of the set, such as "celeb_a" or "celeb_a_hq/256"; "" where `directory` is
        itself the folder of one.
      directory: where sets are stored; "" is TFDS's default.

    Raises:
      InputError: unknown, or it could not be downloaded or prepared; says what to do.
    """
    directory = os.path.expanduser(directory)
    if not name and not (epath.Path(directory) / "dataset_info.json").exists():
        begun = (epath.Path(directory) / "prepare.json").exists()
        cure = (
            "its preparation was interrupted: run the same command again"
            if begun
            else "for a folder of images set config.data.source=folder, for a set by its "
            "name config.data.name"
        )
        raise InputError(f"config.data.dir={directory} is no TFDS data set; {cure}.")
    try:
        if not name:
            return tfds.builder_from_directory(directory)
        builder = tfds.builder(
            name, data_dir=directory or None, file_format="array_record"
        )
    except Exception as error:  # unknown name, version or configuration; damaged files
        raise InputError(
            f"TFDS cannot open the data set {name or directory!r} ({_line(error)}); "
            "look for its name in TFDS's catalogue."
        ) from error
    if builder.is_prepared():
        return builder
    needs_tensorflow = builder.name in FILES
    missing = importlib.util.find_spec("tensorflow") is None
    if needs_tensorflow and missing:
        cause = (
            "its own builder needs TensorFlow once: pip install 'gamix-jax[prepare]'"
        )
    else:
        Console(stderr=True).print(
            f"Downloading and preparing {name} to {builder.data_path}, once."
        )
        try:
            builder.download_and_prepare(file_format="array_record")
            return builder
        except Exception as error:  # TFDS, its download and its builders raise anything
            cause = _line(error)
            if missing and "tensorflow" in cause.lower():
                cause += "; it needs TensorFlow once: pip install 'gamix-jax[prepare]'"
    if needs_tensorflow:
        cure = (
            f"fetch {FILES[builder.name]} into a folder DIR and run python -m "
            f"gamix_jax.main --mode=prepare --dataset={name} --images=DIR "
            f"--out={directory or builder.data_dir_root}"
        )
    else:
        cure = "prepare it where there is a network and TensorFlow, and copy it there"
    raise InputError(
        f"The TFDS data set {name!r} is not in {builder.data_path} and was not prepared "
        f"({cause}). Either {cure}, or use a folder of images: "
        "--config.data.source=folder --config.data.dir=DIR."
    )


def _line(error: Exception) -> str:
    """The first line of an error: TFDS goes on with all its catalogue."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()[:200]}"
