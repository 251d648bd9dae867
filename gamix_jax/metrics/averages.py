"""Means of what is measured image by image, and how well they are known."""

import math

import numpy as np

from gamix_jax.metrics.estimate import Estimate


class Averages:
    """Means and their standard errors, over rows that come batch by batch; in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, np.ndarray] = {}
        self._squares: dict[str, np.ndarray] = {}

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Adds arrays [n, ...], by name."""
        self.count += len(next(iter(rows.values())))
        for name, x in rows.items():
            x = x.astype(np.float64)
            self._sums[name] = self._sums.get(name, 0.0) + x.sum(axis=0)
            self._squares[name] = self._squares.get(name, 0.0) + (x**2).sum(axis=0)

    @property
    def names(self) -> list[str]:
        """Of what was added."""
        return list(self._sums)

    def mean(self, name: str) -> np.ndarray:
        """The mean of all rows."""
        return self._sums[name] / self.count

    def variance(self, name: str) -> np.ndarray:
        """The variance of all rows."""
        return np.maximum(self._squares[name] / self.count - self.mean(name) ** 2, 0.0)

    def estimate(self, name: str) -> Estimate:
        """The mean of a scalar and its standard error."""
        error = math.sqrt(float(self.variance(name)) / max(self.count - 1, 1))
        return Estimate(float(self.mean(name)), error)
