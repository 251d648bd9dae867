"""The order of the batches, by any number of processes and workers; position; transfer; what happens to a dead worker."""

import io
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter, deque

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_data import data_config, photo, with_bad_ones

from gamix_jax.data import (
    Images,
    choose_workers,
    evaluation_batches,
    open_images,
    prepare,
    train_batches,
)
from gamix_jax.data import batches as batches_module
from gamix_jax.data.batches import shuffled
from gamix_jax.data.sources import ArraySource
from gamix_jax.errors import InputError
from gamix_jax.parallel import put_on_devices


def numbered(count=10, **config):
    """Images whose every pixel is their number, but for a mark in the upper left corner."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1)
    ).copy()
    images[:, 0, 0] = 255
    source = ArraySource(images, None)
    return Images(source, np.arange(count), data_config(size=2, **config))


def on_disk(tmp_path, count=10):
    """The same, as files that are read anew each time."""
    pixels = np.stack([image for image in numbered(count)])[..., 0]
    np.save(tmp_path / "images.npy", pixels)
    config = {"source": "array", "dir": str(tmp_path / "images.npy"), "size": 2}
    return open_images(
        data_config(**config, test_fraction=0.0, memory_gib=0.0), "train"
    )


def numbers(batch):
    return batch[:, 1, 1, 0].tolist()


def take(batches, count):
    return [numbers(next(batches)) for _ in range(count)]


# Order


def test_every_image_once_an_epoch_and_another_order_each_time():
    order = sum(take(train_batches(numbered(), 4, seed=0, flip=False), 15), [])
    epochs = [order[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert order == sum(take(train_batches(numbered(), 4, seed=0, flip=False), 15), [])
    assert order != sum(take(train_batches(numbered(), 4, seed=1, flip=False), 15), [])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_take_blocks_of_the_same_global_batches(count):
    """Flips too."""
    whole = train_batches(numbered(), 8, seed=3, flip=True)
    shares = [
        train_batches(numbered(), 8, 3, True, process, count)
        for process in range(count)
    ]
    for _ in range(10):
        blocks = np.concatenate([next(share) for share in shares])
        np.testing.assert_array_equal(blocks, next(whole))


def test_position_goes_on_where_it_was():
    batches = train_batches(numbered(), 4, seed=0, flip=True)
    for _ in range(3):
        next(batches)
    position = batches.get_state()
    expected = [next(batches) for _ in range(5)]
    again = train_batches(numbered(), 4, seed=0, flip=True)
    again.set_state(position)
    np.testing.assert_array_equal([next(again) for _ in range(5)], expected)


def test_flip_mirrors_half_of_the_images_left_to_right():
    batches = train_batches(numbered(), 100, seed=0, flip=True)
    images = np.concatenate([next(batches) for _ in range(20)])
    mirrored = np.sum(images[:, 0, 1, 0] == 255)
    assert mirrored + np.sum(images[:, 0, 0, 0] == 255) == 2000
    assert abs(mirrored - 1000) < 4 * np.sqrt(
        2000 / 4
    )  # four standard errors of a fair coin
    again = [next(train_batches(numbered(), 4, 0, False))[:, 0, 0, 0] for _ in range(2)]
    assert np.all(np.array(again) == 255)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_covers_every_image_once(processes):
    seen = Counter()
    for process in range(processes):
        for batch in evaluation_batches(numbered(), 4, process, processes):
            assert batch["image"].shape == (4 // processes, 2, 2, 1)
            assert batch["index"].dtype == np.int32
            real = batch["index"] >= 0
            assert numbers(batch["image"][real]) == batch["index"][real].tolist()
            seen.update(batch["index"].tolist())
    assert seen == Counter({**dict.fromkeys(range(10), 1), -1: 2})


def test_shuffled_is_a_permutation_of_each_epoch():
    order = shuffled(np.arange(3000), 1000, seed=5)
    epochs = order.reshape(3, 1000)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(1000), (3, 1)))
    np.testing.assert_array_equal(
        shuffled(np.array([2500, 7]), 1000, 5), order[[2500, 7]]
    )
    # Pairs of permutations of 1,000 agree at 1 place on average, at more than 10 with
    # probability 1e-8 (the number of agreements is close to Poisson's with mean 1).
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.sum(epochs[a] == epochs[b]) <= 10
    assert np.sum(epochs[0] == shuffled(np.arange(1000), 1000, 6)) <= 10


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("process", "count", "start"), [(0, 1, 0), (1, 2, 6), (2, 4, 6)]
)
def test_workers_change_nothing(tmp_path, workers, process, count, start):
    """With flips, for several processes, from the start and in the middle of an epoch: 24 images of epochs of 10."""
    args = (on_disk(tmp_path), 4, 7, True, process, count)
    threads = train_batches(*args)
    expected = [next(threads) for _ in range(12)][start:]
    batches = train_batches(*args, workers=workers)
    batches.set_state({"next_batch": start})
    np.testing.assert_array_equal([next(batches) for _ in expected], expected)
    assert batches.get_state() == threads.get_state() == {"next_batch": 12}
    batches.close()


def test_a_dead_worker_ends_the_run(tmp_path):
    batches = train_batches(on_disk(tmp_path), 2, 0, False, workers=1, prefetch=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"has died .* -9.*config\.data\.workers"):
        deque(itertools.islice(batches, 100))  # more than is read ahead


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """They hold the pipe that is read here until they end."""
    script = f"""
