"""Batches by Grain, in an order that is a function of seed and position alone."""

import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from gamix_jax.data.images import Images, permutation
from gamix_jax.data.processes import core_count, follow_parent
from gamix_jax.errors import InputError

# Batches kept on the devices ahead of the step that takes them.
ON_DEVICE = 2


def shuffled(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which image is at each position of an endless order of epochs, in each of which every image comes once.

    Args:
      positions: int [n], at least 0.
      count: of images.
      seed: of the order, in [0, 2**64).

    Returns:
      int64 [n], in [0, count).
    """
    epochs, places = np.divmod(positions, count)
    order = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs).tolist():
        with _order_lock:
            of_epoch = _epoch_order(count, seed, epoch)
        order[epochs == epoch] = of_epoch[places[epochs == epoch]]
    return order


_order_lock = threading.Lock()  # many threads come to a new epoch at once


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(count, seed, epoch)


class TrainBatches(Iterator[Any]):
    """Endless batches, and the position that they are at. Nothing is read before the first is asked for."""

    def __init__(self, make: Callable[[int], grain.DatasetIterator]):
        """Takes a function from a position to an iterator that begins there."""
        self._make, self._position, self._iterator = make, 0, None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._make(self._position)
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "Worker process" not in str(error):
                raise
            code = re.search(r"exit code -?\d+", str(error))
            raise InputError(
                f"A process that reads the data has died ({code[0] if code else error}), "
                "killed for memory perhaps; start again with a lower config.data.workers."
            ) from error
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, JSON-able; the same for any number of processes and workers."""
        return {"next_batch": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave."""
        self.close()
        self._position = state["next_batch"]

    def close(self) -> None:
        """Ends the threads and processes that read ahead; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def choose_workers(images: Images, workers: int) -> int:
    """How many processes read: as asked, but none for a set in memory, where they cost more than they give.

    For -1 half as many as there are cores, at most 8, or none where that is one: one
    reads no more than the threads do (benchmarks/input_pipeline.py).
    """
    if images.in_memory:
        return 0
    half = min(8, core_count() // 2)
    return workers if workers >= 0 else half if half > 1 else 0


def train_batches(
    images: Images,
    batch_size: int,
    seed: int,
    flip: bool,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 8,
    put: Callable[[np.ndarray], Any] = lambda batch: batch,
) -> TrainBatches:
    """Endless shuffled batches of this process's share of each global batch.

    The global order is a function of the seed alone: every image once an epoch, epochs
    shuffled differently, batches running on over the end of an epoch. Process p takes
    the p-th block of each global batch, so the global batches do not depend on the
    number of processes, nor on who reads them.

    Args:
      images: of the split.
      batch_size: of all processes together; a multiple of `process_count`.
      seed: of the order and the flips.
      flip: mirror each image left to right with probability 1/2.
      process_index: in [0, process_count).
      process_count: processes that train together.
      workers: processes that read, as `choose_workers` takes it; 0 reads in threads of
        this one. Each takes a second or two to start, and wants a main module that
        begins with `if __name__ == "__main__"`.
      prefetch: batches that are read ahead, each by a thread of its own.
      put: takes each batch to the devices, in a thread of its own.

    Returns:
      Iterator of what `put` makes of uint8 [batch_size / process_count, size, size,
      channels].
    """
    count, share = len(images), batch_size // process_count

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        block = slice(process_index * share, (process_index + 1) * share)
        positions = np.arange(number * batch_size, (number + 1) * batch_size)[block]
        indices = shuffled(positions, count, seed)
        batch = images.read(indices)
        if flip:
            bits = np.random.PCG64((seed, number)).random_raw(batch_size)[block]
            mirrored = bits >> 63 == 1
            batch[mirrored] = batch[mirrored, :, ::-1]
        return batch, np.where(images.is_unreadable(indices), indices, -1)

    def take(batch: np.ndarray, unreadable: np.ndarray) -> Any:
        found = unreadable[unreadable >= 0]
        if not images.is_unreadable(found).all():
            images.read(found)  # so that this process knows what another one found
        return put(batch)

    workers = choose_workers(images, workers)
    threads = max(1, prefetch // max(1, workers))

    def make(position: int) -> grain.DatasetIterator:
        numbers = grain.MapDataset.range(position, np.iinfo(np.int64).max)
        dataset = numbers.map(read).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain asks them, even in a notebook
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers), follow_parent
            )
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(
                dataset.map(lambda read: take(*read)),
                prefetch_buffer_size=ON_DEVICE,
            )
        )

    return TrainBatches(make)


def evaluation_batches(
    images: Images,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 8,
    chosen: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every image once, in order, in batches of one size: the last one is padded.

    Args:
      images: of the split.
      batch_size: of all processes together; a multiple of `process_count`.
      process_index: in [0, process_count).
      process_count: processes that evaluate together.
      prefetch: batches that are read ahead, each by a thread of its own.
      chosen: indices of the images, instead of all.

    Returns:
      Iterator of {"image": uint8 [batch_size / process_count, size, size, channels],
      "index": int32, the image's place, or -1 for padding and where another stands for
      one that cannot be decoded}.
    """
    chosen = np.arange(len(images)) if chosen is None else chosen
    count, share = len(chosen), batch_size // process_count

    def read(number: int) -> dict[str, np.ndarray]:
        first = number * batch_size + process_index * share
        places = np.arange(first, first + share)
        indices = chosen[places % count]
        batch = images.read(indices)
        counted = (places < count) & ~images.is_unreadable(indices)
        return {
            "image": batch,
            "index": np.where(counted, indices, -1).astype(np.int32),
        }

    dataset = grain.MapDataset.range(-(-count // batch_size)).map(read)
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        )
    )
