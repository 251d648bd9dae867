"""The images of a split as the model takes them: cropped, resized, kept in memory where they fit."""

from typing import Literal

import ml_collections
import numpy as np
from PIL import ExifTags, Image

from gamix_jax.data.photos import UnreadableImageError
from gamix_jax.data.sources import Source, Split, open_source
from gamix_jax.errors import InputError

Crop = Literal["center", "celeba", "celeba_hq", "none"]
CELEBA_SHAPE, CELEBA_CROP = (178, 218), 148
FILTER = "bicubic, antialiased"


def permutation(count: int, seed: int, stream: int) -> np.ndarray:
    """A random order, int64 [count], by raw bits of Philox: NumPy keeps these the same in every version, as it does not its own permutations."""
    key = np.array((seed, stream), np.uint64)
    bits = np.random.Philox(key=key).random_raw(count)
    return np.argsort(bits, kind="stable")


def fit_image(image: Image.Image, size: int, channels: int, crop: Crop) -> np.ndarray:
    """Turns upright, crops, converts and resizes (bicubic, antialiased) an image.

    Args:
      image: of any size and mode. EXIF orientation is followed, transparency ignored.
      size: height and width wanted, pixels.
      channels: 1 (grey) or 3 (RGB).
      crop: "center", the largest centred square; "celeba", the centred 148x148 of the
        178x218 aligned CelebA images; "celeba_hq", all of an image that is square;
        "none", all of it, squeezed to a square.

    Returns:
      uint8 [size, size, channels].

    Raises:
      InputError: crop "celeba" of an image that is not 178 pixels wide and 218 high,
        "celeba_hq" of one that is not square.
    """
    image = _turn_upright(image)
    width, height = image.size
    if crop == "celeba" and (width, height) != CELEBA_SHAPE:
        raise InputError(
            f'The crop "celeba" is for the aligned images of 178x218 pixels, not {width}x{height}; '
            'take the crop "center".'
        )
    if crop == "celeba_hq" and width != height:
        raise InputError(
            f'The crop "celeba_hq" is for square images, not {width}x{height} pixels; '
            'take the crop "center".'
        )
    across = CELEBA_CROP if crop == "celeba" else min(width, height)
    across, down = (width, height) if crop == "none" else (across, across)
    left, top = (width - across) // 2, (height - down) // 2
    box = (left, top, left + across, top + down)
    image = _convert(image)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    # Grey is taken last: so it is the same of an image that was resized before, in RGB.
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(size, size, channels)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Follows the EXIF orientation, if there is one that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF makes Pillow raise anything, and harms no pixel
        return image
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _convert(image: Image.Image) -> Image.Image:
    """To L or RGB, by way of the modes that Pillow can; 16 bits are scaled, where Pillow would clip them."""
    if image.mode.startswith("I"):  # "I" is what some formats make of 16 bits
        levels = np.asarray(image)
        levels = levels // 257 if image.mode != "I" or levels.max() > 255 else levels
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    between = {"La": "LA", "RGBa": "RGBA"}
    if image.mode in between:
        image = image.convert(between[image.mode])
    mode = "L" if image.mode in ("1", "L", "LA", "F") else "RGB"
    return image if image.mode == mode else image.convert(mode)


class Images:
    """The images of one split at the size the model takes, random access, in the source's order.

    A set of at most `data.memory_gib` (once resized) is kept in memory as it is first
    read; a larger one is read anew each time. In place of an image that cannot be
    decoded stands the next one that can.

    Attributes:
      shape: of all images, (count, size, size, channels).
      kept: whether they are kept in memory.
      in_memory: whether they are, or their source is.
      unreadable: a sentence on each image found so far that cannot be decoded, by index.
    """

    def __init__(
        self, source: Source, indices: np.ndarray, data: ml_collections.ConfigDict
    ):
        self._source, self._indices = source, indices
        self._fit = (data.size, data.channels, data.crop)
        self.shape = (len(indices), data.size, data.size, data.channels)
        self.kept = bool(self._bytes <= data.memory_gib * 2**30)
        self.in_memory = self.kept or source.in_memory
        self.unreadable: dict[int, str] = {}
        self._bad_fraction = data.max_bad_fraction
        self._read = np.zeros(len(indices), bool)
        self._pixels = np.empty(self.shape if self.kept else 0, np.uint8)

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [size, size, channels]."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images at indices [n], as uint8 [n, size, size, channels]; for many threads at once.

        Raises:
          InputError: names an image that cannot be read from the disk or does not fit,
            or cannot be decoded and is one more than `data.max_bad_fraction` allows.
        """
        if not self.kept:
            return np.stack([self._open(index) for index in indices])
        for index in np.unique(indices[~self._read[indices]]):
            self._pixels[index] = self._open(index)
            self._read[index] = True  # after its pixels: another thread may look
        return self._pixels[indices]

    def is_unreadable(self, indices: np.ndarray) -> np.ndarray:
        """Of indices [n], which are of images that were found to be unreadable; bool [n]."""
        return np.isin(indices, list(self.unreadable))

    def _open(self, index: int) -> np.ndarray:
        while True:  # comes to an end: not all may be unreadable
            place = int(self._indices[index])
            try:
                image = self._source[place]
            except UnreadableImageError as error:
                self._note_unreadable(int(index), error)
                index = (index + 1) % len(self)
                continue
            try:
                return fit_image(image, *self._fit)
            except InputError as error:
                raise InputError(f"{self._source.where(place)}: {error}") from error

    def _note_unreadable(self, index: int, error: UnreadableImageError) -> None:
        self.unreadable[index] = str(error)
        # 0.29 of 100 are 29, though not in floating point.
        count, allowed = (
            len(self.unreadable),
            int(self._bad_fraction * len(self) + 1e-6),
        )
        if count > allowed:
            raise InputError(
                f"{count} of the {len(self):,} images cannot be decoded, and "
                f"config.data.max_bad_fraction={self._bad_fraction} allows {allowed}; {error}"
            ) from error

    def labels(self) -> np.ndarray | None:
        """Int64 [len], where the source has labels; else None."""
        labels = self._source.labels()
        return None if labels is None else labels[self._indices].astype(np.int64)

    def describe(self, data: ml_collections.ConfigDict) -> str:
        """How many images there are, what is done to each, and whether they stay in memory."""
        count, *shape = self.shape
        how = "kept in memory once read" if self.kept else "read anew each time"
        return (
            f"{count:,} images of {data.source}, crop {data.crop!r}, resized ({FILTER}) to "
            f"{'x'.join(map(str, shape))}; {how} ({self._bytes / 2**20:,.1f} MiB)"
        )


def open_images(data: ml_collections.ConfigDict, split: Split) -> Images:
    """The images of a split.

    Args:
      data: the section `data` of the configuration.
      split: "train" or "test". Where the source has no test split, `data.test_fraction`
        of its images is one, chosen at random but always alike.

    Raises:
      InputError: the source is missing, damaged or empty.
    """
    source, undivided = open_source(data, split)
    indices = np.arange(len(source))
    if undivided:
        shuffled = permutation(len(source), 0, 0)
        test_count = round(data.test_fraction * len(source))
        indices = np.sort(
            shuffled[:test_count] if split == "test" else shuffled[test_count:]
        )
    if not len(indices):
        raise InputError(
            f"The {split} split of the data ({data.source}) is empty; give it images or "
            "change config.data.test_fraction."
        )
    return Images(source, indices, data)
