"""A trained model, for notebooks and for what is done with it: encode, decode, sample, reconstruct, score."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import default_config
from gamix_jax.cpu import compiler_options
from gamix_jax.errors import InputError
from gamix_jax.likelihood import importance_weighted_log_probs
from gamix_jax.mixture import GaussianMixture
from gamix_jax.sampling import LatentSampler, prior_sampler
from gamix_jax.state import TrainState, create_state, make_models
from gamix_jax.steps import averaged_variables, scale_images, to_levels

PIXELS = 2**20  # that go through a network at once, at most: 256 images of 64x64


def load(workdir: str | Path) -> "TrainedModel":
    """Opens the newest whole checkpoint of a run, which may still be training; nothing in the folder changes.

    Args:
      workdir: folder of the run, as `--workdir` of its training.

    Raises:
      InputError: there is no run, or no checkpoint that is as it was written.
    """
    config = read_config(Path(workdir).expanduser())
    checkpoints = _open_checkpoints(workdir)
    state = checkpoints.restore(jax.eval_shape(lambda: create_state(config)))
    checkpoints.close()
    return TrainedModel(config, state)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The configuration that a run was begun with, or last went on with.

    Raises:
      InputError: there is none, or it is of another version.
    """
    path = workdir / "config.json"
    try:
        saved = json.loads(path.read_text())
        if not isinstance(saved, dict):
            raise ValueError("it is no configuration")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{workdir} holds no run ({path} cannot be read: {error}); name the --workdir of a "
            "training."
        ) from error
    values = {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for section, keys in saved.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    config = default_config()
    try:
        config.update_from_flattened_dict({"seed": saved.get("seed"), **values})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not of this version of gamix_jax ({error}); use the version that wrote it."
        ) from error
    return config


def _open_checkpoints(workdir: str | Path) -> Checkpoints:
    workdir = Path(workdir).expanduser()
    if (workdir / "checkpoints").is_dir():
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # or Orbax warns that all is read only
        checkpoints = Checkpoints(workdir, read_only=True)
        logging.set_verbosity(verbosity)
        if checkpoints.latest_step() is not None:
            return checkpoints
        checkpoints.close()
    raise InputError(
        f"{workdir} holds no checkpoint yet; train it to its first one "
        "(config.train.checkpoint_every)."
    )


