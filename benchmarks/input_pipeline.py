"""Images per second that reach the training loop, by source, size and workers, against a plain loop of Pillow.

    python benchmarks/input_pipeline.py --photos=DIR --json=benchmarks/input_pipeline.json

DIR holds JPEG files; without it, 2,000 of 178x218 are drawn. Every rate is measured in
this one run, on batches of 128 with flips that are not trained on, so that the readers
have the whole machine; the ratio is to the plain loop at the same size.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from gamix_jax.config import default_config
from gamix_jax.data import Images, open_images, prepare, train_batches

BATCH, SECONDS = 128, 5.0


def draw_photos(root: Path, count: int = 2000) -> None:
    """Smooth JPEG files of 178x218 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    for i, pixels in enumerate(coarse):
        image = Image.fromarray(pixels).resize((178, 218), Image.Resampling.BICUBIC)
        image.save(root / f"{i:06d}.jpg", quality=90)


def plain_loop(paths: list[Path], size: int) -> float:
    """Images per second of what a script without a pipeline would do."""
    start = time.perf_counter()
    for count, path in enumerate(itertools.cycle(paths)):
        with Image.open(path) as image:
            side = min(image.size)
            left, top = ((length - side) // 2 for length in image.size)
            box = (left, top, left + side, top + side)
            image = image.convert("RGB")
            np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
        if time.perf_counter() - start > SECONDS:
            return (count + 1) / (time.perf_counter() - start)


def rate(images: Images, workers: int) -> tuple[float, float]:
    """Seconds to the first batch, and images per second of those that are made after the buffers are full."""
    start = time.perf_counter()
    batches = train_batches(images, BATCH, seed=0, flip=True, workers=workers)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(16):  # what was read ahead meanwhile
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += BATCH
    seconds = time.perf_counter() - start
    batches.close()
    return first, count / seconds


def measure(photos: Path, scratch: Path, size: int, workers: list[int]) -> list[dict]:
    """The rows of one size."""
    paths = sorted(photos.rglob("*.jpg"))
    data = default_config().data
    data.update(
        size=size, channels=3, test_fraction=0.0, test_split="", dir=str(photos)
    )
    data.source = "folder"
    folder = open_images(data, "train")
    npy = scratch / f"{size}.npy"
    np.save(npy, folder.read(np.arange(len(folder))))
    with open(os.devnull, "w") as nothing:
        prepare.prepare_photos(
            photos, scratch / str(size), size, "center", Console(file=nothing)
        )
    sources = {
        "folder": {"source": "folder", "dir": str(photos)},
        "prepared": {"source": "tfds", "dir": str(scratch / str(size))},
        "array (.npy)": {"source": "array", "dir": str(npy)},
    }
    plain = plain_loop(paths, size)
    rows = [{"source": "plain loop of Pillow", "workers": "", "rate": plain}]
    for name, source in sources.items():
        data.update(memory_gib=0.0, **source)
        for count in workers:
            first, images = rate(open_images(data, "train"), count)
            rows.append(
                {"source": name, "workers": count, "rate": images, "first": first}
            )
    data.memory_gib = 64.0
    kept = open_images(data, "train")
    kept.read(np.arange(len(kept)))
    first, images = rate(kept, 0)
    rows.append({"source": "in memory", "workers": 0, "rate": images, "first": first})
    return [{"size": size, **row, "ratio": row["rate"] / plain} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = arguments.photos
        if photos is None:
            photos = scratch / "photos"
            photos.mkdir()
            draw_photos(photos)
        rows = [
            row
            for size in arguments.sizes
            for row in measure(photos, scratch, size, arguments.workers)
        ]
    table = Table("size", "source", "workers", "images/s", "ratio", "first batch, s")
    for row in rows:
        table.add_row(
            str(row["size"]),
            row["source"],
            str(row["workers"]),
            f"{row['rate']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['first']:.2f}" if "first" in row else "",
        )
    Console().print(table)
    if arguments.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        report = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("grain", "pillow", "numpy")},
            "commit": commit.stdout.strip(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
