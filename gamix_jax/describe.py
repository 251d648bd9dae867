"""What a configuration amounts to: keys, parameters and arithmetic, without allocating or compiling anything."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from rich.console import Console
from rich.table import Table

from gamix_jax.config import check_config
from gamix_jax.parallel import map_over_devices
from gamix_jax.state import create_state
from gamix_jax.steps import make_train_step


def describe(config: ml_collections.ConfigDict, console: Console) -> None:
    """Prints the configuration, the parameters of each module and the floating-point operations of a training step."""
    check_config(config, jax.device_count())
    console.print(str(config), markup=False, highlight=False)
    console.print(parameter_table(config))
    console.print(
        f"{training_gflop_per_image(config):.4g} GFLOP per image for a training step (a multiply-add counts 2)"
    )


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
    """10^9 floating-point operations of a training step per image, counted by XLA before it optimises; chunks are not counted again."""
    # XLA counts the body of a loop over chunks once.
    config = config.copy_and_resolve_references()
    config.objective.component_chunk = 0
    size, channels = config.data.size, config.data.channels
    state = jax.eval_shape(lambda: create_state(config))
    devices, count = (
        jax.local_device_count(),
        config.train.batch_size // jax.device_count(),
    )
    batch = jax.ShapeDtypeStruct((devices, count, size, size, channels), jnp.uint8)
    analysis = (
        map_over_devices(make_train_step(config)).lower(state, batch).cost_analysis()
    )
    return analysis["flops"] / 1e9 / count
