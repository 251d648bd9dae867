"""Where images come from. Each source gives Pillow images by index, with labels where it has them, and can be pickled."""

import functools
import importlib.util
import os
import zipfile
import zlib
from pathlib import Path
from typing import Literal, Protocol

import ml_collections
import numpy as np
from PIL import Image

from gamix_jax.data.photos import (
    UnreadableImageError,
    class_names,
    decode_photo,
    divide,
    open_photos,
)
from gamix_jax.errors import InputError

Split = Literal["train", "test"]


class Source(Protocol):
    """The images of one split, random access."""

    in_memory: bool  # whether the images are held in memory anyway

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...

    def labels(self) -> np.ndarray | None:
        """Integers [len], or None where there are none."""

    def where(self, index: int) -> str:
        """What a message calls the image."""


class ArraySource:
    """uint8 images in an array, grey [N, H, W] or [N, H, W, 1], RGB [N, H, W, 3] or RGBA [N, H, W, 4]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None):
        self._images, self._labels = images, labels
        self.in_memory = not isinstance(images, np.memmap)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        pixels = np.asarray(self._images[index])
        return Image.fromarray(
            pixels.squeeze(-1) if pixels.shape[-1:] == (1,) else pixels
        )

    def labels(self) -> np.ndarray | None:
        return self._labels

    def where(self, index: int) -> str:
        return f"Image {index} of the array"

    def __getstate__(self) -> dict:
        """A mapped file is opened anew where this is unpickled: it would travel whole."""
        mapped = isinstance(self._images, np.memmap)
        images = self._images.filename if mapped else self._images
        return {"_images": images, "_labels": self._labels, "in_memory": not mapped}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if not self.in_memory:
            self._images = np.lib.format.open_memmap(self._images, mode="r")


class FolderSource:
    """JPEG, PNG and WebP files anywhere below a folder, in the order of their paths; labels are the subfolders' places in the alphabet."""

    in_memory = False

    def __init__(self, root: Path, split: Split):
        self._root, self._photos = root, open_photos(root)
        splits = divide(self._photos.names, root)
        self.splits = tuple(splits)
        found = splits.get(split, splits["train"])
        self._names = [name for name, _ in found]
        place = {name: index for index, name in enumerate(class_names(splits))}
        self._labels = (
            np.array([place[of] for _, of in found], np.int64) if place else None
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            content = self._photos.read(self._names[index])
        except OSError as error:
            path = self.where(index)
            if os.path.islink(path) and not os.path.exists(path):
                raise UnreadableImageError(
                    f"{path} is a link that leads nowhere; repair or remove it."
                ) from error
            raise InputError(
                f"{path} cannot be read ({error.strerror}); give it back, or leave it out "
                "from the start."
            ) from error
        return decode_photo(content, self.where(index))

    def labels(self) -> np.ndarray | None:
        return self._labels

    def where(self, index: int) -> str:
        return str(self._root / self._names[index])


class TfdsSource:
    """The feature "image", and "label" if there is one, of a TFDS data set prepared as array_record."""

    in_memory = False

    def __init__(self, name: str, split: str, directory: str):
        # Half a second to import, wanted by this source alone.
        import tensorflow_datasets as tfds

        from gamix_jax.data.tfds_sets import open_set

        builder = open_set(name, directory)
        self._name = name or directory
        splits = ", ".join(builder.info.splits)
        try:
            self._records = builder.as_data_source(
                split=split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            )
            len(self._records)  # raises where a slice ends before it begins
        except NotImplementedError as error:
            raise InputError(
                f"The TFDS data set in {builder.data_path} is stored as "
                f"{builder.info.file_format.value}, which has no random access; prepare "
                "it as array_record in another config.data.dir."
            ) from error
        except (ValueError, KeyError) as error:
            raise InputError(
                f"The TFDS data set {self._name!r} has no split {split!r} (it has: "
                f'{splits}); name one, with slicing such as "train[90%:]", or set '
                'config.data.test_split="" to hold out config.data.test_fraction.'
            ) from error
        features = builder.info.features
        if "image" not in features:
            raise InputError(
                f'The TFDS data set {self._name!r} has no feature "image".'
            )
        # The other features cost three times what these do, and nobody asks for them.
        self._image = tfds.features.FeaturesDict({"image": features["image"]})
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        self._label = None
        if isinstance(dict(features).get("label"), tfds.features.ClassLabel):
            self._label = tfds.features.FeaturesDict({"label": features["label"]})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            example = self._image.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
        except Exception as error:  # array_record and protobuf raise what they please
            cause = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.where(index)} cannot be read ({cause}); delete the set and prepare it again."
            ) from error
        return decode_photo(example["image"], self.where(index))

    def where(self, index: int) -> str:
        return f"Record {index} of the TFDS data set {self._name!r}"

    def labels(self) -> np.ndarray | None:
        if self._label is None:
            return None
        read = self._label.deserialize_example_np
        return np.array([read(record)["label"] for record in self._records], np.int64)


