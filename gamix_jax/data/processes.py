"""What the processes that read images have in common."""

import multiprocessing
import os
import signal
import threading


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where Slurm gives a job some of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def follow_parent(*_: object) -> None:
    """Leaves Ctrl-C to the process that started this one, and ends once that is gone, even killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
