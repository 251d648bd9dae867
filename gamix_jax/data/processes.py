"""What the processes that read images have in common."""

import multiprocessing
import os
import threading


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where Slurm gives a job some of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent(*_: object) -> None:
    """Ends this process once the one that started it is gone, even killed: else it waits for it forever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
