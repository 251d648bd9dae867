"""Makes a TFDS data set of photos, or of a published set's files, once: array_record files without TensorFlow."""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from gamix_jax.data import originals
from gamix_jax.data.images import FILTER
from gamix_jax.data.photos import class_names, divide, open_photos
from gamix_jax.errors import InputError

# A file holds about this many bytes of PNG, but a set has about this many files or more,
# for each is begun anew after an interruption.
SHARD_BYTES, SHARDS = 2**27, 16
# What lies beside the files: what they were made of, and what was left out.
PLAN, REPORT = "prepare.json", "unreadable.txt"
# Holds the file that is being written, and notes on those that are; gone at the end.
PROGRESS = "progress"


@dataclasses.dataclass(frozen=True)
class _Set:
    """A data set to be written."""

    name: str
    version: str
    features: tfds.features.FeaturesDict
    items: dict[str, Sequence[Any]]  # of each split, what `read` makes an example of
    read: Callable[[Any], dict[str, Any]]
    made_with: dict[str, Any]  # JSON-able


def prepare_photos(
    images: Path, out: Path, size: int, crop: str, console: Console
) -> None:
    """Makes a TFDS data set, features image [size, size, 3] and, where they lie in folders by class, label.

    Folders train and test become splits; the order of the examples is that of the
    paths. The bytes written are a function of the photos, size, crop and Pillow alone.
    The same call goes on where one was interrupted. Photos that cannot be read are left
    out and listed in `out`/unreadable.txt.

    Args:
      images: a folder, a zip or a tar of JPEG, PNG or WebP files.
      out: folder of the data set; `tfds.builder_from_directory` opens it.
      size: height and width, pixels.
      crop: of `fit_image`.
      console: shows the progress.

    Raises:
      InputError: nothing to read, another set in `out`, a full disk.
    """
    photos = open_photos(images)
    splits = divide(photos.names, images)
    features = {"image": tfds.features.Image(shape=(size, size, 3))}
    names = class_names(splits)
    if names:
        features["label"] = tfds.features.ClassLabel(names=names)
    items = {
        split: [(name, {"label": of} if names else {}) for name, of in found]
        for split, found in splits.items()
    }
    made = _Set(
        "photos",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        items,
        originals.PhotoExample(photos, size, crop),
        {"size": size, "crop": crop, "filter": FILTER},
    )
    _write(made, out, console)
    console.print(
        "Train on it with --config.data.source=tfds --config.data.name= "
        f"--config.data.dir={out}"
        + ("" if "test" in splits else " --config.data.test_split=")
        + f" --config.data.crop=none --config.data.size={size}",
        soft_wrap=True,
        highlight=False,
    )


def prepare_original(dataset: str, images: Path, out: Path, console: Console) -> None:
    """Makes the TFDS data set of this name of the files that its makers give out, as `prepare_photos` does.

    Args:
      dataset: one of `originals.FILES`, "celeb_a_hq" with its size: "celeb_a_hq/256".
      images: folder of the files.
      out: where TFDS data sets are stored, `data_dir`.
      console: shows the progress.

    Raises:
      InputError: files that are missing or damaged, another set in `out`, a full disk.
    """
    name = dataset.split("/")[0]
    if name not in originals.FILES:
        raise InputError(
            f"--dataset is {dataset!r}; it must be one of {', '.join(originals.FILES)}."
        )
    if not images.is_dir():
        raise InputError(
            f"--images={images} is no folder; put {originals.FILES[name]} into one."
        )
    try:
        builder = tfds.builder(dataset, data_dir=str(out), file_format="array_record")
    except Exception as error:  # no such version or configuration
        raise InputError(f"TFDS has no data set {dataset!r} ({error}).") from error
    features = dict(builder.info.features)
    if name == "celeb_a":
        items, read = originals.celeb_a(images)
        stored = {"image", *items["train"][0][1]}
        features = {key: value for key, value in features.items() if key in stored}
    elif name == "celeb_a_hq":
        items, read = originals.celeb_a_hq(images, features["image"].shape[0])
    elif name == "cifar10":
        items, read, features["label"].names = originals.cifar10(images)
    else:
        items, read = originals.mnist(images)
    made = _Set(
        name,
        str(builder.version),
        tfds.features.FeaturesDict(features),
        items,
        read,
        {"dataset": dataset},
    )
    _write(made, Path(builder.data_path), console)
    console.print(
        f"Train on it with --config.data.source=tfds --config.data.name={dataset} "
        f"--config.data.dir={out}",
        soft_wrap=True,
        highlight=False,
    )


