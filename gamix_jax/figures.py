"""Pictures of images: no model code."""

from pathlib import Path

import numpy as np
from PIL import Image


def image_grid(images: np.ndarray, columns: int, tile: int = 48) -> Image.Image:
    """Images side by side.

    Args:
      images: [N, H, W, C] in [-1, 1], clipped to it; C is 1 or 3.
      columns: images to a row.
      tile: small images are enlarged by a whole factor, without smoothing, to at least
        this many pixels.

    Returns:
      A picture, ceil(N / columns) rows, with one pixel of white between images.
    """
    images = np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    factor = -(-tile // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)


def reconstruction_grid(
    images: np.ndarray, reconstructions: np.ndarray, columns: int = 8
) -> Image.Image:
    """Rows of images, each above the row of their reconstructions.

    Args:
      images: [N, H, W, C] in [-1, 1]; N is a multiple of `columns`.
      reconstructions: the same shape.
      columns: images to a row.
    """
    rows = np.stack(
        [x.reshape(-1, columns, *x.shape[1:]) for x in (images, reconstructions)],
        axis=1,
    )
    return image_grid(rows.reshape(-1, *images.shape[1:]), columns)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
