"""Features of a set of images, gathered batch by batch in bounded memory; kept on the disk for real images."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from gamix_jax import data
from gamix_jax.features import Features
from gamix_jax.metrics.averages import Number
from gamix_jax.metrics.frechet import GaussianStatistics, frechet_distance
from gamix_jax.metrics.kernel import kernel_distance
from gamix_jax.metrics.manifold import density_coverage, precision_recall

MOST_KEPT = 10_000  # features, for the measures that compare images in pairs
READ_AT_ONCE = 1_000  # images


class FeatureSet:
    """Statistics of all features that are added, and the first MOST_KEPT features themselves."""

    def __init__(self, size: int):
        self.statistics = GaussianStatistics(size)
        self.kept = np.zeros((0, size), np.float32)

    def add(self, features: np.ndarray) -> None:
        """Adds features [n, F]."""
        self.statistics.add(features)
        room = MOST_KEPT - len(self.kept)
        if room > 0:
            self.kept = np.concatenate([self.kept, features[:room]])


def compare(reference: FeatureSet, other: FeatureSet, seed: int) -> dict[str, Number]:
    """How far a set of images is from a reference, by the measures of `metrics`.

    Returns:
      frechet_distance, kernel_distance, precision, recall, density, coverage: each its
      value and standard_error.
    """
    distance = frechet_distance(reference.statistics, other.statistics)
    kernel = kernel_distance(reference.kept, other.kept, seed=seed)
    numbers = {
        "frechet_distance": distance,
        "kernel_distance": kernel,
        **precision_recall(reference.kept, other.kept)._asdict(),
        **density_coverage(reference.kept, other.kept)._asdict(),
    }
    return {
        name: {"value": float(value), "standard_error": float(error)}
        for name, (value, error) in numbers.items()
    }


def features_of_real(
    images: data.Images,
    chosen: np.ndarray,
    features: Features,
    extract: Callable[[Iterable[dict]], Iterator[dict]],
    batches: Iterable[dict],
    cache: Path,
) -> FeatureSet:
    """Features of images of a split, from the cache if they are there.

    The name in the cache is a hash of the pixels, the size and the extractor's weights.

    Args:
      images: of the split.
      chosen: indices of those that count.
      features: what extracts them.
      extract: the same on all devices (`passes.extract_features`).
      batches: of those images.
      cache: folder, made if missing.
    """
    digest = hashlib.sha256(
        f"{features.name} {features.digest} {images.shape[1:]}".encode()
    )
    for start in range(0, len(chosen), READ_AT_ONCE):
        digest.update(images.read(chosen[start : start + READ_AT_ONCE]))
    path = cache.expanduser() / f"{digest.hexdigest()[:32]}.npz"
    found = FeatureSet(features.size)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found.kept = arrays["kept"]
            found.statistics = GaussianStatistics.from_arrays(arrays)
            return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink()  # half a file, or of another version
    found = FeatureSet(features.size)
    for rows in extract(batches):
        found.add(rows["features"])
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_suffix(".tmp.npz")
    np.savez(unnamed, kept=found.kept, **found.statistics.to_arrays())
    unnamed.replace(path)
    return found
