"""What a configuration amounts to: keys, parameters, arithmetic and memory, without running a step."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from gamix_jax.config_check import check_config
from gamix_jax.errors import raise_if_memory_is_full
from gamix_jax.parallel import compile_mapped, pmapped
from gamix_jax.state import create_state
from gamix_jax.steps import make_train_step

# Bytes a second that a device sends, as the makers state them, and how many it joins.
LINKS = {
    "NVLink 4\n450 GB/s": (450e9, 8),  # within a host
    "TPU v5e ICI\n100 GB/s": (100e9, 256),  # 1,600 Gb/s a chip, half of them each way
    "InfiniBand\n50 GB/s": (50e9, 512),  # NDR, 400 Gb/s, a port for each GPU
    "Ethernet\n1.6 GB/s": (1.5625e9, 512),  # 100 Gb/s for a host of 8 GPUs
}
DEVICES = (8, 64, 512)
# Assumed of a device; benchmarks measure what it really does.
ASSUMED_FLOP_RATE = 100e12


def describe(config: ml_collections.ConfigDict, console: Console) -> None:
    """Prints the configuration, the parameters of each module, and the floating-point operations, the sums over devices and the memory of a training step.

    For the last the step is compiled for the devices of this machine, last of all.
    """
    check_config(config, jax.device_count())
    console.print(str(config), markup=False, highlight=False)
    console.print(parameter_table(config))
    gflop = training_gflop_per_image(config)
    console.print(
        f"{gflop:.4g} GFLOP per image for a training step (a multiply-add counts 2)"
    )
    reduced = reduced_bytes(config)
    console.print(
        "Summed over the devices at each step: "
        + ", ".join(f"{kind} {count:,} bytes" for kind, count in reduced.items())
    )
    console.print(
        scaling_table(
            sum(reduced.values()), gflop, config.train.batch_size // jax.device_count()
        )
    )
    console.print("Compiling the step, for its memory (a minute or two, once) ...")
    try:
        allotted = memory(compile_mapped(*abstract_step(config)))
    except jax.errors.JaxRuntimeError as error:
        raise_if_memory_is_full(error)
        raise
    console.print(
        f"Memory of a training step on each {jax.devices()[0].device_kind}: "
        f"{sum(allotted.values()) / 2**20:,.0f} MiB, of them "
        + ", ".join(f"{what} {size / 2**20:,.1f}" for what, size in allotted.items())
    )


def memory(step: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on a device during a compiled step, by what they are, as XLA allots them: the peak is their sum.

    State and batch come in; results are what goes out and does not take the state's
    place; temporary are activations, gradients and room for single operations.
    """
    allotted = step.memory_analysis()
    return {
        "state and batch": allotted.argument_size_in_bytes,
        "results": allotted.output_size_in_bytes - allotted.alias_size_in_bytes,
        "temporary": allotted.temp_size_in_bytes,
    }


def parameter_table(config: ml_collections.ConfigDict) -> Table:
    """Numbers of parameters per module: trainable, and statistics of normalisation."""
    state = jax.eval_shape(lambda: create_state(config))
    table = Table("module", "trainable", "statistics", title="Parameters")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, params: Any, batch_stats: Any) -> None:
        table.add_row(
            name,
            *(
                f"{sum(x.size for x in jax.tree.leaves(tree)):,}"
                for tree in (params, batch_stats)
            ),
        )

    params, batch_stats = state.generator_params, state.generator_batch_stats
    for module in ("encoder", "decoder"):
        row(f"  {module}", params[module], batch_stats.get(module, {}))
    # The networks and the heads apart, as the published code and its parameter counts
    # have them.
    networks = {name: params[name] for name in ("encoder", "decoder")}
    row("autoencoder", networks, batch_stats)
    row("mixture head", params["head"], {})
    if config.model.prior != "normal":
        rest = {k: v for k, v in params.items() if k not in (*networks, "head")}
        row(f"prior ({config.model.prior})", rest, {})
    if config.adversarial.loss != "none":
        row(
            "discriminator", state.discriminator_params, state.discriminator_batch_stats
        )
    return table


def training_gflop_per_image(config: ml_collections.ConfigDict) -> float:
    """10^9 floating-point operations of a training step per image: those of convolutions and matrix products, a multiply-add counts 2.

    What is computed again to save memory counts again. It is the same on every machine:
    counted in bfloat16's step, for a CPU computes float32's convolutions by fewer
    operations (models/winograd.py).
    """
    config = config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    step, state, batch = abstract_step(config)
    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    flop = sum(times * operations(e) for e, times in equations(jaxpr))
    return flop / 1e9 / batch.shape[1]


