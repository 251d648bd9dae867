"""How well a score tells images of another distribution."""

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from gamix_jax.errors import InputError
from gamix_jax.metrics.estimate import Estimate

RESAMPLES = 200


class Detection(NamedTuple):
    """How well scores separate.

    Attributes:
      auroc: area under the ROC curve: the probability that an image from outside has the
        higher score than one from inside, equal scores counted half.
      auprc: area under the precision-recall curve (average precision), outside being
        positive; scores that tell nothing have M / (N + M).
    """

    auroc: Estimate
    auprc: Estimate


def detection(
    scores_in: np.ndarray, scores_out: np.ndarray, seed: int = 0
) -> Detection:
    """AUROC and AUPRC of anomaly scores, with standard errors by bootstrap over the images within each set.

    Args:
      scores_in: [N], of images of the distribution that the model knows.
      scores_out: [M], of others; the higher, the more anomalous.
      seed: of the RESAMPLES resamples.

    Raises:
      InputError: a set is empty or has scores that are not a number.
    """
    scores_in, scores_out = (np.asarray(x, np.float64) for x in (scores_in, scores_out))
    for name, scores in (("known", scores_in), ("other", scores_out)):
        if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
            raise InputError(
                f"The scores of the {name} images must be a list of one or more numbers, none NaN."
            )
    anomalous = np.repeat([0, 1], [len(scores_in), len(scores_out)])
    # Their order is all that counts, and an infinite score has its place in it.
    ranks = stats.rankdata(np.concatenate([scores_in, scores_out]))
    scores_in, scores_out = np.split(ranks, [len(scores_in)])

    def areas(scores_in: np.ndarray, scores_out: np.ndarray) -> tuple[float, float]:
        scores = np.concatenate([scores_in, scores_out])
        return (
            round(float(roc_auc_score(anomalous, scores)), 12),
            round(float(average_precision_score(anomalous, scores)), 12),
        )

    rng = np.random.default_rng(seed)
    resampled = [
        areas(*(rng.choice(scores, len(scores)) for scores in (scores_in, scores_out)))
        for _ in range(RESAMPLES)
    ]
    # Rounding: areas are fractions of whole numbers of pairs.
    errors = np.round(np.std(resampled, axis=0, ddof=1), 12)
    return Detection(
        *(
            Estimate(value, float(error))
            for value, error in zip(areas(scores_in, scores_out), errors, strict=True)
        )
    )