def _write(made: _Set, out: Path, console: Console) -> None:
    """Writes all files that are not written yet, then what TFDS wants to know of them."""
    digest = hashlib.sha256()
    for split, items in made.items.items():
        digest.update(split.encode())
        for name, features in items:  # the name, or the pixels
            digest.update(name.encode() if isinstance(name, str) else name.tobytes())
            digest.update(repr(features).encode())
    count = sum(map(len, made.items.values()))
    plan = {**made.made_with, "images": count, "digest": digest.hexdigest()}
    try:
        if _begin(out, plan):
            console.print(f"{out} is prepared already.", soft_wrap=True)
            return
        _finish(made, out, _write_shards(made, out, count, console), console)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written to ({error.strerror or error}); what is written "
            "stays: give it room, and the same command goes on."
        ) from error
    except concurrent.futures.process.BrokenProcessPool as error:
        raise InputError(
            "A process that reads images has died (killed, perhaps for memory); what is "
            "written stays: the same command goes on."
        ) from error


def _begin(out: Path, plan: dict[str, Any]) -> bool:
    """Whether all is done already; refuses a folder that holds anything else."""
    path = out / PLAN
    if path.is_file():
        if json.loads(path.read_text()) != plan:
            raise InputError(
                f"{out} holds a data set of other images, or of another size or crop; "
                "name another folder for --out."
            )
        return not (out / PROGRESS).is_dir()
    if out.is_dir() and any(
        entry.name not in (PROGRESS, "prepare.new") for entry in out.iterdir()
    ):
        raise InputError(f"{out} is not empty; name another folder for --out.")
    (out / PROGRESS).mkdir(parents=True, exist_ok=True)
    _write_whole(path, json.dumps(plan, indent=2) + "\n")
    return False


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


_read = None  # in a process of the pool: what it reads with


def _initialize(read: Callable[[Any], dict[str, Any]]) -> None:
    global _read
    _read = read
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process of the pool would wait for work forever when the one that gives it is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _example(item: Any) -> dict[str, Any] | str:
    """The example, or why there is none."""
    try:
        return _read(item)
    except InputError as error:
        return str(error)


def _write_shards(
    made: _Set, out: Path, count: int, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Writes the files in order; returns of each split the notes on each file: bytes of its records, unreadable images."""
    bytes_each = math.prod(made.features["image"].shape) // 2
    per_shard = min(max(1, SHARD_BYTES // bytes_each), max(64, -(-count // SHARDS)))
    notes: dict[str, list[dict[str, Any]]] = {split: [] for split in made.items}
    bar = Progress(
        TextColumn("images"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    pool = concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(),
        multiprocessing.get_context("spawn"),
        initializer=_initialize,
        initargs=(made.read,),
    )
    with bar, pool:
        task = bar.add_task("", total=count)
        for split, items in made.items.items():
            shards = -(-len(items) // per_shard)
            for shard in range(shards):
                file = f"{made.name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
                note = out / PROGRESS / f"{file}.json"
                block = items[shard * per_shard : (shard + 1) * per_shard]
                if note.is_file():
                    bar.advance(task, len(block))
                else:
                    examples = pool.map(_example, block, chunksize=8)
                    tracked = bar.track(examples, task_id=task)
                    about = _write_shard(made.features, out / PROGRESS / file, tracked)
                    os.replace(out / PROGRESS / file, out / file)
                    _write_whole(note, json.dumps(about))
                notes[split].append(json.loads(note.read_text()))
    return notes


def _write_shard(features, path, examples):
    """Writes one file; returns the note on it."""
    serializer = ExampleSerializer(features.get_serialized_info())
    sizes, unreadable = [], []
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        if isinstance(example, str):
            unreadable.append(example)
        else:
            record = serializer.serialize_example(features.encode_example(example))
            writer.write(record)
            sizes.append(len(record))
    writer.close()
    return {"examples": len(sizes), "bytes": sum(sizes), "unreadable": unreadable}


def _finish(
    made: _Set, out: Path, notes: dict[str, list[dict[str, Any]]], console: Console
) -> None:
    """Writes the metadata and the report."""
    unreadable = [
        line
        for of_split in notes.values()
        for note in of_split
        for line in note["unreadable"]
    ]
    if unreadable:
        (out / REPORT).write_text("".join(f"{line}\n" for line in unreadable))
        console.print(
            f"{len(unreadable)} images were left out; {out / REPORT} says why.",
            soft_wrap=True,
        )
    empty = [split for split in notes if not any(n["examples"] for n in notes[split])]
    if empty:
        raise InputError(
            f"No image of the {empty[0]} split could be read ({unreadable[0]}); "
            f"{out / REPORT} lists them all."
        )
    template = tfds.core.ShardedFileTemplate(
        data_dir=out, dataset_name=made.name, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=made.features,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[note["examples"] for note in of_split],
                num_bytes=sum(note["bytes"] for note in of_split),
                filename_template=template.replace(split=split),
            )
            for split, of_split in notes.items()
        ],
        version=made.version,
        check_data=False,
        description=json.dumps(made.made_with),
    )
    shutil.rmtree(out / PROGRESS)
    counts = ", ".join(
        f"{sum(note['examples'] for note in of_split):,} {split}"
        for split, of_split in notes.items()
    )
    console.print(f"Prepared {out}: {counts}.", soft_wrap=True)