def open_source(data: ml_collections.ConfigDict, split: Split) -> tuple[Source, bool]:
    """The source that `data.source` names.

    Returns:
      The source, and whether it is the images of both splits, of which
      `data.test_fraction` is to be held out.

    Raises:
      InputError: it is missing or is not what its name says.
    """
    if data.source == "digits":
        # What sklearn.datasets.load_digits reads, without the second that its import takes.
        package = importlib.util.find_spec("sklearn").submodule_search_locations[0]
        path = Path(package) / "datasets" / "data" / "digits.csv.gz"
        if not path.is_file():
            raise InputError(f"{path} is missing; install scikit-learn again.")
        table = np.loadtxt(path, np.uint8, delimiter=",")  # 64 pixels, 0 to 16; label
        images = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return ArraySource(images, table[:, 64].astype(np.int64)), True
    if data.source == "tfds":
        if not data.name and not data.dir:
            raise InputError(
                'config.data.name is empty; set it to a TFDS data set, such as "celeb_a", '
                "or config.data.dir to the folder of a prepared one."
            )
        whole = not data.test_split
        wanted = data.test_split if split == "test" and not whole else data.train_split
        return TfdsSource(data.name, wanted, data.dir), whole
    if "://" in data.dir:
        raise InputError(
            f"config.data.dir is {data.dir!r}; a {data.source} must be files of this "
            "machine: mount it, or copy it."
        )
    path = Path(data.dir).expanduser()
    if data.source == "array":
        if not data.dir or not path.is_file():
            raise InputError(
                f"config.data.dir is {data.dir!r}, which is no file; set "
                "--config.data.dir=FILE to a .npz or .npy file of images."
            )
        return _open_array(path, split)
    if not data.dir or not path.is_dir():
        raise InputError(
            f"config.data.dir is {data.dir!r}, which is no folder; set "
            "--config.data.dir=DIR to the folder of your images."
        )
    source = FolderSource(path, split)
    return source, "test" not in source.splits


def _open_array(path: Path, split: Split) -> tuple[ArraySource, bool]:
    """The arrays train_images, test_images, train_labels and test_labels of a .npz, or a .npy, which is mapped."""
    try:
        if zipfile.is_zipfile(path):
            images, labels, whole = _read_npz(path, split, path.stat().st_mtime_ns)
        else:
            images = np.lib.format.open_memmap(path, mode="r")
            labels, whole = None, True
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as a .npz or .npy file ({error}); write it with "
            "numpy.savez or numpy.save."
        ) from error
    of_images = images.dtype == np.uint8 and images.ndim in (3, 4)
    if not of_images or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise InputError(
            f"{path} holds images of {images.dtype} {list(images.shape)}; they must be "
            "uint8 [N, H, W] or [N, H, W, 1, 3 or 4]."
        )
    if labels is not None and (
        labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"
    ):
        raise InputError(
            f"{path} holds labels of {labels.dtype} {list(labels.shape)} for "
            f"{len(images)} images; give one integer an image."
        )
    return ArraySource(images, labels), whole


@functools.lru_cache(maxsize=2)  # both splits may be of one array
def _read_npz(
    path: Path, split: Split, written: int
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        whole = "test_images" not in arrays
        if whole and split == "test":
            return _read_npz(path, "train", written)
        prefix = split
        if f"{prefix}_images" not in arrays:
            raise InputError(
                f"{path} holds {', '.join(list(arrays)[:5])}, not {prefix}_images; name the "
                "arrays of images train_images and, if there are, test_images."
            )
        return arrays[f"{prefix}_images"], arrays.get(f"{prefix}_labels"), whole
