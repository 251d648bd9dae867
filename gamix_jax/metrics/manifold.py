"""Fidelity and diversity from nearest neighbours among features: precision, recall, density, coverage."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gamix_jax.metrics.estimate import Estimate, check_both, mean_estimate

PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR = 3, 5  # as the papers have it
BLOCK = 2**24  # distances held at once (128 MiB); some four such arrays live


class Manifold(NamedTuple):
    """How fakes lie among reals; the ball of an image reaches to the k-th nearest other one of its own set.

    Attributes:
      precision: fraction of fakes in any real's ball.
      recall: fraction of reals in any fake's ball.
      density: number of reals' balls that a fake is in, over k, averaged; it can exceed
        1, and is 1 in expectation for equal distributions.
      coverage: fraction of reals with a fake in their ball; for equal distributions and
        as many of both, about 1 - 2^-k.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold(real: np.ndarray, fake: np.ndarray) -> Manifold:
    """Improved precision and recall (Kynkaanniemi et al. 2019, k = 3), density and coverage (Naeem et al. 2020, k = 5).

    The edge belongs to the ball for precision and recall, and does not for density and
    coverage, as the authors have it. Distances are Euclidean, in float64; those below
    1e-6 of the features' norm are 0. Each standard error is that of the mean over the
    images that are counted (fakes for precision and density, reals for recall and
    coverage), the balls and the other set held fixed: it leaves out what those would
    vary by. Takes 45 s on one CPU core for twice 10,000 images and F = 2,048.

    Args:
      real: features [N, F].
      fake: [M, F]. Values depend on N and M: compare only those of as many images.

    Raises:
      InputError: the features differ in F, are not finite, or a set has 5 images or
        less.
    """
    real, fake = check_both(real, fake, least=DENSITY_NEIGHBOUR + 1)
    centre = real.mean(axis=0)  # the nearer to 0, the less the distances cancel
    real, fake = real - centre, fake - centre
    precision_radii, density_radii = _squared_radii(
        real, [PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR]
    )
    (recall_radii,) = _squared_radii(fake, [PRECISION_NEIGHBOUR])
    precise, balls = np.zeros(len(fake), bool), np.zeros(len(fake), np.int64)
    recalled, covered = np.empty(len(real), bool), np.empty(len(real), bool)
    for rows, distances in _squared_distances(real, fake):
        precise |= np.any(distances <= precision_radii[rows, None], axis=0)
        recalled[rows] = np.any(distances <= recall_radii, axis=1)
        inside = distances < density_radii[rows, None]
        balls += np.sum(inside, axis=0)
        covered[rows] = np.any(inside, axis=1)
    return Manifold(
        precision=mean_estimate(precise),
        recall=mean_estimate(recalled),
        density=mean_estimate(balls / DENSITY_NEIGHBOUR),
        coverage=mean_estimate(covered),
    )


def _squared_radii(features: np.ndarray, neighbours: list[int]) -> np.ndarray:
    """Squared distances from each image to its k-th nearest other one, for each k: [N, F] to [k, N]."""
    radii = np.empty((len(neighbours), len(features)))
    # Of one array and itself NumPy's product rounds in another way than of two, and an image
    # at the edge of a ball, such as a copy, would be inside or not by that.
    for rows, distances in _squared_distances(features, features.copy()):
        # The nearest of all, at place 0, is the image itself.
        distances.partition(neighbours, axis=1)
        radii[:, rows] = distances[:, neighbours].T
    return radii


def _squared_distances(
    x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Of x [N, F] and y [M, F] in blocks of rows: which rows, and [rows, M]."""
    x_squares, y_squares = (np.einsum("ij,ij->i", a, a) for a in (x, y))
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = x_squares[rows, None] + y_squares
        distances = norms - 2.0 * (x[rows] @ y.T)
        # Rounding of a copy's distance, which is 0.
        distances[distances < 1e-12 * norms] = 0.0
        yield rows, distances
