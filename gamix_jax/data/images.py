"""The images of a split as the model takes them: cropped, resized, kept in memory where they fit."""

from typing import Literal

import ml_collections
import numpy as np
from PIL import ExifTags, Image, ImageOps

from gamix_jax.data.sources import Source, Split, open_source
from gamix_jax.errors import InputError

Crop = Literal["center", "celeba", "celeba_hq", "none"]
CELEBA_SHAPE, CELEBA_CROP = (178, 218), 148
FILTER = "bicubic, antialiased"


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
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
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
    image = _convert(image, "L" if channels == 1 else "RGB")
    box = (left, top, left + across, top + down)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).reshape(size, size, channels)


def _convert(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Converts by way of the modes that Pillow can; 16 bits are scaled, where Pillow would clip them."""
    if image.mode.startswith("I"):  # "I" is what some formats make of 16 bits
        levels = np.asarray(image)
        levels = levels // 257 if image.mode != "I" or levels.max() > 255 else levels
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    between = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
    if image.mode in between:
        image = image.convert(between[image.mode])
    return image if image.mode == mode else image.convert(mode)


class Images:
    """The images of one split at the size the model takes, random access, in the source's order.

    A set of at most `data.memory_gib` (once resized) is kept in memory as it is first
    read; a larger one is read anew each time.
    """

    def __init__(
        self, source: Source, indices: np.ndarray, data: ml_collections.ConfigDict
    ):
        self._source, self._indices = source, indices
        self._fit = (data.size, data.channels, data.crop)
        self.shape = (len(indices), data.size, data.size, data.channels)
        fits = np.prod(self.shape, dtype=np.int64) <= data.memory_gib * 2**30
        self.in_memory = bool(fits or source.in_memory)
        self._kept = np.zeros(len(indices), bool) if fits else None
        self._pixels = np.empty(self.shape if fits else 0, np.uint8)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [size, size, channels]."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images at indices [n], as uint8 [n, size, size, channels]; for many threads at once.

        Raises:
          InputError: names an image that cannot be read or does not fit.
        """
        if self._kept is None:
            return np.stack([self._open(index) for index in indices])
        for index in indices[~self._kept[indices]]:
            self._pixels[index] = self._open(index)
            self._kept[index] = True  # after its pixels: another thread may look
        return self._pixels[indices]

    def _open(self, index: int) -> np.ndarray:
        return fit_image(self._source[int(self._indices[index])], *self._fit)

    def labels(self) -> np.ndarray | None:
        """Int64 [len], where the source has labels; else None."""
        labels = self._source.labels()
        return None if labels is None else labels[self._indices].astype(np.int64)

    def describe(self, data: ml_collections.ConfigDict) -> str:
        """How many images there are, what is done to each, and whether they stay in memory."""
        count, *shape = self.shape
        mebibytes = np.prod(self.shape, dtype=np.int64) / 2**20
        how = f"kept in memory once read ({mebibytes:.1f} MiB)"
        if not self.in_memory:
            how = f"read anew each time ({mebibytes:,.0f} MiB)"
        return (
            f"{count:,} images of {data.source}, crop {data.crop!r}, resized ({FILTER}) to "
            f"{'x'.join(map(str, shape))}; {how}"
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
        shuffled = np.random.default_rng(0).permutation(len(source))
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
