"""How one replica's function runs on all devices: the one place that knows of pmap, but for the first connection in pods.py."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gamix_jax.cpu import compiler_options
from gamix_jax.steps import AXIS


def pmapped(step: Callable, donate_state: bool = False) -> Callable:
    """What `map_over_devices` runs, to be looked into: traced, lowered or compiled."""
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate_state else (),
    )


def compile_mapped(mapped: Callable, state: Any, batch: Any) -> jax.stages.Compiled:
    """The program of `pmapped` for arguments of these shapes; of one process."""
    return mapped.lower(state, batch).compile(compiler_options())


def map_over_devices(step: Callable, donate_state: bool = False) -> Callable:
    """Runs one replica's `step(state, batch)` on every device of every process, with collectives over axis "batch".

    The state has no device axis: it goes in and comes out as ordinary arrays, replicated
    over the devices; so does everything else that the step returns, which must therefore
    be the same on every replica.

    Args:
      step: (state, batch) to a pytree.
      donate_state: the result may use the state's memory; the state that was given is
        then gone.

    Returns:
      A function of (state, batch), each leaf of the batch [local devices, n, ...] as
      `put_on_devices` makes it.
    """
    mapped = pmapped(step, donate_state)
    if jax.default_backend() != "cpu":
        return mapped
    # Steps in flight at once can block each other's collectives on CPU devices, for good
    # between processes (jax 0.10 to 0.12).
    # What pmap compiled takes no local arrays of several processes: those run without
    # `compiler_options`.
    if jax.process_count() > 1:
        return lambda state, batch: jax.block_until_ready(mapped(state, batch))
    programs = {}

    def run(state: Any, batch: Any) -> Any:
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in programs:
            programs[shapes] = compile_mapped(mapped, state, batch)
        result = programs[shapes](state, batch)
        return result if jax.device_count() == 1 else jax.block_until_ready(result)

    return run


def _local_sharding(spec: jax.sharding.PartitionSpec) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, spec)


def put_on_devices(batch: Any) -> Any:
    """Leaves [local devices * n, ...] of this process's batch to arrays [local devices, n, ...], a row on each device."""
    devices = jax.local_device_count()
    rows = jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), batch)
    return jax.device_put(rows, _local_sharding(jax.sharding.PartitionSpec(AXIS)))


def replicate(state: Any) -> Any:
    """Arrays copied to every device of this process, as a mapped step returns them: so its first call is its only compilation."""
    return jax.device_put(state, _local_sharding(jax.sharding.PartitionSpec()))
