"""What --mode=describe says that a training step sends."""

import math

import jax
import jax.numpy as jnp
import pytest
from test_steps import tiny_config

from gamix_jax.describe import (
    abstract_step,
    equations,
    memory,
    operations,
    reduced_bytes,
    scaling_table,
    training_gflop_per_image,
)
from gamix_jax.models import convolution
from gamix_jax.parallel import compile_mapped
from gamix_jax.state import create_state


def float32_bytes(tree):
    return sum(4 * x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [
        # D = 4: mean, within and between of the batch, and backward through them
        ({"model__norm": "batch", "discriminator__norm": "batch"}, 6 * 4),
        ({"objective__covariance": "full"}, 2 * (4 + 4 + 16)),
        # with memory again about the pooled mean, and backward through the latter
        ({"objective__moment_decay": 0.9}, 9 * 4),
        # share, first and second of each component
        ({"objective__negentropy_components": 3}, 6 * 4 + 3 * (1 + 4 + 4)),
        ({"objective__kl": "elbo", "adversarial__loss": "none"}, 0),
    ],
)
def test_bytes_summed_over_the_devices(overrides, moments):
    config = tiny_config(**overrides)
    state = jax.eval_shape(lambda: create_state(config))
    result = reduced_bytes(config)
    assert result["gradients"] == float32_bytes(
        (state.generator_params, state.discriminator_params)
    )
    assert result["moments"] == 4 * moments
    # Mean and variance go forward and back; the discriminator's back twice, for its
    # parameters and for the autoencoder's.
    assert result["statistics"] == 2 * float32_bytes(
        state.generator_batch_stats
    ) + 3 * float32_bytes(state.discriminator_batch_stats)
    assert 0 < result["metrics"] < 1000


def test_operations_are_those_of_plain_convolutions(monkeypatch):
    """Not of Winograd's, which a CPU computes in float32; so a run on a GPU counts the same."""
    config = tiny_config(model__widths=(32, 32))
    counted = training_gflop_per_image(config)
    step, state, batch = abstract_step(config)
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", math.inf)
    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    plain = sum(times * operations(e) for e, times in equations(jaxpr))
    assert counted == plain / 1e9 / batch.shape[1]


@pytest.mark.parametrize(
    ("window", "strides", "padding", "spread", "apart"),
    [
        (3, 1, (1, 1), 1, 1),
        (3, 2, (0, 1), 1, 1),
        (3, 1, (1, 2), 2, 1),  # the gradient of one of stride 2
        (4, 1, (0, -1), 1, 2),
        (1, 2, (0, 0), 1, 1),
    ],
)
def test_operations_of_a_convolution_are_as_xla_counts_them(
    window, strides, padding, spread, apart
):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides, 1),
            (padding, (0, 0)),
            (spread, 1),
            (apart, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, kernel = jnp.ones((2, 8, 5, 3)), jnp.ones((window, 2, 3, 4))
    xla = jax.jit(convolve).lower(x, kernel).cost_analysis()["flops"]
    assert counted(convolve, x, kernel) == xla


def counted(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(times * operations(e) for e, times in equations(jaxpr))


def test_operations_of_products_count_in_loops_too():
    """7 times a product of [3, 4] and [4, 5], 2 * 60 operations."""

    def loop(x, y):
        return jax.lax.map(lambda x: x @ y, x)

    assert counted(loop, jnp.ones((7, 3, 4)), jnp.ones((4, 5))) == 7 * 120


@pytest.mark.slow
def test_remat_halves_the_memory():
    """Temporary memory of the compiled step of one device, where activations are most of it."""
    config = tiny_config(model__widths=(16, 16), model__norm="group")
    config.data.size, config.model.encoder_blocks = 32, 4
    config.train.batch_size = 64
    temporary = []
    for remat in (False, True):
        config.model.remat = remat
        temporary.append(memory(compile_mapped(*abstract_step(config)))["temporary"])
    assert temporary[1] <= temporary[0] / 2


def test_memory_of_a_step():
    """State and batch by hand from their shapes, of one of 8 devices; what is kept for the gradient is at least the first layer's output."""
    config = tiny_config()
    allotted = memory(compile_mapped(*abstract_step(config)))
    state = jax.eval_shape(lambda: create_state(config))
    count = config.train.batch_size // 8
    size, channels = config.data.size, config.data.channels
    batch = count * size * size * channels
    expected = batch + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    # XLA leaves out what the step does not read.
    assert 0.98 * expected <= allotted["state and batch"] <= expected
    assert allotted["temporary"] >= 4 * count * size * size * config.model.widths[0]
    assert 0 <= allotted["results"] <= expected


def test_scaling_by_hand():
    """1 GB summed, 100 images of 10 GFLOP: 10 ms of computing at 100 TFLOP/s; 8 devices send 1.75 GB each, 3.889 ms at 450 GB/s."""
    table = scaling_table(10**9, 10.0, 100)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[:3] == ["8", "800", f"{1.75e9 / 2**20:,.1f} MiB"]
    assert cells[3] == f"{10 / 13.889:.1%}\n3.9 ms"
    last = [list(column.cells)[-1] for column in table.columns]
    assert (last[0], last[3]) == ("512", "-")  # NVLink joins the 8 of a host
    assert cells[5] == f"{10 / 45:.1%}\n35 ms"  # 1.75 GB at 50 GB/s
