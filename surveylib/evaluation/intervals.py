"""Means with intervals that know that pictures of one prompt succeed and fail together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over n values in `prompts` clusters, with its standard error and interval (nan with one cluster)."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def numbers(self) -> dict[str, float | int | None]:
        """For JSON; nan becomes None."""
        return {k: None if isinstance(v, float) and np.isnan(v) else round(v, 6) for k, v in asdict(self).items()}

    @classmethod
    def of(cls, numbers: dict) -> Mean:
        """What `numbers` gave."""
        return cls(**{k: float("nan") if v is None else v for k, v in numbers.items()})


def clustered_mean(values: ArrayLike, clusters: Sequence[object], level: float = LEVEL) -> Mean:
    """Mean of values (N,) with the sandwich error of a mean whose errors are correlated within clusters.

    V = G/(G-1) sum_g (sum_{i in g} (y_i - mean))^2 / N^2 over G clusters (Liang and Zeger 1986); the interval is
    mean ± t_{G-1} sqrt(V).

    Args:
        clusters: (N,) labels, usually the prompts.
        level: coverage.

    Raises:
        ValueError: no values, values that are not finite, another number of labels, a level outside (0, 1).
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 1 or not len(y):
        raise ValueError(f"a mean needs at least one value in one row, got the shape {y.shape}")
    if len(clusters) != len(y):
        raise ValueError(f"{len(clusters)} prompts for {len(y)} values: give the prompt of each value")
    if not np.isfinite(y).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(y))[0])} is not finite; leave it out, and say so")
    if not 0 < level < 1:
        raise ValueError(f"level={level} is the coverage, between 0 and 1, such as 0.95")
    _, group = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    mean, count = float(y.mean()), int(group.max()) + 1
    if count < 2:
        return Mean(mean, float("nan"), float("nan"), float("nan"), len(y), count)
    sums = np.bincount(group, weights=y - mean)
    error = float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(y))
    half = float(student.ppf(0.5 + level / 2, count - 1)) * error
    return Mean(mean, error, mean - half, mean + half, len(y), count)