def operations(equation: Any) -> int:
    """Floating-point operations of a convolution or a matrix product, else 0; products with padding and dilation do not count."""
    if equation.primitive.name not in ("conv_general_dilated", "dot_general"):
        return 0
    (left, right), (out,) = (
        [v.aval for v in of] for of in (equation.invars, equation.outvars)
    )
    parameters = equation.params
    if equation.primitive.name == "dot_general":
        contracted, _ = parameters["dimension_numbers"][0]
        return 2 * out.size * math.prod(left.shape[i] for i in contracted)
    numbers = parameters["dimension_numbers"]
    outside = math.prod(out.shape[i] for i in numbers.out_spec[:2])
    products = 2 * outside * right.shape[numbers.rhs_spec[1]]
    dimensions = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        parameters["window_strides"],
        parameters["padding"],
        parameters["lhs_dilation"],
        parameters["rhs_dilation"],
        strict=True,
    )
    for i, j, k, stride, (before, _), spread, apart in dimensions:
        place = (
            np.arange(out.shape[k])[:, None] * stride
            + np.arange(right.shape[j]) * apart
            - before
        )
        inside = (place >= 0) & (place < left.shape[i] * spread) & (place % spread == 0)
        products *= int(inside.sum())
    return products


def abstract_step(config: ml_collections.ConfigDict) -> tuple:
    """The mapped step, and the shapes of its state and of its batch."""
    size, channels = config.data.size, config.data.channels
    count = config.train.batch_size // jax.device_count()
    shape = (jax.local_device_count(), count, size, size, channels)
    return (
        pmapped(make_train_step(config), donate_state=True),
        jax.eval_shape(lambda: create_state(config)),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
    )


def reduced_bytes(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Bytes that a training step sums over the devices, by what they are: gradients, moments, statistics (of batch normalisation), metrics.

    Counted in the step itself, forward and backward; each is what one device puts in.
    """
    step, state, batch = abstract_step(config)
    result = dict.fromkeys(("gradients", "moments", "statistics", "metrics"), 0)
    for equation, times in equations(jax.make_jaxpr(step)(state, batch).jaxpr):
        if equation.primitive.name not in ("psum", "pmin", "pmax"):
            continue
        kinds = {
            "gradients": "gradients",
            "moments": "moments",
            "BatchNorm": "statistics",
        }
        scope = str(equation.source_info.name_stack)
        kind = next((kind for name, kind in kinds.items() if name in scope), "metrics")
        sizes = (v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
        result[kind] += times * sum(sizes)
    return result


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Each equation of a program and of those it calls, and how often it is computed."""
    for equation in jaxpr.eqns:
        yield equation, times
        again = times * equation.params.get("length", 1)  # of a scan
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)  # a closed one holds an open one
            if hasattr(inner, "eqns"):
                yield from equations(inner, again)


def ring_seconds(bytes_reduced: int, devices: int, rate: float) -> float:
    """Seconds of a sum on a ring without latency: each device sends 2 (n - 1) / n of the bytes (Patarasuk and Yuan 2009) at `rate`, bytes a second."""
    return 2 * (devices - 1) / devices * bytes_reduced / rate


def scaling_table(bytes_reduced: int, gflop: float, images: int) -> Table:
    """What summing costs, see `ring_seconds`.

    Args:
      bytes_reduced: at a step.
      gflop: per image.
      images: of each device at a step, however many devices there are.
    """
    computing = images * gflop * 1e9 / ASSUMED_FLOP_RATE
    title = (
        f"Share of a step spent computing, if {images} images a device take {1e3 * computing:.3g} "
        f"ms ({ASSUMED_FLOP_RATE / 1e12:.0f} TFLOP/s) and sums wait for it; time of the sums, "
        "without latency"
    )
    table = Table("devices", "images\na step", "sent by\neach", *LINKS, title=title)
    for column in table.columns:
        column.justify = "right"
    for devices in DEVICES:
        cells = []
        for rate, most in LINKS.values():
            seconds = ring_seconds(bytes_reduced, devices, rate)
            share = f"{computing / (computing + seconds):.1%}\n{1e3 * seconds:.2g} ms"
            cells.append(share if devices <= most else "-")
        sent = ring_seconds(bytes_reduced, devices, 2**20)
        table.add_row(f"{devices}", f"{devices * images:,}", f"{sent:,.1f} MiB", *cells)
    return table
