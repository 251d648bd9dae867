"""Makes a TFDS data set of photos, or of a published set's files, once, without TensorFlow."""

import shlex
from pathlib import Path

import tensorflow_datasets as tfds
from rich.console import Console

from gamix_jax.data import originals
from gamix_jax.data.images import FILTER
from gamix_jax.data.photos import class_names, divide, open_photos
from gamix_jax.data.writer import ExampleSet, write_set
from gamix_jax.errors import InputError


def prepare_photos(
    images: Path, out: Path, size: int, crop: str, console: Console
) -> None:
    """Makes a TFDS data set, features image [size, size, 3] and, where they lie in folders by class, label.

    Folders train and test become splits; the order of the examples is that of the
    paths. The bytes written are a function of the photos, size, crop and Pillow alone.
    The same call goes on where one was interrupted. Photos that cannot be read are left
    out and listed in `out`/unreadable.txt.

    Args:
      images: a folder, a zip or a tar of JPEG, PNG or WebP files.
      out: folder of the data set; `tfds.builder_from_directory` opens it.
      size: height and width, pixels.
      crop: of `fit_image`.
      console: shows the progress.

    Raises:
      InputError: nothing to read, another set in `out`, a full disk.
    """
    photos = open_photos(images)
    splits = divide(photos.names, images)
    features = {"image": tfds.features.Image(shape=(size, size, 3))}
    names = class_names(splits)
    if names:
        features["label"] = tfds.features.ClassLabel(names=names)
    items = {
        split: [(name, {"label": of} if names else {}) for name, of in found]
        for split, found in splits.items()
    }
    made = ExampleSet(
        "photos",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        items,
        originals.PhotoExample(photos, size, crop),
        {"size": size, "crop": crop, "filter": FILTER},
    )
    write_set(made, out, console)
    flags = [
        "--config.data.name=",
        f"--config.data.dir={out}",
        f"--config.data.size={size}",
        "--config.data.channels=3",
        "--config.data.crop=none",
    ]
    _tell(flags, splits, console)


def prepare_original(dataset: str, images: Path, out: Path, console: Console) -> None:
    """Makes the TFDS data set of this name of the files that its makers give out, as `prepare_photos` does.

    Args:
      dataset: one of `originals.FILES`, "celeb_a_hq" with its size: "celeb_a_hq/256".
      images: folder of the files.
      out: where TFDS data sets are stored, `data_dir`.
      console: shows the progress.

    Raises:
      InputError: files that are missing or damaged, another set in `out`, a full disk.
    """
    name = dataset.split("/")[0]
    if name not in originals.FILES:
        raise InputError(
            f"--dataset is {dataset!r}; it must be one of {', '.join(originals.FILES)}."
        )
    if not images.is_dir():
        raise InputError(
            f"--images={images} is no folder; put {originals.FILES[name]} into one."
        )
    if dataset == "celeb_a_hq":
        raise InputError(
            "--dataset is celeb_a_hq; add the size, such as celeb_a_hq/256."
        )
    try:
        builder = tfds.builder(dataset, data_dir=str(out), file_format="array_record")
    except Exception as error:  # no such version or configuration
        raise InputError(
            f"TFDS has no data set {dataset!r} ({str(error).splitlines()[0]})."
        ) from error
    features = dict(builder.info.features)
    if name == "celeb_a":
        items, read = originals.celeb_a(images)
        stored = {"image", *items["train"][0][1]}
        features = {key: value for key, value in features.items() if key in stored}
    elif name == "celeb_a_hq":
        items, read = originals.celeb_a_hq(images, features["image"].shape[0])
    elif name == "cifar10":
        items, read, features["label"].names = originals.cifar10(images)
    else:
        items, read = originals.mnist(images)
    made = ExampleSet(
        name,
        str(builder.version),
        tfds.features.FeaturesDict(features),
        items,
        read,
        {"dataset": dataset},
    )
    write_set(made, Path(builder.data_path), console)
    flags = [f"--config.data.name={dataset}", f"--config.data.dir={out}"]
    _tell(flags, items, console)


def _tell(flags: list[str], splits: dict, console: Console) -> None:
    """Says how to train on a set."""
    held_out = [] if "test" in splits else ["--config.data.test_split="]
    line = shlex.join(["--config.data.source=tfds", *flags, *held_out])
    console.print(
        f"Train on it with {line}", soft_wrap=True, highlight=False, markup=False
    )
