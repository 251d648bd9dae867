"""Images: a source, read and batched by Grain as uint8 in an order that is a function of seed and position alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import grain
import ml_collections
import numpy as np
from PIL import Image

from gamix_jax.errors import InputError

Split = Literal["train", "test"]
SUFFIXES = (".jpg", ".jpeg", ".png")
CELEBA_SHAPE, CELEBA_CROP = (178, 218), 148
# Threads that read and decode, and batches kept ready. Pillow decodes outside the
# interpreter's lock.
READ = grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn ships: grey, 8x8, 17 levels (UCI ML repository)."""

    def __init__(self):
        from sklearn.datasets import (
            load_digits,
        )  # a second to import, wanted by this source alone

        self._images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])


class FolderSource:
    """JPEG and PNG files anywhere below a folder, in the order of their paths."""

    def __init__(self, root: Path):
        self._paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self._paths:
            raise InputError(
                f"No JPEG or PNG image lies in {root}; point config.data.dir at a folder of images."
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:
        path = self._paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except Exception as error:  # damaged files make Pillow raise anything
            raise InputError(
                f"{path} is not a readable image ({error}); repair or remove it."
            ) from error


class TfdsSource:
    """The feature "image" of a TFDS data set prepared as array_record."""

    def __init__(self, name: str, split: str, directory: str):
        import tensorflow_datasets as tfds  # seconds to import, wanted by this source alone

        try:
            builder = tfds.builder(
                name, data_dir=directory or None, file_format="array_record"
            )
        except Exception as error:  # unknown name, version or configuration
            raise InputError(
                f"TFDS cannot open the data set {name!r}: {str(error).splitlines()[0]}"
            ) from error
        if not builder.is_prepared():
            try:
                builder.download_and_prepare()
            except (
                Exception
            ) as error:  # TFDS, its download and its builders raise anything
                cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise InputError(
                    f"The TFDS data set {name!r} is not in {builder.data_path} and could not be prepared ({cause}); "
                    'prepare it where there is a network, or use a folder of images: config.data.source="folder".'
                ) from error
        try:
            self._records = builder.as_data_source(split=split)
        except (ValueError, KeyError, NotImplementedError) as error:
            cause = " ".join(str(error).split())[:200]
            raise InputError(
                f"The TFDS data set {name!r} cannot be read as split {split!r} of "
                f"array_record files ({cause})."
            ) from error
        if "image" not in builder.info.features:
            raise InputError(f'The TFDS data set {name!r} has no feature "image".')

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Image.Image:
        array = self._records[index]["image"]
        return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


def fit_image(
    image: Image.Image, size: int, channels: int, crop: Literal["center", "celeba"]
) -> np.ndarray:
    """Crops, resizes (bicubic, antialiased) and converts an image.

    Args:
      image: of any size and mode.
      size: height and width wanted, pixels.
      channels: 1 (grey) or 3 (RGB).
      crop: "center", the largest centred square; "celeba", the centred 148x148 of the
        178x218 aligned CelebA images.

    Returns:
      uint8 [size, size, channels].

    Raises:
      InputError: crop "celeba" of an image that is not 178 pixels wide and 218 high.
    """
    width, height = image.size
    if crop == "celeba" and (width, height) != CELEBA_SHAPE:
        raise InputError(
            f'config.data.crop="celeba" is for the aligned images of 178x218 pixels, not {width}x{height}; '
            'set config.data.crop="center".'
        )
    side = CELEBA_CROP if crop == "celeba" else min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(image).reshape(size, size, channels)


def open_images(data: ml_collections.ConfigDict, split: Split) -> grain.MapDataset:
    """The images of a split at the size the model takes, random access, in the source's order.

    Args:
      data: the section `data` of the configuration.
      split: "train" or "test". Where the source has no test split, `data.test_fraction`
        of its images is one, chosen at random but always alike.

    Returns:
      Dataset of uint8 [size, size, channels].

    Raises:
      InputError: the source is missing or empty.
    """
    held_out = None
    if data.source == "digits":
        source = DigitsSource()
        held_out = data.test_fraction
    elif data.source == "folder":
        root = Path(data.dir).expanduser()
        if not data.dir or not root.is_dir():
            raise InputError(
                f"config.data.dir is {data.dir!r}, which is no folder; set "
                "--config.data.dir=DIR to the folder of your images."
            )
        has = {name: (root / name).is_dir() for name in ("train", "test")}
        if has["test"] and not has["train"]:
            raise InputError(
                f"{root} has a folder test but no folder train; add one, or point "
                "config.data.dir at a folder without either."
            )
        if not has["test"]:
            held_out = data.test_fraction
        below = split if has["test"] else "train" if has["train"] else ""
        source = FolderSource(root / below)
    else:
        if not data.name:
            raise InputError(
                "config.data.name is empty; set it to a TFDS data set, such as "
                '"celeb_a".'
            )
        source = TfdsSource(
            data.name,
            data.test_split if split == "test" else data.train_split,
            data.dir,
        )
    indices: Sequence[int] = range(len(source))
    if held_out is not None:
        shuffled = np.random.default_rng(0).permutation(len(source))
        test_count = round(held_out * len(source))
        indices = np.sort(
            shuffled[:test_count] if split == "test" else shuffled[test_count:]
        )
    if not len(indices):
        raise InputError(
            f"The {split} split of the data ({data.source}) is empty; give it images or config.data.test_fraction."
        )
    images = grain.MapDataset.source(indices).map(lambda index: source[int(index)])
    return images.map(
        lambda image: fit_image(image, data.size, data.channels, data.crop)
    )


def train_batches(
    images: grain.MapDataset,
    batch_size: int,
    seed: int,
    flip: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless shuffled batches of this process's share of each global batch.

    The global order is a function of the seed alone: every image once an epoch, epochs
      shuffled differently, batches
    running on over the end of an epoch. Process p takes the p-th block of each global
    batch, so the global batches do not depend on the number of processes.

    Args:
      images: of the split.
      batch_size: of all processes together; a multiple of `process_count`.
      seed: of the order and the flips.
      flip: mirror each image left to right with probability 1/2.
      process_index: in [0, process_count).
      process_count: processes that train together.

    Returns:
      Iterator of uint8 [batch_size / process_count, size, size, channels];
      `get_state()` is its position, a small JSON-able dict, and `set_state()` goes
      there.
    """
    dataset = images.seed(seed).shuffle().repeat()
    if flip:
        dataset = dataset.random_map(
            lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image
        )
    dataset = dataset.batch(batch_size // process_count)[process_index::process_count]
    return iter(dataset.to_iter_dataset(READ))


def evaluation_batches(
    images: grain.MapDataset,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every image once, in order, in batches of one size: the last one is padded.

    Args:
      images: of the split.
      batch_size: of all processes together; a multiple of `process_count`.
      process_index: in [0, process_count).
      process_count: processes that evaluate together.

    Returns:
      Iterator of {"image": uint8 [batch_size / process_count, size, size, channels],
      "index": int32, the image's place or -1 for padding}.
    """
    count = len(images)

    def element(position: int) -> dict[str, np.ndarray]:
        return {
            "image": images[position % count],
            "index": np.int32(position if position < count else -1),
        }

    padded = -(-count // batch_size) * batch_size
    dataset = (
        grain.MapDataset.range(padded).map(element).batch(batch_size // process_count)
    )
    return iter(dataset[process_index::process_count].to_iter_dataset(READ))
