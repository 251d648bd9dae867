"""What evaluation runs through the networks, on all devices: whole splits or sets of samples, batch after batch."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax.features import Features
from gamix_jax.likelihood import estimate_evidence
from gamix_jax.metrics import images as image_metrics
from gamix_jax.mixture import GaussianMixture
from gamix_jax.models import Autoencoder
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.steps import AXIS, scale_images, to_levels

Batch = dict[str, np.ndarray]
SPLITS = ("train", "test", "other")
MOST_PSNR = 100.0  # dB


def over_devices(
    function: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    arguments: Any,
) -> Callable[[Iterable[Batch]], Iterator[Batch]]:
    """Runs a function of rows on all local devices, a part of each batch on each.

    Args:
      function: (arguments, batch) to arrays [n, ...], a row for each of the batch's.
      arguments: pytree of arrays.

    Returns:
      A function of batches, all of one size that the devices divide, each with an int32
      "index" that is -1 for padding; it gives the results for the other rows, with their
      index, batch by batch.
    """

    def gathered(arguments: Any, batch: dict[str, jax.Array]) -> tuple:
        rows = function(arguments, batch), batch["index"]
        return jax.lax.all_gather(rows, AXIS, tiled=True)

    mapped, arguments = map_over_devices(gathered), replicate(arguments)

    def run(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            rows, index = jax.device_get(mapped(arguments, put_on_devices(batch)))
            rows |= {"index": index}
            yield {name: x[index >= 0] for name, x in rows.items()}

    return run


def array_batches(size: int, **arrays: np.ndarray) -> Iterator[Batch]:
    """Batches of `size` rows of arrays [N, ...], by their names; the last is padded."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        places = np.arange(start, start + size)
        batch = {name: x[places % count] for name, x in arrays.items()}
        yield batch | {"index": np.where(places < count, places, -1).astype(np.int32)}


def with_noise(batches: Iterable[Batch], split: str) -> Iterator[Batch]:
    """Batches with "split", a number that makes the noise of each of SPLITS its own."""
    for batch in batches:
        yield batch | {"split": np.full_like(batch["index"], SPLITS.index(split))}


def encode_images(
    autoencoder: Autoencoder, arguments: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """What an image's posterior and reconstruction are worth.

    The reconstruction is the decoder's mean at the mean of the posterior's weightiest
    component, rounded to levels as it would be saved.

    Args:
      autoencoder: the network.
      arguments: "variables" of the network, "key" of the noise.
      batch: "image", uint8 [n, H, W, C], and "split" and "index", which seed each
        image's noise.

    Returns:
      mean and variance [n, D] of the posterior and a draw z [n, D]; draw_error [n], the mean
      absolute error from that draw; reconstruction, uint8; squared_error, psnr (dB), ssim, sharpness and
      reconstruction_sharpness [n].
    """
    apply = partial(autoencoder.apply, arguments["variables"])
    images = scale_images(batch["image"])
    posterior: GaussianMixture = apply(images, method="encode")
    keys = _keys(arguments["key"], batch)
    z = jax.vmap(lambda q, key: q.sample(key))(posterior, keys)
    mean, variance = posterior.moments()
    decoded = apply(
        jnp.stack([z, posterior.weightiest_mean()]),
        method="decode",
    )
    levels = to_levels(decoded[1])
    reconstruction = scale_images(levels)
    return {
        "mean": mean,
        "variance": variance,
        "z": z,
        "draw_error": jnp.mean(jnp.abs(images - decoded[0]), axis=(1, 2, 3)),
        "reconstruction": levels,
        "squared_error": image_metrics.squared_error(images, reconstruction),
        # Of equal images it is infinite.
        "psnr": jnp.minimum(image_metrics.psnr(images, reconstruction), MOST_PSNR),
        "ssim": image_metrics.ssim(images, reconstruction),
        "sharpness": image_metrics.laplacian_variance(images),
        "reconstruction_sharpness": image_metrics.laplacian_variance(reconstruction),
    }


def score_images(
    autoencoder: Autoencoder,
    samples: int,
    arguments: dict[str, Any],
    batch: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """log p(x) and the terms of the ELBO, nats, [n] each; and a draw z [n, D].

    Args:
      autoencoder: the network.
      samples: L, draws an image.
      arguments: as `encode_images`, with "prior" and "scale" of the likelihood.
      batch: as `encode_images`.
    """
    apply = partial(autoencoder.apply, arguments["variables"])
    images = scale_images(batch["image"])
    posterior: GaussianMixture = apply(images, method="encode")
    keys = _keys(arguments["key"], batch)
    evidence = estimate_evidence(
        partial(apply, method="decode"),
        posterior,
        arguments["prior"],
        images,
        keys,
        arguments["scale"],
        samples,
    )
    z = jax.vmap(lambda q, key: q.sample(key))(posterior, keys)
    return evidence._asdict() | {"z": z}


def decode_latents(
    autoencoder: Autoencoder, arguments: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The decoder's mean at "z" [n, D] as levels: image, uint8; and its sharpness [n]."""
    decoded = autoencoder.apply(arguments["variables"], batch["z"], method="decode")
    levels = to_levels(decoded)
    return {
        "image": levels,
        "sharpness": image_metrics.laplacian_variance(scale_images(levels)),
    }


def extract_features(
    features: Features, arguments: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Features [n, F] of "image", uint8; `arguments` are the extractor's variables."""
    return {"features": features.apply(arguments, batch["image"])}


def _keys(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    def of_image(split: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, split), index)

    return jax.vmap(of_image)(batch["split"], batch["index"])
