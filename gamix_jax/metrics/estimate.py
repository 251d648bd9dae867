"""What every measurement returns, and what every measurement of features asks of them."""

from typing import NamedTuple

import numpy as np

from gamix_jax.errors import InputError


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit."""

    value: float
    standard_error: float


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of independent values [N], and their standard deviation (1/N) over sqrt(N): of 0s and 1s the binomial standard error."""
    values = np.asarray(values, np.float64)
    return Estimate(
        float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))
    )


def check_features(features: np.ndarray, least: int = 0) -> np.ndarray:
    """Features [N, F] in float64.

    Raises:
      InputError: they are not [N, F], not all finite, or of less than `least` images.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise InputError(
            f"Features must have the shape [images, dimensions], not {list(features.shape)}."
        )
    if len(features) < least:
        raise InputError(
            f"This measurement wants {least} images or more of each set, not {len(features)}."
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(
            f"Features of {np.sum(~finite)} of {len(features)} images are not finite; "
            "look at the images, the model may have diverged."
        )
    return features


def check_both(
    first: np.ndarray, second: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features [N, F] and [M, F] in float64.

    Raises:
      InputError: as `check_features`, or they differ in F.
    """
    first, second = (check_features(features, least) for features in (first, second))
    check_dimensions(first.shape[1], second.shape[1])
    return first, second


def check_dimensions(first: int, second: int) -> None:
    """Raises InputError unless both sets of features have as many dimensions."""
    if first != second:
        raise InputError(
            f"Features of {first} and of {second} dimensions cannot be compared; "
            "compute both with the same network."
        )
