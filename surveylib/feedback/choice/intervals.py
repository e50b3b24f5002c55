"""Intervals for fitted choice models: inverse Hessian, sandwich, bootstrap; records or clusters drawn independently.

With H the Hessian of minus the log-posterior and g_c the sum over cluster c of weight times the gradient of a record's
log-likelihood:

* hessian: V = H⁻¹.
* sandwich: V = H⁻¹ B H⁻¹, B = C/(C-1) Σ_c g_c g_cᵀ over C clusters (Huber 1967; clusters: Liang and Zeger 1986).
* bootstrap: refit on C clusters drawn with replacement; percentile interval (Efron 1979).
* bayesian bootstrap: refit with weights Exponential(1) for each cluster (Rubin 1981); percentile interval.

Covariances are carried from the free scale to the parameters by the delta method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from surveylib.feedback.choice.graph import NoFiniteFit, check_finite_fit
from surveylib.feedback.choice.result import Estimate

if TYPE_CHECKING:
    from surveylib.feedback.choice.fit import Problem
    from surveylib.feedback.choice.model import Data

Interval = Literal["sandwich", "hessian", "bootstrap", "bayesian bootstrap"]
MOST_FAILED = 0.1  # a larger share of resamples without a finite fit is an error


@dataclass(frozen=True, eq=False)
class Spread:
    """Estimates of all parameters (strengths, then extras) with their intervals, each (n + E,)."""

    value: np.ndarray
    covariance: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    description: str
    resamples: int = 0
    failed: int = 0

    def estimates(self) -> list[Estimate]:
        """One `Estimate` a parameter."""
        return [Estimate(*map(float, row)) for row in zip(self.value, self.standard_error, self.low, self.high)]


def cluster_numbers(data: Data, cluster: str | Sequence | None) -> tuple[np.ndarray, int, str]:
    """(M,) cluster of each record, how many there are, and what they are in words."""
    if cluster is None:
        return np.arange(len(data)), len(data), "records"
    labels, word = cluster, "given clusters"
    if isinstance(cluster, str):
        if cluster not in ("prompt", "annotator"):
            raise ValueError(f"unknown cluster {cluster!r}: choose 'prompt', 'annotator', None (records) "
                             "or give labels")
        labels, word = getattr(data, cluster), f"{cluster}s"
        if labels is None:
            raise ValueError(f"the records name no {cluster}: give {cluster}=... with the data, or another cluster")
    labels = [str(x) for x in labels]
    if len(labels) != len(data):
        raise ValueError(f"cluster has {len(labels)} labels for {len(data)} records: give one for each")
    names, number = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"one cluster only ({names[0]}): an interval needs at least two, better forty or more")
    return number, len(names), word


def estimate_intervals(
    problem: Problem, optimum: Tensor, hessian: Tensor, *, interval: str, cluster: str | Sequence | None, level: float,
    resamples: int, seed: int,
) -> Spread:
    """The parameters at ``optimum`` with intervals. See the module's docstring for the kinds."""
    if interval not in get_args(Interval):
        raise ValueError(f"unknown interval {interval!r}: choose one of {', '.join(get_args(Interval))}")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it is the coverage, between 0 and 1, such as 0.95")
    number, count, word = cluster_numbers(problem.data, cluster)
    if "bootstrap" in interval:
        return bootstrap(problem, optimum, number, count, interval=interval, level=level, resamples=resamples,
                         seed=seed, word=word)
    if interval == "hessian":
        if cluster is not None:
            raise ValueError("interval 'hessian' takes records as independent: to cluster, use 'sandwich' or a "
                             "bootstrap")
        free, description = torch.linalg.inv(hessian), "inverse Hessian"
    else:
        free = sandwich(problem, optimum, hessian, number, count)
        description = f"sandwich, {count} {word}"
    jacobian = problem.jacobian(optimum)
    value, covariance = problem.parameters(optimum).numpy(), (jacobian @ free @ jacobian.T).numpy()
    error = np.sqrt(np.clip(np.diag(covariance), 0, None))
    z = NormalDist().inv_cdf(0.5 + level / 2)
    low, high = value - z * error, value + z * error
    if problem.model.log_scale:
        ratio = np.exp(z * error[problem.n:] / value[problem.n:])
        low[problem.n:], high[problem.n:] = value[problem.n:] / ratio, value[problem.n:] * ratio
    return Spread(value, covariance, error, low, high, description)


def sandwich(problem: Problem, optimum: Tensor, hessian: Tensor, number: np.ndarray, count: int) -> Tensor:
    """H⁻¹ B H⁻¹ on the free scale, (F, F). ``number`` (M,) is the cluster of each record."""
    scores = problem.scores(optimum) * problem.data.weight[:, None]  # (M, F)
    summed = torch.zeros(count, scores.shape[1], dtype=scores.dtype).index_add(0, torch.as_tensor(number), scores)
    bread = torch.linalg.inv(hessian)
    return bread @ (summed.T @ summed * count / max(count - 1, 1)) @ bread


def bootstrap(
    problem: Problem, optimum: Tensor, number: np.ndarray, count: int, *, interval: str, level: float, resamples: int,
    seed: int, word: str,
) -> Spread:
    """Percentile interval over refits. A resample without a finite fit is counted, and an error above a tenth."""
    if resamples < 20:
        raise ValueError(f"resamples is {resamples}: a percentile interval needs at least 20, better 200 or more")
    rng, draws, failed = np.random.default_rng(seed), [], 0
    for _ in range(resamples):
        times = rng.exponential(size=count) if interval == "bayesian bootstrap" else \
            rng.multinomial(count, np.full(count, 1 / count))
        try:
            draws.append(problem.parameters(refit(problem, optimum, times[number])).numpy())
        except (NoFiniteFit, RuntimeError):
            failed += 1
    if failed > MOST_FAILED * resamples:
        raise NoFiniteFit(f"{failed} of {resamples} resamples have no finite fit: pass prior=..., use interval="
                          "'bayesian bootstrap' (no record is ever absent) or 'sandwich', or collect comparisons")
    drawn, tail = np.stack(draws), (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    covariance = np.cov(drawn, rowvar=False)
    return Spread(problem.parameters(optimum).numpy(), covariance, drawn.std(0, ddof=1), low, high,
                  f"{interval}, {count} {word}, {resamples} resamples", resamples, failed)


def refit(problem: Problem, optimum: Tensor, times: np.ndarray) -> Tensor:
    """The optimum (F,) with record m counted ``times[m]`` times, searched from the old optimum."""
    from surveylib.feedback.choice.fit import newton  # here, because fitting needs this module

    if problem.prior is None:
        winners, losers, record = problem.data.wins()
        there = times[record] > 0
        check_finite_fit(problem.data.items, winners[there], losers[there])
    return newton(problem, problem.data.weight * torch.as_tensor(times, dtype=torch.float64), optimum)[0]
