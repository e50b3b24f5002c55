"""Win rate: how often a model's picture scores above the base model's from the same prompt and noise.

    w = mean( 1[r - r_base > tie] + 1/2 1[|r - r_base| <= tie] )

Same prompt and same noise pair the two pictures, which takes the prompt's difficulty out of the comparison. Prompts are
drawn, pictures of one prompt are not independent: intervals are clustered by prompt.

A win counts the same however small it is. So a continuous score needs a `tie`: with 0, two models whose pictures nobody
can tell apart get the win rate of the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from surveylib.evaluation.intervals import LEVEL, Mean, clustered_mean

TIE = 0.01  # of gold in [0, 1]: differences that nobody sees; one part that is quite wrong moves it by a tenth or more


def tie_of(score: str) -> float:
    """The tie of a score by its name: `TIE` for "gold". 0 for every other one: its scale is its own (a reward) or it
    has steps (pass), so no size is known below which a difference does not count."""
    return TIE if score == "gold" else 0.0


def outcomes(scores: ArrayLike, base: ArrayLike, tie: float = 0.0) -> np.ndarray:
    """(N,): 1 for a win, 1/2 for a tie, 0 for a loss.

    Args:
        scores, base: (N,) of the same prompts and noise. tie: differences up to this are a tie.

    Raises:
        ValueError: lengths that differ, none, scores that are not finite, a negative tie.
    """
    scores, base = np.asarray(scores, dtype=float), np.asarray(base, dtype=float)
    if scores.shape != base.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores {scores.shape} and base {base.shape} must be (N,) with N at least 1, from the same "
                         "prompts and noise")
    if not (np.isfinite(scores).all() and np.isfinite(base).all()):
        raise ValueError("a score is NaN or infinite: leave that prompt out of both, and say so")
    if tie < 0:
        raise ValueError(f"tie={tie} must be 0 or more")
    difference = scores - base
    return np.where(np.abs(difference) <= tie, 0.5, (difference > 0).astype(float))


def win_rate(
    scores: ArrayLike, base: ArrayLike, prompts: Sequence[str], *, tie: float = 0.0, level: float = LEVEL
) -> Mean:
    """Win rate against base with its prompt-clustered interval; arguments as in `outcomes`, prompts (N,)."""
    return clustered_mean(outcomes(scores, base, tie), prompts, level)
