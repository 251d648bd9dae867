"""The images that a trained model is measured and shown with."""

from pathlib import Path

import ml_collections
import numpy as np

from gamix_jax import data
from gamix_jax.data.images import Crop, fit_image, permutation
from gamix_jax.data.photos import decode_photo, is_photo, open_photos
from gamix_jax.errors import InputError

MOST_IMAGES = 10_000  # of each kind, unless asked for more
STREAM = 2**63  # of random orders, which no epoch of a training has


def name_of(options: ml_collections.ConfigDict) -> str:
    """What a section `data` names, in a word or two: "celeb_a", "folder photos", "digits"."""
    if options.source == "tfds" and options.name:
        return options.name
    return f"{options.source} {Path(options.dir).name}".strip()


def open_run_images(
    config: ml_collections.ConfigDict, data_dir: str = ""
) -> dict[str, data.Images]:
    """The images that a run was trained on and those held out; from `data_dir` if the folder was moved."""
    options = config.data.copy_and_resolve_references()
    options.dir = data_dir or options.dir
    try:
        return {split: data.open_images(options, split) for split in ("train", "test")}
    except InputError as error:
        raise InputError(
            f"The run's images cannot be opened ({error}); if they were moved, --data_dir "
            "says where to."
        ) from error


def open_other_images(
    source: str, like: ml_collections.ConfigDict, data_dir: str = ""
) -> data.Images:
    """The test split of another source, or all where it has none, made to the size and channels of a run's.

    Args:
      source: "digits", "folder:DIR", "array:FILE" or "tfds:NAME", the latter stored where
        the run's set is, if it was such a set too, else where TFDS stores by default.
      like: the section `data` of the run.
      data_dir: where the run's data are now; "" is where they were.

    Raises:
      InputError: it is none of these, or not there.
    """
    kind, _, place = source.partition(":")
    options = like.copy_and_resolve_references()
    options.source, options.crop = kind, "center"
    options.test_fraction = 1.0  # all, where the source has no test split
    if kind in ("folder", "array") and place:
        options.dir = place
    elif kind == "tfds" and place:
        stored = like.source == "tfds" and like.name
        options.dir = (data_dir or like.dir) if stored else ""
        options.name, options.train_split, options.test_split = place, "train", "test"
    elif source != "digits":
        raise InputError(
            f"--ood={source} is no source of images; give digits, folder:DIR, array:FILE or "
            "tfds:NAME."
        )
    try:
        return data.open_images(options, "test")
    except InputError as error:
        raise InputError(f"--ood={source} cannot be opened ({error})") from error


def choose(images: data.Images, count: int | None, split: str) -> np.ndarray:
    """Indices of images that stand for a split, at random but always alike.

    Not in the order of the source, which may be by class: so the first few of them stand
    for all.

    Raises:
      InputError: more are asked for than there are held out; of training images there may be
        fewer.
    """
    if split == "test" and count is not None and count > len(images):
        raise InputError(
            f"{count} images are asked for, and {len(images):,} are held out; lower --count."
        )
    count = MOST_IMAGES if count is None else count
    return permutation(len(images), 0, STREAM)[:count]


def read_chosen(
    images: data.Images, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images at indices, uint8 [n, H, W, C], and the indices; without those that cannot be decoded."""
    pixels = images.read(chosen)
    whole = ~images.is_unreadable(chosen)
    return pixels[whole], chosen[whole]


def read_images(
    path: Path, like: ml_collections.ConfigDict, crop: Crop, count: int | None = None
) -> np.ndarray:
    """A user's images at the size and channels of a run's.

    Args:
      path: an image, or a folder, a zip or a tar of them, which are taken in the order of
        their paths.
      like: the section `data` of the run.
      crop: see `fit_image`.
      count: the first so many; None is all.

    Returns:
      uint8 [n, size, size, channels].

    Raises:
      InputError: there are none, or one cannot be decoded or does not fit the crop.
    """
    if path.is_file() and is_photo(path.name):
        contents = {str(path): path.read_bytes()}
    else:
        photos = open_photos(path)
        names = photos.names[:count]
        contents = {f"{path}/{name}": photos.read(name) for name in names}
    return np.stack(
        [
            fit_image(decode_photo(content, name), like.size, like.channels, crop)
            for name, content in contents.items()
        ]
    )
