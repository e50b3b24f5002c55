"""Arena: all techniques compared picture by picture, strengths by Bradley-Terry.

Every pair of techniques meets on every picture (same prompt, same noise); the higher score wins, scores that differ by
no more than `tie` are worth one half to each, as in public arenas. Strengths come from `surveylib.feedback.choice`; the
sandwich interval is clustered by prompt, because a prompt decides many matches at once.

The rating is 1000 + 400 / log 10 times the strength, in Elo's units: 400 points are odds of 10 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from numpy.typing import ArrayLike

from surveylib.evaluation.win_rate import outcomes
from surveylib.feedback.choice import BradleyTerry, ChoiceFit, comparisons

POINTS = 400 / math.log(10)
CENTRE = 1000.0


@dataclass(frozen=True)
class Place:
    """One technique. rank: 1 + number of techniques whose interval lies wholly above its own."""

    name: str
    rating: float
    low: float
    high: float
    rank: int


@dataclass(frozen=True, eq=False)
class Arena:
    """fit: strengths in nats with covariance. places: from strongest to weakest. matches: how many were played."""

    fit: ChoiceFit
    places: tuple[Place, ...]
    matches: int


def arena(
    scores: Mapping[str, ArrayLike], prompts: Sequence[str], *, tie: float = 0.0, prior: float | None = None,
    interval: str = "sandwich", level: float = 0.95, seed: int = 0,
) -> Arena:
    """Bradley-Terry over all pairs.

    Args:
        scores: technique -> (N,) scores of its pictures, all from the same prompts and noise.
        prompts: (N,), the clusters.
        tie: differences up to this are a tie.
        prior: standard deviation of a normal prior on the strengths; None is maximum likelihood, which does not exist
            where a technique wins or loses every match.
        interval, level, seed: see `ChoiceModel.fit`.

    Raises:
        ValueError: fewer than two techniques, lengths that differ, scores that are not finite.
        NoFiniteFit: see `prior`.
    """
    if len(scores) < 2:
        raise ValueError(f"an arena needs at least two techniques, got {', '.join(scores) or 'none'}")
    first, second, preference, where = [], [], [], []
    for a, b in combinations(scores, 2):
        found = outcomes(scores[a], scores[b], tie)
        if len(found) != len(prompts):
            raise ValueError(f"{len(found)} scores of {a} for {len(prompts)} prompts: give the prompt of each picture")
        first += [a] * len(found)
        second += [b] * len(found)
        preference += found.tolist()
        where += list(prompts)
    data = comparisons(first, second, preference, prompt=where, items=list(scores))
    fit = BradleyTerry().fit(data, prior=prior, interval=interval, cluster="prompt", level=level, seed=seed)
    return Arena(fit, places(fit), len(data))


def places(fit: ChoiceFit) -> tuple[Place, ...]:
    """Ratings with intervals and ranks, strongest first."""
    low, high = CENTRE + POINTS * fit.low, CENTRE + POINTS * fit.high
    found = []
    for name in fit.order():
        i = fit.index(name)
        found.append(Place(name, float(CENTRE + POINTS * fit.strengths[i]), float(low[i]), float(high[i]),
                           1 + int((low > high[i]).sum())))
    return tuple(found)
