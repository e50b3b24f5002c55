"""How well a reward orders rated pictures: rank and linear correlation with their mean ratings.

Protocol of aesthetic predictors: Spearman's rank correlation and Pearson's, over pictures of all prompts. Intervals
resample whole prompts. Ceiling: mean ratings of few people are noisy; where the expected rating is known (simulated
annotators), its own correlation with the mean ratings is what a perfect predictor would reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr

from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.aesthetic import RatingData
from surveylib.rewards.learned.evaluate import LEVEL, RESAMPLES, Estimate

CHUNK = 256


@dataclass(frozen=True)
class RatingReport:
    """Results of `evaluate_ratings`; correlations lie in [-1, 1], `ceiling` (of Spearman's) is None if unknown."""

    name: str
    spearman: Estimate
    pearson: Estimate
    ceiling: float | None = None

    def numbers(self) -> dict:
        """Plain numbers, for JSON."""
        out = {name: {"value": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4), "pictures": e.n}
               for name, e in (("spearman", self.spearman), ("pearson", self.pearson))}
        return out | {"ceiling": None if self.ceiling is None else round(self.ceiling, 4)}


def resampled_prompts(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of one bootstrap sample that takes whole groups; groups (M,) are whole numbers from 0."""
    rows = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[rows], np.arange(groups.max() + 2))
    taken = rng.integers(0, groups.max() + 1, groups.max() + 1)
    return np.concatenate([rows[bounds[g] : bounds[g + 1]] for g in taken])


@torch.no_grad()
def evaluate_ratings(
    reward: Reward, data: RatingData, expected: ArrayLike | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> RatingReport:
    """Correlations of a reward with mean ratings.

    Args:
        reward: any `Reward`. data: held-out ratings, see `to_ratings`.
        expected: (M,) ratings without chance, where known. seed, resamples: of the bootstrap.

    Raises:
        ValueError: fewer than three pictures, equal ratings or equal scores, or another number of expected ratings.
    """
    rating = data.rating.double().numpy()
    if len(rating) < 3 or np.ptp(rating) == 0:
        raise ValueError(f"{len(rating)} pictures with ratings from {rating.min():g} to {rating.max():g}: a "
                         "correlation needs at least three pictures and two different ratings")
    if expected is not None and len(np.asarray(expected)) != len(rating):
        raise ValueError(f"{len(np.asarray(expected))} expected ratings for {len(rating)} pictures")
    scores = torch.cat([reward.score(data.images[data.row[part]], [data.prompts[i] for i in part.tolist()])
                        for part in torch.arange(len(rating)).split(CHUNK)]).double().numpy()
    if np.ptp(scores) == 0:
        raise ValueError(f"the reward {reward.name!r} gives every picture {scores[0]:g}: it has no order to compare")
    groups = np.unique(data.prompt_ids.numpy(), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    draws = [resampled_prompts(groups, rng) for _ in range(resamples)]
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    estimates = []
    for correlation in (spearmanr, pearsonr):
        found = [correlation(scores[rows], rating[rows])[0] for rows in draws]
        estimates.append(Estimate(float(correlation(scores, rating)[0]), *map(float, np.nanpercentile(found, tails)),
                                  len(rating)))
    ceiling = None if expected is None else float(spearmanr(np.asarray(expected, float), rating)[0])
    return RatingReport(reward.name, *estimates, ceiling)
