"""Pictures of images: no model code."""

from pathlib import Path

import numpy as np
from PIL import Image

TILE = 48  # pixels that small images are enlarged to, at least


def image_grid(images: np.ndarray, columns: int, tile: int = TILE) -> Image.Image:
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


def save_numbered(images: np.ndarray, directory: Path) -> None:
    """Writes each of images [N, H, W, C] in [-1, 1] as DIRECTORY/00000.png and so on, as many pixels as it has, in place of those of before."""
    for old in directory.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for number, image in enumerate(images):
        picture = image_grid(image[None], columns=1, tile=1)
        save_picture(picture, directory / f"{number:05d}.png")


def save_walk(path: Path, grid: np.ndarray, frames: np.ndarray) -> None:
    """Writes PATH.png, a row for each walk, and PATH.gif, in which all walk at once.

    Args:
      path: without a suffix.
      grid: [walks, steps, H, W, C] in [-1, 1].
      frames: the same walks in more steps.
    """
    picture = image_grid(grid.reshape(-1, *grid.shape[2:]), columns=grid.shape[1])
    save_picture(picture, path.with_suffix(".png"))
    columns = min(8, len(frames))
    moving = [image_grid(step, columns) for step in frames.swapaxes(0, 1)]
    save_animation(moving, path.with_suffix(".gif"))


def save_animation(
    frames: list[Image.Image], path: Path, seconds: float = 0.08
) -> None:
    """Writes a GIF that goes forth and back for ever, making its folder; `seconds` a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [*frames, *frames[-2:0:-1]]
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=round(1000 * seconds),
        loop=0,
    )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
