"""What latent vectors are like: how far from N(0, I), and what they tell of labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gamix_jax.errors import InputError
from gamix_jax.metrics.estimate import (
    Estimate,
    check_both,
    check_features,
    mean_estimate,
)

NEIGHBOURS = 5
CHOICES = 10  # of labelled codes


class SlicedWasserstein(NamedTuple):
    """A sample's distance from N(0, I), and what N draws of N(0, I) itself are at.

    Attributes:
      distance: in the unit of z.
      null_mean: mean distance of the draws.
      null_quantile_95: 95 % of the draws are nearer.
    """

    distance: float
    null_mean: float
    null_quantile_95: float


def sliced_wasserstein(
    z: np.ndarray, projections: int = 256, null_draws: int = 32, seed: int = 0
) -> SlicedWasserstein:
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015) from a sample to N(0, I) itself.

    The root of the mean, over random unit directions, of the squared distance between
    the sorted projections and the normal quantiles at (i - 0.5) / N. A shift by m in one
    of D dimensions is at |m| / sqrt(D), a scale s at |s - 1|.

    Args:
      z: [N, D].
      projections: number of directions.
      null_draws: samples of N(0, I), of the size of `z`, measured along the same
        directions.
      seed: of directions and draws.

    Raises:
      InputError: `z` is not [N, D] or not finite.
    """
    z = check_features(z, least=1).astype(np.float32)
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((projections, z.shape[1]), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    quantiles = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z)).astype(np.float32)

    def distance(sample: np.ndarray) -> float:
        projected = directions @ sample.T
        projected.sort(axis=1)
        squares = np.square(projected - quantiles)
        return float(np.sqrt(np.mean(squares, dtype=np.float64)))

    null = [
        distance(rng.standard_normal(z.shape, np.float32)) for _ in range(null_draws)
    ]
    return SlicedWasserstein(
        distance(z), float(np.mean(null)), float(np.quantile(null, 0.95))
    )


class LabelAccuracy(NamedTuple):
    """Fraction of test codes whose label is found, by two classifiers."""

    nearest_neighbours: Estimate
    linear_probe: Estimate


def accuracy_by_labels(
    train_z: np.ndarray,
    train_labels: np.ndarray,
    test_z: np.ndarray,
    test_labels: np.ndarray,
    counts: Sequence[int] = (200, 1000, 5000),
    seed: int = 0,
) -> dict[int, LabelAccuracy]:
    """Accuracy of classifiers that learn from `count` labelled codes.

    They are the 5 nearest neighbours, and a linear probe: logistic regression (penalty
    |w|^2 / 2, as scikit-learn has it) on codes scaled to mean 0 and variance 1 over the
    labelled ones. These are a random choice in which classes have their share of all,
    the smaller choice within the larger. Accuracies are means over 10 such
    choices; standard errors are for the test codes and the choices, the N codes held fixed.

    Args:
      train_z: [N, D], of which the labelled codes are chosen.
      train_labels: [N], integers.
      test_z: [M, D].
      test_labels: [M].
      counts: of labelled codes; those above N are left out.
      seed: of the choices.

    Returns:
      By count.

    Raises:
      InputError: codes are not finite or differ in D, labels are not one for each, or
        all of one class, or a count is below 5.
    """
    train_z, test_z = check_both(train_z, test_z, least=1)
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    for z, labels in ((train_z, train_labels), (test_z, test_labels)):
        if labels.shape != z.shape[:1]:
            raise InputError(
                f"{len(z)} codes want {len(z)} labels, not an array {list(labels.shape)}."
            )
    if len(np.unique(train_labels)) < 2:
        raise InputError("All labels are the same; a classifier wants two classes.")
    if min(counts) < NEIGHBOURS:
        raise InputError(
            f"The nearest neighbours want {NEIGHBOURS} labelled codes or more, not {min(counts)}."
        )
    orders = [_stratified_order(train_labels, [seed, i]) for i in range(CHOICES)]

    def accuracy(classifier: BaseEstimator, count: int) -> Estimate:
        correct = []
        for order in orders if count < len(train_z) else orders[:1]:
            chosen = order[:count]
            classifier.fit(train_z[chosen], train_labels[chosen])
            correct.append(classifier.predict(test_z) == test_labels)
        mean, of_codes = mean_estimate(np.mean(correct, axis=0))
        by_choice = np.mean(correct, axis=1)
        of_choices = np.std(by_choice, ddof=1) if len(by_choice) > 1 else 0.0
        return Estimate(mean, math.hypot(of_codes, of_choices / len(by_choice) ** 0.5))

    return {
        count: LabelAccuracy(
            accuracy(KNeighborsClassifier(NEIGHBOURS), count),
            accuracy(
                make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
                count,
            ),
        )
        for count in counts
        if count <= len(train_z)
    }


def _stratified_order(labels: np.ndarray, seed: list[int]) -> np.ndarray:
    """A random order of labels [N] of which every beginning has each class in its share of all, and each class at least once where there is room."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = labels[order] == label
        place[of_class] = np.arange(np.sum(of_class)) / np.sum(of_class)
    return order[np.argsort(place, kind="stable")]
