"""Feature extractors, by which sets of images are compared: InceptionV3, or a classifier trained here."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gamix_jax.errors import InputError
from gamix_jax.features import classifier, inception
from gamix_jax.features.classifier import load_classifier, train_classifier
from gamix_jax.features.inception import load_inception

__all__ = ["Features", "open_features", "train_classifier"]


class Features(NamedTuple):
    """A feature extractor.

    Attributes:
      name: "inception" or "classifier".
      digest: hexadecimal, of name and weights; the same of a .pth and its .npz.
      size: F, features of an image.
      variables: pytree of NumPy arrays; `parallel.replicate` puts them on the devices
        once for all calls.
      apply: (variables, images uint8 [n, H, W, C]) -> float32 [n, F]; pure, to be
        jitted or mapped; an image's features do not depend on the others.
    """

    name: str
    digest: str
    size: int
    variables: Any
    apply: Callable[[Any, jax.Array], jax.Array]


def open_features(name: str, path: Path, image_size: int, channels: int) -> Features:
    """The extractor whose weights are in a file.

    Args:
      name: "inception", of which `inception.load_inception` says more, or "classifier",
        of a file that `train_classifier` wrote.
      path: of the file.
      image_size: height and width of the images that it will be given, pixels.
      channels: of the same images.

    Raises:
      InputError: there is no extractor of that name; the file is missing, unreadable or
        of another network; or the extractor does not take such images.
    """
    if name == "inception":
        variables, apply = load_inception(path, channels)
        size = inception.FEATURES
    elif name == "classifier":
        variables, apply = load_classifier(path, image_size, channels)
        size = classifier.FEATURES
    else:
        raise InputError(
            f'There are no features {name!r}; take "inception" or "classifier".'
        )
    return Features(name, _digest(name, variables), size, variables, apply)


def _digest(name: str, variables: Any) -> str:
    digest = hashlib.sha256(name.encode())
    for place, leaf in jax.tree.leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(place)} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:32]
