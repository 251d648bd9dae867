"""Writes a TFDS data set as array_record files: in parallel, resumable, the same bytes every time."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

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

from gamix_jax.data.processes import core_count, follow_parent
from gamix_jax.errors import NO_ROOM, InputError

# A file holds about this many bytes of PNG, but a set has about this many files or more,
# for each is begun anew after an interruption.
SHARD_BYTES, SHARDS = 2**27, 16
# What lies beside the files: what they were made of, and what was left out.
PLAN, REPORT = "prepare.json", "unreadable.txt"
# Holds the file that is being written, and notes on those that are; gone at the end.
PROGRESS = ".prepare"


class Reader(Protocol):
    """Makes examples; can be pickled."""

    def __call__(self, item: Any) -> dict[str, Any]:
        """The example of an item; raises InputError where there is none."""

    def identity(self, item: Any) -> bytes:
        """What a change of the item would change."""


@dataclasses.dataclass(frozen=True)
class ExampleSet:
    """A data set to be written."""

    name: str
    version: str
    features: tfds.features.FeaturesDict
    items: dict[str, Sequence[Any]]  # of each split, what `read` makes an example of
    read: Reader
    made_with: dict[str, Any]  # JSON-able


def write_set(made: ExampleSet, out: Path, console: Console) -> None:
    """Writes all files that are not written yet, then what TFDS wants to know of them.

    Raises:
      InputError: `out` holds anything else, it cannot be written to, no example of a
        split can be read, or a process died.
    """
    digest = hashlib.sha256()
    for split, items in made.items.items():
        digest.update(split.encode())
        for item in items:
            digest.update(made.read.identity(item))
    count = sum(map(len, made.items.values()))
    plan = {**made.made_with, "images": count, "digest": digest.hexdigest()}
    try:
        if _begin(out, plan):
            console.print(
                f"{out} is prepared already; delete it to prepare it again.",
                soft_wrap=True,
                markup=False,
            )
            return
        _finish(made, out, _write_shards(made, out, count, console), console)
    except OSError as error:
        full = error.errno in NO_ROOM
        cure = "give it room" if full else "see to that, or name another --out"
        raise InputError(
            f"{out} cannot be written to ({error.strerror or error}); what is written "
            f"stays and the same command goes on: {cure}."
        ) from error
    except BrokenProcessPool as error:
        raise InputError(
            "A process that reads images has died, killed for memory perhaps; what is "
            "written stays and the same command goes on: give it memory."
        ) from error


def _begin(out: Path, plan: dict[str, Any]) -> bool:
    """Whether all is done already; refuses a folder that holds anything else."""
    path = out / PLAN
    if path.is_file():
        if json.loads(path.read_text()) != plan:
            raise InputError(
                f"{out} holds a data set of other images, or of another size or crop; "
                "delete it, or name another --out."
            )
        return not (out / PROGRESS).is_dir()
    if out.is_dir() and any(entry.name != PROGRESS for entry in out.iterdir()):
        raise InputError(f"{out} is not empty; name another --out.")
    (out / PROGRESS).mkdir(parents=True, exist_ok=True)
    _write_whole(out, path, json.dumps(plan, indent=2) + "\n")
    return False


def _write_whole(out: Path, path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    (out / PROGRESS / "new").write_text(text)
    os.replace(out / PROGRESS / "new", path)


_read = None  # in a process of the pool: what it reads with


def _initialize(read: Reader) -> None:
    global _read
    _read = read
    follow_parent()


def _example(item: Any) -> dict[str, Any] | str:
    """The example, or why there is none."""
    try:
        return _read(item)
    except InputError as error:
        return str(error)


def _write_shards(
    made: ExampleSet, out: Path, count: int, console: Console
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
        core_count(),
        multiprocessing.get_context("spawn"),
        initializer=_initialize,
        initargs=(made.read,),
    )
    # Left by Ctrl-C, it would else finish what it was given.
    with bar, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        task = bar.add_task("", total=count)
        for split, items in made.items.items():
            shards = -(-len(items) // per_shard)
            for shard in range(shards):
                file = f"{made.name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
                note = out / PROGRESS / f"{file}.json"
                block = items[shard * per_shard : (shard + 1) * per_shard]
                about = json.loads(note.read_text()) if note.is_file() else None
                # Those with images that could not be read are tried again.
                if about is None or about["unreadable"]:
                    examples = pool.map(_example, block, chunksize=8)
                    about = _write_shard(
                        made.features,
                        out / PROGRESS / file,
                        _advancing(examples, lambda: bar.advance(task)),
                    )
                    os.replace(out / PROGRESS / file, out / file)
                    _write_whole(out, note, json.dumps(about))
                else:
                    bar.advance(task, len(block))
                notes[split].append(about)
    return notes


def _advancing(examples: Iterable[Any], advance: Callable[[], None]) -> Iterator[Any]:
    for example in examples:
        yield example
        advance()


def _write_shard(
    features: tfds.features.FeaturesDict,
    path: Path,
    examples: Iterable[dict[str, Any] | str],
) -> dict[str, Any]:
    """Writes the examples, leaving out those that are the reason why there is none; returns the note on the file."""
    serializer = ExampleSerializer(features.get_serialized_info())
    sizes, unreadable = [], []
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        if isinstance(example, str):
            unreadable.append(example)
        else:
            record = serializer.serialize_example(features.encode_example(example))
            with _as_os_error():
                writer.write(record)
            sizes.append(len(record))
    with _as_os_error():
        writer.close()
    return {"examples": len(sizes), "bytes": sum(sizes), "unreadable": unreadable}


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """array_record raises RuntimeError with the system's message, among much else, where it cannot write."""
    try:
        yield
    except RuntimeError as error:
        for number in NO_ROOM:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise OSError(str(error).split(";")[0]) from error


def _finish(
    made: ExampleSet,
    out: Path,
    notes: dict[str, list[dict[str, Any]]],
    console: Console,
) -> None:
    """Writes the metadata and the report."""
    unreadable = [
        line
        for of_split in notes.values()
        for note in of_split
        for line in note["unreadable"]
    ]
    if unreadable:
        text = "".join(f"{line}\n" for line in unreadable)
        (out / REPORT).write_text(text, errors="surrogateescape")
        console.print(
            f"Left out as unreadable: {len(unreadable)}; {out / REPORT} says which and why.",
            soft_wrap=True,
            markup=False,
        )
    else:
        (out / REPORT).unlink(missing_ok=True)  # of a run before
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
    console.print(f"Prepared {out}: {counts}.", soft_wrap=True, markup=False)