class TrainedModel:
    """A run's networks with their averaged weights (EMA), jitted; takes any number of images.

    Images are uint8 levels 0..255 or floats in [-1, 1], of `image_shape`; what comes back
    is float32 in about [-1, 1], on the default device. `to_levels` makes uint8 of it.

    Attributes:
      config: of the run.
      state: the training state at the checkpoint; `step` tells which.
      image_shape: (height, width, channels).
      latent_size: D.
      prior: p(z), a mixture without leading axes.
      images_at_once: that go through a network together, at most.
    """

    def __init__(self, config: ml_collections.ConfigDict, state: TrainState):
        self.config, self.state = config, state
        self.image_shape = (config.data.size, config.data.size, config.data.channels)
        self.latent_size = config.model.latent_size
        at_once = min(max(PIXELS / math.prod(self.image_shape[:2]), 1.0), 256.0)
        self.images_at_once = 2 ** int(math.log2(at_once))
        self._variables = averaged_variables(state)
        autoencoder, _ = make_models(config)
        apply = autoencoder.apply
        self.prior = apply(self._variables, method="latent_prior")
        self._prior_sampler = prior_sampler(self.prior)
        # Weights are arguments: as constants they would be compiled into each program.
        jit = partial(jax.jit, compiler_options=compiler_options())
        self._encode = jit(lambda v, images: apply(v, images, method="encode"))
        self._decode = jit(lambda v, z: apply(v, z, method="decode"))

        @partial(jit, static_argnums=5)
        def score(v, prior, scale, images, keys, samples):
            return importance_weighted_log_probs(
                lambda z: apply(v, z, method="decode"),
                apply(v, images, method="encode"),
                prior,
                images,
                keys,
                scale,
                samples,
            )

        self._score = score

    def encode(self, images: np.ndarray | jax.Array) -> GaussianMixture:
        """The posteriors q(z|x) of images [n, H, W, C], of leading shape [n]; `.moments()`, `.weightiest_mean()` and `.sample(key)` make z of them."""
        return _in_batches(
            partial(self._encode, self._variables),
            self.images_at_once,
            self._scaled(images),
        )

    def decode(self, z: np.ndarray | jax.Array) -> jax.Array:
        """Latent vectors [..., D] to images [..., H, W, C]."""
        z = jnp.asarray(z, jnp.float32)
        if z.shape[-1:] != (self.latent_size,) or not z.size:
            raise InputError(
                f"z is {list(z.shape)}; its last axis must be the latent size, {self.latent_size}, and "
                "no other 0."
            )
        images = _in_batches(
            partial(self._decode, self._variables),
            self.images_at_once,
            z.reshape(-1, self.latent_size),
        )
        return images.reshape(*z.shape[:-1], *self.image_shape)

    def sample(
        self,
        key: jax.Array,
        n: int,
        sampler: LatentSampler | None = None,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> jax.Array:
        """n new images [n, H, W, C], of z from p(z) or from another `sampler`; see `LatentSampler.draw` for the last two."""
        sampler = self._prior_sampler if sampler is None else sampler
        return self.decode(sampler.draw(key, n, temperature, truncation))

    def reconstruct(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Images [n, H, W, C] through the mean of each posterior's weightiest component and back."""
        return self.decode(self.encode(images).weightiest_mean())

    def fit_scale(self, images: np.ndarray | jax.Array, key: jax.Array) -> float:
        """The scale of p(x|z) that fits images best: the mean absolute error of their reconstructions from one draw of z each; give training images."""
        images = self._scaled(images)
        z = self.encode(images).sample(key)
        return float(jnp.mean(jnp.abs(images - self.decode(z))))

    def log_prob(
        self,
        images: np.ndarray | jax.Array,
        key: jax.Array,
        scale: float,
        samples: int = 64,
    ) -> jax.Array:
        """log p(x), nats, [n], by importance sampling from the posterior; see `bounds.importance_weighted_log_likelihood`.

        Divided by -H W C log 2 it is bits per dimension.

        Args:
          images: [n, H, W, C]; floats are rounded to levels.
          key: random key.
          scale: of the discretised Laplace likelihood, from `fit_scale` or evaluation.json.
          samples: L, draws of z; the bound is tighter the more there are.
        """
        if not 0.0 < scale < math.inf or samples < 1:
            raise InputError(
                f"scale is {scale} and samples {samples}; both must be positive."
            )
        levels = scale_images(to_levels(self._scaled(images)))
        keys = jax.random.split(key, len(levels))

        def score(images: jax.Array, keys: jax.Array) -> jax.Array:
            return self._score(
                self._variables, self.prior, scale, images, keys, samples
            )

        return _in_batches(score, self.images_at_once, levels, keys)

    def _scaled(self, images: np.ndarray | jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        if images.shape[1:] != self.image_shape or not len(images):
            raise InputError(
                f"The images are {list(images.shape)}; they must be [n, "
                f"{', '.join(map(str, self.image_shape))}] as the run's "
                "(config.data.size, config.data.channels)."
            )
        if images.dtype == jnp.uint8:
            return scale_images(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"The images are {images.dtype}; give uint8 levels or floats in [-1, 1]."
            )
        if not jnp.max(jnp.abs(images)) <= 2.0:  # a decoder's mean may go past 1
            raise InputError(
                "The images are floats far outside [-1, 1]; give them as uint8 if they are "
                "levels."
            )
        return images.astype(jnp.float32)


def _in_batches(function: Callable[..., Any], most: int, *arrays: jax.Array) -> Any:
    """`function` of arrays [n, ...], at most `most` rows at once; padded to powers of two, so that few programs are compiled."""
    results = []
    for start in range(0, len(arrays[0]), most):
        rows = [x[start : start + most] for x in arrays]
        count = len(rows[0])
        size = 2 ** math.ceil(math.log2(count))
        # Each operation beside the network's own costs as much as a small network.
        if size > count:
            rows = [x[jnp.arange(size) % count] for x in rows]
        result = function(*rows)
        if size > count:
            result = jax.tree.map(lambda y: y[:count], result)  # noqa: B023
        results.append(result)
    if len(results) == 1:
        return results[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
