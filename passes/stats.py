"""C = E[xᵀx] and μ = E[x]: the one statistic that drives every fit.

It is that of GPTQ (2210.17323), SVD-LLM (2403.07378) and QERA (2410.06040).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Stats:
    """Second moment and mean of the rows that enter a linear.

    Attributes:
        second_moment: `C = XᵀX / tokens`, `[in_features, in_features]`, symmetric, float32 or
            float64; not damped.
        mean: `μ`, `[in_features]`.
        tokens: the number of rows seen.
    """

    second_moment: Array
    mean: Array
    tokens: int

    @property
    def in_features(self) -> int:
        """The length of a row."""
        return int(self.mean.shape[0])

    def centred(self) -> Stats:
        """`Σ = C − μᵀμ`: the statistic of `x − μ`, for fits whose mean error a bias takes up."""
        mean = np.asarray(self.mean, np.float64)
        covariance = np.asarray(self.second_moment, np.float64) - np.outer(mean, mean)
        return Stats(covariance, np.zeros_like(mean), self.tokens)

    def merged(self, other: Stats) -> Stats:
        """The statistic of both sets of rows together (a weight with several inputs)."""
        total = self.tokens + other.tokens
        a, b = self.tokens / total, other.tokens / total
        return Stats(
            a * self.second_moment + b * other.second_moment, a * self.mean + b * other.mean, total
        )


class StatsAccumulator:
    """Streams rows into `Stats`: float32 products for each batch, float64 sums across batches."""

    def __init__(self, in_features: int) -> None:
        self._sum_outer = np.zeros((in_features, in_features), np.float64)
        self._sum = np.zeros(in_features, np.float64)
        self._tokens = 0

    def update(self, rows: Array) -> None:
        """Adds `rows`, `[tokens, in_features]`."""
        rows = np.ascontiguousarray(rows, np.float32)
        self._sum_outer += rows.T @ rows
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._tokens += rows.shape[0]

    def result(self) -> Stats:
        """The statistic of all rows so far; at least one is needed."""
        if self._tokens == 0:
            raise ValueError("no rows were added")
        moment = self._sum_outer / self._tokens
        return Stats((moment + moment.T) / 2, self._sum / self._tokens, self._tokens)
