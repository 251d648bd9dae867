"""Published data sets as their makers give them out, read without TensorFlow: the examples of TFDS's sets of the same name."""

import dataclasses
import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gamix_jax.data.images import fit_image
from gamix_jax.data.photos import Photos, decode_photo, open_photos
from gamix_jax.errors import InputError

_IDX = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz "
    "and t10k-labels-idx1-ubyte.gz"
)
# What to fetch, by the name of the TFDS set.
FILES = {
    "celeb_a": "img_align_celeba.zip and list_eval_partition.txt",
    "celeb_a_hq": "the images, or data256x256.tar",
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": "cifar-10-python.tar.gz",
}


@dataclasses.dataclass(frozen=True)
class PhotoExample:
    """Reads a photo and its class as an example, or keeps the file as it is where it has the form that is wanted."""

    photos: Photos
    size: int | tuple[int, int]  # pixels, one side of a square or (width, height)
    crop: str | None = None  # of `fit_image`; None refuses another size
    keep: bool = False  # files that have the size already; refuses smaller ones

    def __call__(self, item: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """The example of (name, other features).

        Raises:
          InputError: it cannot be read, or has another size where no crop is given.
        """
        name, features = item
        try:
            content = self.photos.read(name)
        except Exception as error:  # zip has errors of its own, and a missing password
            raise InputError(f"{name} cannot be read ({error}).") from error
        image = decode_photo(content, name)
        shape = (self.size, self.size) if isinstance(self.size, int) else self.size
        if self.keep and image.mode == "RGB" and image.size == shape:
            return {"image": content, **features}
        if self.crop is None or (self.keep and min(image.size) < self.size):
            raise InputError(
                f"{name} is {image.mode} {image.size}, not RGB {shape}; fetch it again."
            )
        try:
            return {"image": png(fit_image(image, self.size, 3, self.crop)), **features}
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def identity(self, item: tuple[str, dict[str, Any]]) -> bytes:
        """What a change of the item would change."""
        name, features = item
        return os.fsencode(f"{name} {self.photos.size(name)} {features}")


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a PNG file."""
    file = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class ArrayExample:
    """Makes examples of arrays: png of uint8 [H, W, C] and a label."""

    def __call__(self, item: tuple[np.ndarray, dict[str, Any]]) -> dict[str, Any]:
        return {"image": png(item[0]), **item[1]}

    def identity(self, item: tuple[np.ndarray, dict[str, Any]]) -> bytes:
        """What a change of the item would change."""
        return item[0].tobytes() + repr(item[1]).encode()


Splits = dict[str, Sequence[Any]]


def celeb_a(directory: Path) -> tuple[Splits, PhotoExample]:
    """CelebA (Liu et al. 2015): img_align_celeba.zip or folder, list_eval_partition.txt, and what else lies there of list_attr_celeba.txt, list_landmarks_align_celeba.txt and identity_CelebA.txt."""
    photos = open_photos(_first(directory, "img_align_celeba.zip", "img_align_celeba"))
    paths = {name.split("/")[-1]: name for name in photos.names}
    partition = _table(_first(directory, "list_eval_partition.txt"), header=False)[1]
    features: dict[str, dict[str, Any]] = {name: {} for name in partition}
    for feature, file, header in (
        ("attributes", "list_attr_celeba.txt", True),
        ("landmarks", "list_landmarks_align_celeba.txt", True),
        ("identity", "identity_CelebA.txt", False),
    ):
        if not (directory / file).is_file():
            continue
        headings, rows = _table(directory / file, header)
        for name in partition:
            if name not in rows:
                raise InputError(f"{directory / file} lacks {name}; fetch it again.")
            values = rows[name] > 0 if feature == "attributes" else rows[name]
            features[name][feature] = dict(zip(headings, values, strict=True))
    absent = [name for name in partition if name not in paths]
    if absent:
        raise InputError(
            f"{directory} lacks {len(absent)} images of list_eval_partition.txt, "
            f"{absent[0]} the first; fetch img_align_celeba.zip again."
        )
    splits = {
        split: [
            (paths[name], features[name])
            for name in sorted(partition)
            if partition[name][0] == number
        ]
        for number, split in enumerate(("train", "validation", "test"))
    }
    if not splits["train"]:
        raise InputError(
            f"{directory}/list_eval_partition.txt names no image to train on; fetch it "
            "again."
        )
    splits = {split: items for split, items in splits.items() if items}
    return splits, PhotoExample(photos, (178, 218), keep=True)


def celeb_a_hq(directory: Path, size: int) -> tuple[Splits, PhotoExample]:
    """CelebA-HQ (Karras et al. 2018): square images in a folder or a tar; larger ones are resized, smaller ones refused."""
    tars = sorted(directory.glob("data*x*.tar"))
    tar = directory / f"data{size}x{size}.tar"
    if tars and tar not in tars:
        raise InputError(
            f"{directory} holds {tars[0].name}, not {tar.name}; take --dataset=celeb_a_hq/"
            f"{tars[0].stem.split('x')[-1]}, or put {tar.name} there."
        )
    photos = open_photos(tar if tars else directory)
    items = [(name, {"image/filename": name}) for name in photos.names]
    return {"train": items}, PhotoExample(photos, size, "celeb_a_hq", keep=True)


def mnist(directory: Path) -> tuple[Splits, ArrayExample]:
    """MNIST and Fashion-MNIST: the four idx files, gzipped or not."""
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx(directory, f"{stem}-images-idx3-ubyte", 3)
        labels = _idx(directory, f"{stem}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise InputError(
                f"{directory} has {split} images {list(images.shape)} and "
                f"{len(labels)} labels; fetch the files again."
            )
        splits[split] = [
            (image[..., None], {"label": int(label)})
            for image, label in zip(images, labels, strict=True)
        ]
    return splits, ArrayExample()


def cifar10(directory: Path) -> tuple[Splits, ArrayExample, list[str]]:
    """CIFAR-10 (Krizhevsky 2009): cifar-10-python.tar.gz; and the names of its classes."""
    path = _first(directory, "cifar-10-python.tar.gz")
    try:
        content = gzip.decompress(path.read_bytes())  # checks its sum, tarfile does not
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            files = {
                member.name.split("/")[-1]: _DataUnpickler(
                    archive.extractfile(member), encoding="bytes"
                ).load()
                for member in archive
                if member.isfile() and not member.name.endswith(".html")
            }
        splits: Splits = {}
        parts = {
            "train": [f"data_batch_{i}" for i in range(1, 6)],
            "test": ["test_batch"],
        }
        for split, names in parts.items():
            images = np.concatenate([files[name][b"data"] for name in names])
            images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = [label for name in names for label in files[name][b"labels"]]
            splits[split] = [
                (image, {"label": label, "id": f"{split}_{index:05d}"})
                for index, (image, label) in enumerate(zip(images, labels, strict=True))
            ]
        classes = [name.decode() for name in files["batches.meta"][b"label_names"]]
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(
            f"{path} is not CIFAR-10 for Python, or damaged ({error!r}); fetch it again."
        ) from error
    return splits, ArrayExample(), classes


class _DataUnpickler(pickle.Unpickler):
    """Opens pickles of arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy.core", "numpy._core")) and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _first(directory: Path, *names: str) -> Path:
    for name in names:
        if (directory / name).exists():
            return directory / name
    raise InputError(f"{directory} does not hold {names[0]}; put it there.")


def _table(path: Path, header: bool) -> tuple[list[str], dict[str, np.ndarray]]:
    """CelebA's lists: with `header` a count and headings come first; then a name and integers each line."""
    try:
        lines = path.read_text().splitlines()
        headings = lines[1].split() if header else ["Identity_No"]
        rows = [line.split() for line in lines[2 if header else 0 :] if line.strip()]
        table = {row[0]: np.array(row[1:], np.int64) for row in rows}
        short = [name for name, row in table.items() if len(row) != len(headings)]
        if short:
            raise ValueError(f"{short[0]} has not {len(headings)} values")
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not CelebA's list, or damaged ({error}); fetch it again."
        ) from error
    return headings, table


def _idx(directory: Path, stem: str, rank: int) -> np.ndarray:
    """An idx file of bytes: two zeros, 8 (bytes), the rank, the shape big-endian, the data."""
    path = _first(directory, f"{stem}.gz", stem)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        magic, *shape = struct.unpack_from(f">{rank + 1}I", content)
        if magic != 0x800 + rank:
            raise ValueError(f"it begins with {magic:#x}, not {0x800 + rank:#x}")
        return np.frombuffer(content, np.uint8, offset=4 * (rank + 1)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole idx file ({error}); fetch it again."
        ) from error
