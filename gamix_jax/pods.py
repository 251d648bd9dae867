"""Processes that train together: their start, what they must agree on, and what is said when one of them dies."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gamix_jax.errors import InputError

Found = TypeVar("Found")

HEARTBEAT_SECONDS = 30  # without a sign of life, until a process counts as dead
START_SECONDS = 300  # for all processes to come

# Reads lines to the end and prints the last one, if that is not empty.
_KEEPER = 'trap "" TERM INT HUP; last=; while IFS= read -r line; do last=$line; done; [ -z "$last" ] || printf "%s\\n" "$last" >&2'


class LastWords:
    """A sentence that is printed if this process dies without a word: XLA aborts where another process is gone.

    It is kept by a shell at the other end of a pipe, which closes when the process ends,
    whatever ends it.
    """

    def __init__(self, sentence: str):
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self.replace(sentence)

    def replace(self, sentence: str) -> None:
        """Another sentence in place of the one before; "" for none."""
        with contextlib.suppress(BrokenPipeError):  # the keeper was killed
            self._keeper.stdin.write(sentence + "\n")
            self._keeper.stdin.flush()

    def close(self) -> None:
        """Nothing is left to say."""
        self.replace("")
        with contextlib.suppress(BrokenPipeError):
            self._keeper.communicate()


def start_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> LastWords:
    """Starts `jax.distributed`; to be called before anything else of JAX.

    Args:
      coordinator_address: HOST:PORT of process 0; None, like the next two, where JAX
        finds it: on TPU pods, under Slurm and Open MPI.
      num_processes: of all that train together.
      process_id: of this one, from 0.

    Returns:
      What is printed if this process dies; to be closed when all is done.

    Raises:
      InputError: the addresses are wrong or were not found. Where the others do not
        come, XLA ends the process; it never goes on alone.
    """
    if coordinator_address and not re.fullmatch(r".+:\d+", coordinator_address):
        raise InputError(
            f"--coordinator_address={coordinator_address} must be HOST:PORT, of process 0."
        )
    words = LastWords(
        f"error: the processes did not all come together in {START_SECONDS} seconds; "
        "see what the others say, check that every one was started, that process 0 can "
        "be reached and its port is free, and start all of them again."
    )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        # Connects all devices while all processes are here: gloo waits 30 seconds only.
        jax.block_until_ready(
            jax.pmap(lambda x: jax.lax.psum(x, "all"), "all")(
                np.zeros(jax.local_device_count(), np.float32)
            )
        )
        gather(None)
    except Exception as error:  # of the discovery: whatever an environment lacks
        words.close()
        cause = " ".join(str(error).split())[:200]
        raise InputError(
            f"--distributed could not start ({cause}); outside TPU pods, Slurm and Open MPI "
            "give --coordinator_address=HOST:PORT, --num_processes and --process_id."
        ) from error
    words.replace(
        f"error: process {jax.process_index()} of {jax.process_count()} was ended, as a rule "
        "since another one died or could not be reached (what is printed above says "
        "which); start all of them again with the same command: they go on from the last "
        "checkpoint."
    )
    return words


def gather(value: Any) -> list[Any]:
    """The JSON-able value of every process, in the order of the processes; to be called by all."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def agree(find_out: Callable[[], tuple[Found, dict[str, Any]]]) -> Found:
    """Does something on every process, and goes on only if all succeeded and found the same.

    Args:
      find_out: returns a result and JSON-able facts by name.

    Returns:
      This process's result.

    Raises:
      InputError: on every process alike, what one of them raised, or which facts differ.
    """
    result, facts, failure = None, {}, None
    try:
        result, facts = find_out()
    except (InputError, OSError) as error:
        if jax.process_count() == 1:
            raise
        failure = str(error)
    reports = gather({"facts": facts, "failure": failure})
    for process, report in enumerate(reports):
        if report["failure"]:
            raise InputError(f"Process {process}: {report['failure']}")
    expected = reports[0]["facts"]
    differing = [
        f"{name} is {_brief(expected.get(name))} on process 0 and "
        f"{_brief(report['facts'].get(name))} on process {process}"
        for process, report in enumerate(reports)
        for name in {**expected, **report["facts"]}
        if report["facts"].get(name) != expected.get(name)
    ]
    if differing:
        raise InputError(
            f"The processes do not agree: {'; '.join(differing[:10])}"
            f"{f'; and {len(differing) - 10} more' if len(differing) > 10 else ''}. "
            "Give all of them the same command, code, packages and data."
        )
    return result


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def software() -> dict[str, str]:
    """Versions of what the numbers depend on, and a digest of this package's code."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "pillow")
    return {
        "the code of gamix_jax": digest.hexdigest()[:12],
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def fingerprint(tree: Any) -> str:
    """Digest of all arrays of a pytree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]
