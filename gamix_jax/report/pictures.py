"""The pictures of a report: those of the picture modes, made to travel in a page."""

import base64
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageSequence
from rich.console import Console

from gamix_jax.errors import InputError
from gamix_jax.generate import MAPPED, MODES, Options, Task
from gamix_jax.trained import TrainedModel

# Pixels; wider ones are reduced, or a report of large photos could not be sent. A page
# shows two side by side, each at most half as wide.
WIDEST = 960
WIDEST_ANIMATION = 640


class Picture(NamedTuple):
    """A picture as a page holds it.

    Attributes:
      uri: of the scheme "data:".
      width, height: pixels.
    """

    uri: str
    width: int
    height: int


class Pictures(NamedTuple):
    """What the modes made.

    Attributes:
      files: by MODE/FILE without the suffix .png, with .gif.
      maps: "label" and "component", as far as there are maps of them.
      dimensions: that were traversed.
      deviations: how far, standard deviations of the prior.
      counts: images (pairs, for interpolations) that each mode took.
    """

    files: dict[str, Picture]
    maps: list[str]
    dimensions: list[int]
    deviations: float
    counts: dict[str, int]


def make_pictures(model: TrainedModel, data_dir: str, console: Console) -> Pictures:
    """Runs every mode that makes pictures, once, with its own number of images or as many as are held out.

    Raises:
      InputError: the run's data are not there, or fewer than 3 images are held out.
    """
    options = Options(data_dir=data_dir)
    with tempfile.TemporaryDirectory() as folder:
        held_out = len(Task(model, options, Path(folder)).held_out())
        if held_out < 3:
            raise InputError(
                f"{held_out} images are held out, and a report takes at least 3; raise "
                "config.data.test_fraction, or name a larger test split."
            )
        counts = {
            "sample": 64,
            "reconstruct": min(32, held_out),
            "interpolate": min(8, held_out // 2),
            "traverse": 1,
            "latent": min(MAPPED, held_out),
        }
        for mode, make in MODES.items():
            with console.status(f"Making pictures: {mode}"):
                chosen = options._replace(count=counts[mode])
                make(Task(model, chosen, Path(folder, mode)))
        files = {
            str(path.relative_to(folder)).removesuffix(".png"): embed(path)
            for pattern in ("*/*.png", "*/*.gif")
            for path in sorted(Path(folder).glob(pattern))
        }
        dimensions = Path(folder, "traverse/dimensions.txt").read_text().split()
    maps = [name for name in ("label", "component") if f"latent/map_by_{name}" in files]
    return Pictures(
        files, maps, [int(x) for x in dimensions], options.deviations, counts
    )


def embed(path: Path) -> Picture:
    """A PNG or a GIF as a data URI; images, but not charts, are reduced if too wide."""
    with Image.open(path) as picture:
        moves = getattr(picture, "is_animated", False)
        widest = WIDEST_ANIMATION if moves else WIDEST
        width, height = picture.size
        content = path.read_bytes()
        if width > widest and path.parent.name != "latent":
            width, height = widest, round(height * widest / width)
            content = _reduce(picture, (width, height))
    kind = path.suffix[1:]
    return Picture(data_uri(content, f"image/{kind}"), width, height)


def _reduce(picture: Image.Image, size: tuple[int, int]) -> bytes:
    mode = "L" if picture.mode == "L" else "RGB"
    first, *others = [
        frame.convert(mode).resize(size, Image.Resampling.LANCZOS)
        for frame in ImageSequence.Iterator(picture)
    ]
    content = io.BytesIO()
    moving = {}
    if others:
        duration = picture.info["duration"]
        moving = {
            "save_all": True,
            "append_images": others,
            "duration": duration,
            "loop": 0,
        }
    first.save(content, picture.format, **moving)
    return content.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Content as an address that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
