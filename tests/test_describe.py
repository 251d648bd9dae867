"""What --mode=describe says that a training step sends."""

import jax
import pytest
from test_steps import tiny_config

from gamix_jax.describe import reduced_bytes, scaling_table
from gamix_jax.state import create_state


def float32_bytes(tree):
    return sum(4 * x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [
        # D = 4: mean, within and between of the batch, again about the pooled mean, and
        # backward through the latter
        ({"model__norm": "batch", "discriminator__norm": "batch"}, 9 * 4),
        ({"objective__covariance": "full"}, 3 * (4 + 4 + 16)),
        # nothing is differentiated through the moments
        ({"objective__kl": "elbo", "adversarial__loss": "none"}, 6 * 4),
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


def test_scaling_by_hand():
    """1 GB summed, 100 images of 10 GFLOP: 10 ms of computing at 100 TFLOP/s; 8 devices send 1.75 GB each, 3.889 ms at 450 GB/s."""
    table = scaling_table(10**9, 10.0, 100)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[:3] == ["8", "800", f"{1.75e9 / 2**20:,.1f} MiB"]
    assert cells[3] == f"{10 / 13.889:.1%}\n3.9 ms"
    last = [list(column.cells)[-1] for column in table.columns]
    assert (last[0], last[3]) == ("512", "-")  # NVLink joins the 8 of a host
    assert cells[5] == f"{10 / 45:.1%}\n35 ms"  # 1.75 GB at 50 GB/s
