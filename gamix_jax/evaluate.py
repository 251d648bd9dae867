"""How good a state is on a whole split."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from gamix_jax.losses import aggregate_kl
from gamix_jax.mixture import AggregateMoments
from gamix_jax.parallel import put_on_devices
from gamix_jax.state import TrainState


def evaluate(
    eval_step: Callable, state: TrainState, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Measures the averaged weights on every image of a split.

    Args:
      eval_step: `Steps.eval_step`, mapped over the devices.
      state: the training state.
      batches: as `data.evaluation_batches` makes them.

    Returns:
      absolute_error and squared_error of the reconstruction from the components' means
      (images in [-1, 1]) and its peak signal-to-noise ratio, dB; kl, nats, the mean
      over images of KL(q(z|x) || N(0, I)), estimated by one stratified sample;
      aggregate_kl, nats, of all images' moments ("total", a lower bound on KL(q(z) ||
      N(0, I))); active_units (Burda et al. 2016, threshold 0.01); collapse_penalty;
      count of images.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in jax.device_get(
            eval_step(state, put_on_devices(batch))
        ).items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
    count = sums.pop("count")
    means = {name: value / count for name, value in sums.items()}
    mean, within = means.pop("mean"), means.pop("variance")
    between = means.pop("mean_squared") - mean**2
    between_images = means.pop("image_mean_squared") - mean**2
    kl = aggregate_kl(
        AggregateMoments(*(np.float32(x) for x in (mean, within, between)))
    )
    return {
        **{name: float(value) for name, value in means.items()},
        "psnr": float(10.0 * np.log10(4.0 / means["squared_error"])),
        "aggregate_kl": float(jax.device_get(kl)),
        "active_units": float(np.sum(between_images > 0.01)),
        "count": float(count),
    }
