"""How good a state is on a whole split."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from gamix_jax.bounds import aggregate_kl_bounds, mutual_information_bounds
from gamix_jax.losses import aggregate_kl
from gamix_jax.mixture import AggregateMoments, GaussianMixture
from gamix_jax.parallel import put_on_devices
from gamix_jax.state import TrainState

# Components whose distances in pairs are computed: 4,096 in 128 dimensions take 10 s on
# two CPU cores.
BOUNDED_COMPONENTS = 4096


def validate(
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
      over images of `losses.posterior_kl` to p(z), estimated by one stratified sample
      but for K = 1 and N(0, I);
      aggregate_kl, nats, of all images' moments ("total", "diagonal": a lower bound on
      KL(q(z) || N(0, I))); active_units (Burda et al. 2016, threshold 0.01);
      collapse_penalty; component_entropy, nats, and components_used; count of images.
      Of the first images, as many as have BOUNDED_COMPONENTS components, their number
      bounded_images and bounds, nats, on their aggregate posterior:
      aggregate_kl_lower, aggregate_kl_upper (KL(q(z) || N(0, I))),
      mutual_information_lower, mutual_information_upper (z and the image's index).
    """
    sums: dict[str, np.ndarray] = {}
    posteriors, components = [], 0
    for batch in batches:
        of_batch, gathered = eval_step(state, put_on_devices(batch))
        for name, value in jax.device_get(of_batch).items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
        if components < BOUNDED_COMPONENTS:
            posteriors.append(_without_padding(*jax.device_get(gathered)))
            components += posteriors[-1].logits.size
    count = sums.pop("count")
    means = {name: value / count for name, value in sums.items()}
    mean, within = means.pop("mean"), means.pop("variance")
    between = means.pop("mean_squared") - mean**2
    between_images = means.pop("image_mean_squared") - mean**2
    weights = means.pop("weights")
    kl = aggregate_kl(
        AggregateMoments(*(np.float32(x) for x in (mean, within, between)))
    )
    return {
        **{name: float(value) for name, value in means.items()},
        "psnr": float(10.0 * np.log10(4.0 / means["squared_error"])),
        "aggregate_kl": float(jax.device_get(kl)),
        "active_units": float(np.sum(between_images > 0.01)),
        "components_used": float(
            np.exp(-np.sum(weights * np.log(np.maximum(weights, 1e-300))))
        ),
        "count": float(count),
        **_bounds(jax.tree.map(lambda *x: np.concatenate(x), *posteriors)),
    }


def _without_padding(posterior: GaussianMixture, index: np.ndarray) -> GaussianMixture:
    return jax.tree.map(lambda x: x[index >= 0], posterior)


@jax.jit
def _brackets(posterior: GaussianMixture) -> tuple:
    # In one program, so that the distances in pairs are computed once.
    return aggregate_kl_bounds(posterior), mutual_information_bounds(posterior)


def _bounds(posterior: GaussianMixture) -> dict[str, float]:
    images, components = posterior.logits.shape
    first = min(images, BOUNDED_COMPONENTS // components)
    bounds = jax.device_get(_brackets(jax.tree.map(lambda x: x[:first], posterior)))
    return {"bounded_images": float(first)} | {
        f"{name}_{side}": float(value)
        for name, pair in zip(
            ("aggregate_kl", "mutual_information"), bounds, strict=True
        )
        for side, value in zip(("lower", "upper"), pair, strict=True)
    }
