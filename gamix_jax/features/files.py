"""Arrays by name in a file: read from .npz, or from what torch saved; written whole or not at all."""

import contextlib
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from gamix_jax.errors import NO_ROOM, InputError
from gamix_jax.files import try_writing, written_whole


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz, or of a .pth or .pt where torch is installed.

    Raises:
      InputError: the file is missing, is none of these, or cannot be read; or torch is
        wanted and not installed.
    """
    if not path.is_file():
        raise InputError(
            f"The features file {path} does not exist; name one that does, or train one "
            "with --mode=train_features."
        )
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    raise InputError(
        f"The features file {path} ends neither in .npz nor in .pth; name one that does."
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"The features file {path} cannot be read as .npz ({error}); make it again."
        ) from error
    return _checked(path, arrays, np.ndarray)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"torch is wanted to read {path}; install it, or make a .npz of the file where "
            "it is installed: python -c \"import numpy, torch; numpy.savez('FILE.npz', "
            "**torch.load('FILE.pth', weights_only=True))\"."
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; some advise to run what a file holds
        raise InputError(
            f"The features file {path} cannot be read by torch as weights alone; get it "
            "again, or save the network's state_dict()."
        ) from error
    tensors = _checked(path, tensors, torch.Tensor)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _checked(path: Path, arrays: object, kind: type) -> dict:
    if not isinstance(arrays, dict) or not all(
        isinstance(array, kind) for array in arrays.values()
    ):
        raise InputError(
            f"The features file {path} does not hold arrays by name; give the weights alone."
        )
    return arrays


def check_arrays(
    path: Path,
    network: str,
    arrays: dict[str, np.ndarray],
    wanted: dict[str, tuple[int, ...]],
    others: Collection[str] = (),
) -> None:
    """Refuses arrays that are not of the names and shapes wanted; of `others` any shape will do.

    Raises:
      InputError: says what they lack and what they have besides.
    """
    found = {name: array.shape for name, array in arrays.items() if name not in others}
    differing = [
        f"{name} of {list(found[name])} in place of {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    faults = {
        "lacks": [name for name in wanted if name not in found],
        "has": [*differing, *(name for name in found if name not in wanted)],
    }
    said = [
        f"{verb} {', '.join(names[:2])}"
        + (f" and {len(names) - 2:,} more" if names[2:] else "")
        for verb, names in faults.items()
        if names
    ]
    if said:
        raise InputError(
            f"{path} is a features file of another network than {network}: it "
            f"{' and '.join(said)}; name that network's file."
        )


def check_writable(path: Path) -> None:
    """Makes the folder and tries a file there, so that hours of work are not lost for want of a place.

    Raises:
      InputError: it cannot be written, or its name does not end in .npz.
    """
    if path.suffix != ".npz" or path.is_dir():
        raise InputError(f"{path} cannot be the features file; name a file, OUT.npz.")
    with _one_sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try_writing(path)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a .npz that is there whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    with _one_sentence(path), written_whole(path, "wb") as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in NO_ROOM
        cure = "give it room" if full else "see to that, or name another place"
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); {cure}."
        ) from error