import os, pathlib, signal, sys
sys.path[:0] = {sys.path!r}
from test_batches import on_disk, train_batches

if __name__ == "__main__":
    batches = train_batches(on_disk(pathlib.Path({str(tmp_path)!r})), 2, 0, False, workers=2)
    for _ in range(20):
        next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "run.py").write_text(script)
    result = subprocess.run(
        [sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, timeout=40
    )
    assert result.returncode == -signal.SIGKILL


def test_a_worker_names_what_it_cannot_read(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    config = data_config(
        source="folder", dir=str(tmp_path), size=4, test_fraction=0.0, memory_gib=0.0
    )
    batches = train_batches(open_images(config, "train"), 8, 0, False, workers=1)
    with pytest.raises(InputError, match=r"bad\.png is not a readable image"):
        next(batches)


def test_what_a_worker_cannot_decode_is_known_here(tmp_path):
    with_bad_ones(tmp_path)
    config = data_config(
        source="folder",
        dir=str(tmp_path),
        size=4,
        test_fraction=0.0,
        memory_gib=0.0,
        max_bad_fraction=0.1,
    )
    images = [open_images(config, "train") for _ in range(2)]
    by_worker, by_threads = (
        train_batches(each, 10, 0, False, workers=workers)
        for each, workers in zip(images, (1, 0), strict=True)
    )
    for _ in range(2):  # an epoch
        np.testing.assert_array_equal(next(by_worker), next(by_threads))
    by_worker.close()
    assert images[0].unreadable == images[1].unreadable
    assert sorted(images[0].unreadable) == [3, 4]


@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_workers_open_the_source_for_themselves(tmp_path, source):
    for i in range(5):
        photo(tmp_path / f"photos/{i}.png", seed=i)
    if source == "tfds":
        console = Console(file=io.StringIO())
        prepare.prepare_photos(
            tmp_path / "photos", tmp_path / "set", 4, "center", console
        )
    folder = tmp_path / ("photos" if source == "folder" else "set")
    config = {"source": source, "dir": str(folder), "size": 4, "memory_gib": 0.0}
    config |= {"test_fraction": 0.0, "test_split": ""}
    images = open_images(data_config(**config), "train")
    batches = [train_batches(images, 2, 0, True, workers=count) for count in (0, 1)]
    for _ in range(6):
        np.testing.assert_array_equal(*(next(each) for each in batches))
    for each in batches:
        each.close()


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (4, 2), (64, 8)])
def test_workers_are_chosen_by_size_and_cores(tmp_path, monkeypatch, cores, workers):
    """Half of the cores, 2 to 8, for a set that is not in memory."""
    monkeypatch.setattr(batches_module, "core_count", lambda: cores)
    assert choose_workers(on_disk(tmp_path), -1) == workers
    assert choose_workers(on_disk(tmp_path), 3) == 3
    assert choose_workers(numbered(), 3) == choose_workers(numbered(), -1) == 0


def test_the_next_batch_is_on_the_devices_before_it_is_asked_for():
    devices = jax.local_device_count()
    second = threading.Event()
    seen = []

    def put(batch):
        seen.append(batch)
        if len(seen) == 2:
            second.set()
        return put_on_devices(batch)

    batches = train_batches(numbered(100), 2 * devices, 0, False, put=put)
    first = next(batches)
    assert second.wait(60)
    assert first.shape == (devices, 2, 2, 2, 1)
    assert len(first.sharding.device_set) == devices
    np.testing.assert_array_equal(np.reshape(first, (-1, 2, 2, 1)), seen[0])


class Drawn:
    """100,000 images that are drawn as they are asked for."""

    in_memory = False

    def __init__(self):
        self.drawn = 0

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        self.drawn += 1
        return Image.new("RGB", (16, 16), (index % 256, 0, 0))


def resident_mebibytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_a_large_set_starts_at_once_and_holds_memory_flat():
    """Streaming 100 batches of 512 is 38 MiB of pixels; a tenth of it may stay, once all threads run."""
    source = Drawn()
    config = data_config(size=16, channels=3, memory_gib=0.0)
    images = Images(source, np.arange(len(source)), config)
    batches = train_batches(images, 512, 0, False, prefetch=2)
    assert source.drawn == 0
    next(batches)
    # The batch, those on the devices, those that threads read ahead, one in each queue.
    assert source.drawn <= 512 * 8
    for _ in range(20):
        next(batches)
    before = resident_mebibytes()
    for _ in range(100):
        next(batches)
    assert resident_mebibytes() - before < 3.8
    batches.close()
