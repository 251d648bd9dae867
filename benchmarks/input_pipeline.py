"""Images per second that reach the training loop, by source, size and workers, against a plain loop of Pillow and what a training step eats.

    python benchmarks/input_pipeline.py --photos=DIR --json=benchmarks/input_pipeline.json

DIR holds JPEG files, of which 1,000 are taken; without it, as many of 178x218 are drawn.
Every rate is measured in this one run, on batches of 128 with flips. While the readers
are timed nothing is trained, and they have the whole machine; so has each training step
of --eats, whose rate is compared with that of the readers at its size (a batch has as many
pixels as 32 images of 64x64 at most, for the memory's sake). Memory is the peak
of the processes that read together (Linux), and the growth of this one above what it held
before; of a .npy, which is mapped, the pages in use count in each process.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image
from rich.console import Console

from gamix_jax.config import default_config
from gamix_jax.data import Images, open_images, prepare, train_batches

BATCH, MOST = 128, 1000


def draw_photos(root: Path, count: int = MOST) -> None:
    """Smooth JPEG files of 178x218 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    for i, pixels in enumerate(coarse):
        image = Image.fromarray(pixels).resize((178, 218), Image.Resampling.BICUBIC)
        image.save(root / f"{i:06d}.jpg", quality=90)


def plain_loop(paths: list[Path], size: int, seconds: float) -> float:
    """Images per second of what a script without a pipeline would do."""
    start = time.perf_counter()
    for count, path in enumerate(itertools.cycle(paths)):
        with Image.open(path) as image:
            side = min(image.size)
            left, top = ((length - side) // 2 for length in image.size)
            box = (left, top, left + side, top + side)
            image = image.convert("RGB")
            np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
        if time.perf_counter() - start > seconds:
            return (count + 1) / (time.perf_counter() - start)


def resident(what: str, process: int | str = "self") -> float:
    """MiB of a process's memory: VmRSS, now, or VmHWM, the peak since it began or was reset (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1024


def rate(images: Images, workers: int, seconds: float) -> dict[str, float]:
    """Images per second of those that are made after the buffers are full, seconds to the first batch, and memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    start = time.perf_counter()
    batches = train_batches(images, BATCH, seed=0, flip=True, workers=workers)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(16):  # what was read ahead meanwhile
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += BATCH
    taken = time.perf_counter() - start
    readers = multiprocessing.active_children()
    memory = sum(resident("VmHWM", reader.pid) for reader in readers)
    memory += resident("VmHWM") - before
    batches.close()
    return {"images/s": count / taken, "first batch, s": first, "memory, MiB": memory}


def measure(
    photos: Path, scratch: Path, size: int, workers: list[int], seconds: float
) -> list[dict[str, Any]]:
    """The rows of one size."""
    data = default_config().data
    data.update(size=size, channels=3, test_fraction=0.0, test_split="")
    data.update(source="folder", dir=str(photos))
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
    plain = plain_loop(sorted(photos.iterdir()), size, seconds)
    found = [("plain loop of Pillow", "", {"images/s": plain})]
    for name, source in sources.items():
        data.update(memory_gib=0.0, **source)
        for count in workers:
            found.append(
                (name, count, rate(open_images(data, "train"), count, seconds))
            )
    data.memory_gib = 64.0
    kept = open_images(data, "train")
    kept.read(np.arange(len(kept)))
    found.append(("in memory", 0, rate(kept, 0, seconds)))
    return [
        {"size": size, "source": name, "workers": count, **of_one}
        | {"to Pillow": of_one["images/s"] / plain}
        for name, count, of_one in found
    ]


def step_rate(config: ml_collections.ConfigDict, seconds: float) -> float:
    """Images per second that the training step of a configuration takes from a loop that has them ready."""
    import jax

    from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
    from gamix_jax.state import create_state
    from gamix_jax.steps import make_train_step

    images = max(1, 32 * 64**2 // config.data.size**2)
    config.train.batch_size = min(config.train.batch_size, images)
    step = map_over_devices(make_train_step(config), donate_state=True)
    shape = (config.train.batch_size, *[config.data.size] * 2, config.data.channels)
    batch = put_on_devices(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    state, _ = step(replicate(create_state(config)), batch)
    state, metrics = jax.block_until_ready(step(state, batch))
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        state, metrics = step(state, batch)
        if count % 10 == 0:  # the host does not run ahead of the devices for long
            jax.block_until_ready(metrics)
        count += 1
    jax.block_until_ready(state)
    return count * config.train.batch_size / (time.perf_counter() - start)


def main() -> None:
    import record  # here, as JAX above: the readers import this file and do without it

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    eats = ["digits", "celeba:small", "celeba:128,small", "celeba_hq"]
    parser.add_argument("--eats", nargs="*", default=eats, help="one of each size")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each rate")
    parser.add_argument("--json", type=record.file_to_write)
    options = parser.parse_args()
    from gamix_jax.cpu import keep_freed_memory

    digits = open_images(record.load_config("digits").data, "train")
    rows = [{"size": 8, "source": "digits", "workers": 0}]
    rows[0] |= rate(digits, 0, options.seconds)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = scratch / "photos"
        photos.mkdir()
        if options.photos is None:
            draw_photos(photos)
        else:
            for i, path in enumerate(sorted(options.photos.rglob("*.jpg"))[:MOST]):
                (photos / f"{i:06d}.jpg").symlink_to(path.absolute())
        for size in options.sizes:
            rows += measure(photos, scratch, size, options.workers, options.seconds)
    keep_freed_memory()  # as --mode=train does; only now, for memory was measured
    steps = {}
    for name in options.eats:
        config = record.load_config(name)
        steps[config.data.size] = name, step_rate(config, options.seconds)
    for row in rows:
        name, eaten = steps.get(row["size"], ("", None))
        row["step"] = name
        row["step, images/s"] = eaten or ""
        row["read / eaten"] = row["images/s"] / eaten if eaten else ""
    names = ["size", "source", "workers", "images/s", "to Pillow", "first batch, s"]
    names += ["memory, MiB", "step", "step, images/s", "read / eaten"]
    rows = [{name: row.get(name, "") for name in names} for row in rows]
    record.show(rows, "Input")
    record.write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
