"""What a fit returns: strengths with mean zero, their intervals, and everything needed to compare two items."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and interval."""

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ChoiceFit:
    """Fitted choice model.

    Attributes:
        model: its name. items: names, (n,).
        strengths: (n,) in nats of log-odds (Thurstone: standard deviations of a difference), mean zero.
        standard_errors, low, high: (n,), of the strengths. covariance: (n, n), singular along (1, ..., 1).
        extras: further parameters by name, as `Estimate`.
        log_likelihood: at the estimate, of the weighted records, in nats (without the prior).
        n_records, total_weight: what was fitted. prior: its standard deviation, or None.
        level, interval: coverage and how it was made, in words.
        resamples, failed_resamples: of a bootstrap; a failed one had no finite fit and is not in the interval.
    """

    model: str
    items: tuple[str, ...]
    strengths: np.ndarray
    standard_errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    covariance: np.ndarray
    extras: dict[str, Estimate]
    log_likelihood: float
    n_records: int
    total_weight: float
    prior: float | None
    level: float
    interval: str
    resamples: int = 0
    failed_resamples: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def index(self, item: object) -> int:
        """Place of an item. Raises ValueError for an unknown one."""
        if str(item) not in self.items:
            raise ValueError(f"unknown item {item!r}: items are {', '.join(self.items)}")
        return self.items.index(str(item))

    def strength(self, item: object) -> Estimate:
        """Strength of one item with its interval."""
        i = self.index(item)
        return Estimate(*(float(column[i]) for column in (self.strengths, self.standard_errors, self.low, self.high)))

    def difference(self, a: object, b: object) -> Estimate:
        """Strength of a minus that of b. Its interval uses their covariance; it does not depend on the mean-zero rule.

        The interval is value ± z standard errors, for the bootstrap too.
        """
        i, j = self.index(a), self.index(b)
        value = float(self.strengths[i] - self.strengths[j])
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        error = float(np.sqrt(max(variance, 0.0)))
        z = NormalDist().inv_cdf(0.5 + self.level / 2)
        return Estimate(value, error, value - z * error, value + z * error)

    def order(self) -> list[str]:
        """Items from strongest to weakest."""
        return [self.items[i] for i in np.argsort(-self.strengths, kind="stable")]
