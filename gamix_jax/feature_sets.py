"""Features of a set of images, gathered batch by batch in bounded memory; kept on the disk for real images."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from gamix_jax import data
from gamix_jax.errors import InputError
from gamix_jax.features import Features
from gamix_jax.features.files import check_writable, read_arrays, write_arrays
from gamix_jax.metrics.estimate import Estimate
from gamix_jax.metrics.frechet import FeatureStatistics, frechet_distance
from gamix_jax.metrics.kernel import kernel_distance
from gamix_jax.metrics.manifold import manifold

MOST_KEPT = 10_000  # features, for the measures that compare images in pairs
READ_AT_ONCE = 1_000  # images
VERSION = 2  # of what is kept on the disk


class FeatureSet:
    """Statistics of all features that are added, and the first MOST_KEPT features themselves, float32."""

    def __init__(self, size: int):
        self.statistics = FeatureStatistics(size)
        self._kept: list[np.ndarray] = []

    @property
    def kept(self) -> np.ndarray:
        """[N, F], N at most MOST_KEPT."""
        return np.concatenate(self._kept)

    def add(self, features: np.ndarray) -> None:
        """Adds features [n, F]."""
        self.statistics.add(features)
        self.keep(features)

    def keep(self, features: np.ndarray) -> None:
        """Adds features [n, F] to those kept alone."""
        room = MOST_KEPT - sum(map(len, self._kept))
        if room > 0:
            self._kept.append(features[:room])


def compare(reference: FeatureSet, other: FeatureSet, seed: int) -> dict[str, Estimate]:
    """How far a set of images is from a reference, by the measures of `metrics`.

    Returns:
      frechet_distance, kernel_distance, precision, recall, density and coverage.

    Raises:
      InputError: there are too few images.
    """
    return {
        "frechet_distance": frechet_distance(reference.statistics, other.statistics),
        "kernel_distance": kernel_distance(reference.kept, other.kept, seed=seed),
        **manifold(reference.kept, other.kept)._asdict(),
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
    digest = hashlib.sha256(f"{VERSION} {features.digest} {images.shape[1:]}".encode())
    for start in range(0, len(chosen), READ_AT_ONCE):
        digest.update(images.read(chosen[start : start + READ_AT_ONCE]))
    path = cache.expanduser() / f"{features.name}_{digest.hexdigest()[:32]}.npz"
    found = FeatureSet(features.size)
    if path.exists():
        try:
            arrays = read_arrays(path)
            found.statistics = FeatureStatistics.from_arrays(arrays)
            found.keep(arrays["kept"])
            return found
        except (InputError, KeyError):
            found = FeatureSet(features.size)  # damaged, or of another version
    check_writable(path)
    for rows in extract(batches):
        found.add(rows["features"])
    write_arrays(path, {"kept": found.kept, **found.statistics.arrays()})
    return found
