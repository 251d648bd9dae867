"""One process of scaling.py, which starts it: holds a training step ready in both forms, and takes it as often as it is told."""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from gamix_jax import pods
from gamix_jax.cpu import compiler_options
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.state import create_state
from gamix_jax.steps import AXIS, make_train_step

ROUNDING = 1e-4  # of a float32 sum in another order, relative; Adam enlarges it


def shard_over_devices(step: Callable, donate_state: bool = False) -> Callable:
    """What `map_over_devices` does, by jit(shard_map)."""
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    specs = (PartitionSpec(), PartitionSpec(AXIS))
    mapped = jax.jit(
        jax.shard_map(
            lambda state, batch: step(state, jax.tree.map(lambda x: x[0], batch)),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
            check_vma=False,  # gradients as under pmap: the step averages them itself
        ),
        donate_argnums=(0,) if donate_state else (),
        # As pmap has them, see parallel.py.
        compiler_options=compiler_options() if jax.process_count() == 1 else None,
    )
    waits = jax.device_count() > 1 and jax.default_backend() == "cpu"  # as parallel.py

    def everywhere(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if not x.is_fully_addressable:  # as it came out of the last step
            return x
        return multihost_utils.host_local_array_to_global_array(x, mesh, spec)

    def run(state: Any, batch: Any) -> Any:
        if jax.process_count() > 1:
            state, batch = (
                jax.tree.map(lambda x, spec=spec: everywhere(x, spec), tree)
                for tree, spec in zip((state, batch), specs, strict=True)
            )
        result = mapped(state, batch)
        return jax.block_until_ready(result) if waits else result

    return run


FORMS = {"pmap": map_over_devices, "shard_map": shard_over_devices}


def only_count(state: Any, _: jax.Array) -> tuple[Any, jax.Array]:
    """A step without work."""
    state = jax.tree.map(lambda x: x + 1, state)
    return state, jax.lax.pmean(state.step, AXIS)


def difference(a: Any, b: Any) -> float:
    """The largest relative difference, in norm, of two (state, metrics): of the metrics one by one, of the state's parts."""
    parts = []
    for state, metrics in (a, b):
        parts.append([*vars(state).values(), *metrics.values()])

    def norm(x: Any) -> float:
        leaves = [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(x)]
        return float(np.linalg.norm(np.concatenate([*leaves, np.zeros(1)])))

    return max(
        norm(jax.tree.map(np.subtract, x, y)) / max(norm(x), 1e-6)
        for x, y in zip(*map(jax.device_get, parts), strict=True)
    )


def listen(requests: queue.SimpleQueue) -> None:
    """Takes requests from the parent, and ends this process where the parent is gone: it must not go on computing beside others."""
    for line in sys.stdin:
        requests.put(json.loads(line))
        if line == "null\n":
            return
    os._exit(1)


def serve(name: str, requests: queue.SimpleQueue) -> None:
    """Says that all is ready, and what it found; then calls what is asked for, so often, until that is None."""
    config = record.load_config(name)
    count = config.train.batch_size // jax.process_count()
    shape = (jax.process_count(), count, *[config.data.size] * 2, config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch = put_on_devices(images[jax.process_index()])
    steps = {"step": make_train_step(config), "call": only_count}
    initial = create_state(config)
    scalars = jax.tree.map(lambda x: jnp.zeros(()), initial)
    starts = {"step": initial, "call": scalars}
    functions, results = {}, {}

    def prepare(what: str, mapped: Callable) -> Callable[[], Any]:
        state = replicate(jax.tree.map(jnp.copy, starts[what]))

        def go_on() -> Any:
            nonlocal state
            state, metrics = mapped(state, batch)
            return state, metrics

        return go_on

    for what in steps:
        for form, mapping in FORMS.items():
            function = prepare(what, mapping(steps[what], donate_state=True))
            functions[f"{what} {form}"] = function
            results[what, form] = jax.device_get(function())
    answer = {
        "devices": jax.device_count(),
        "difference": difference(*(results["step", form] for form in FORMS)),
        "metrics": {k: float(v) for k, v in results["step", "pmap"][1].items()},
    }
    print(json.dumps(answer), flush=True)
    while request := requests.get():
        function, calls = request
        for _ in range(calls):
            result = functions[function]()
        jax.block_until_ready(result)
        print("{}", flush=True)


def main() -> None:
    name, address, *numbers = sys.argv[1:]
    processes, process = map(int, numbers)
    requests = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests,), daemon=True).start()
    if processes > 1:
        words = pods.start_processes(address, processes, process)
    serve(name, requests)
    if processes > 1:
        words.close()


if __name__ == "__main__":
    main()
