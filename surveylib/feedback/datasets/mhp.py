"""MHP, the data of the Multi-dimensional Preference Score (arXiv 2405.14705): the counting of its test scripts.

The paper's choices on four dimensions (overall, aesthetics, alignment, detail) are not in its public repository
(github.com/Kwai-Kolors/MPS): there is nothing to load. What is public are two scripts that score a model on the tests
of ImageReward and HPD v2. They count ties of the model differently, which moves the printed accuracy:

    eval_overall_mps_on_imagereward.py   pairs of different rank; a tie in score counts as wrong
    eval_overall_mps_on_hpdv2.py         all pairs of a prompt; only a strict inversion is wrong; mean over prompts
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

DIMENSIONS = ("overall", "aesthetics", "alignment", "detail")
Ranked = Sequence[tuple[Sequence[float], Sequence[float]]]  # one (ranks, scores) a prompt


def _check(prompts: Ranked) -> None:
    if not prompts:
        raise ValueError("no prompts to count; give one (ranks, scores) a prompt")
    for number, (ranks, scores) in enumerate(prompts):
        if len(ranks) != len(scores) or len(ranks) < 2:
            raise ValueError(f"prompt {number}: {len(ranks)} ranks and {len(scores)} scores; need equally many, >= 2")


def accuracy_as_on_imagereward(prompts: Ranked) -> float:
    """Share of the pairs with different ranks whose better ranked picture (lower rank) has the strictly higher score.

    Raises:
        ValueError: nothing to count, or as many ranks as scores are not given.
    """
    _check(prompts)
    right = total = 0
    for ranks, scores in prompts:
        for i, j in combinations(range(len(ranks)), 2):
            if ranks[i] != ranks[j]:
                total += 1
                right += scores[i] > scores[j] if ranks[i] < ranks[j] else scores[i] < scores[j]
    if total == 0:
        raise ValueError("every pair is a tie in rank; there is nothing to count")
    return right / total


def accuracy_as_on_hpdv2(prompts: Ranked) -> float:
    """Mean over prompts of one minus the share of strictly inverted pairs; ties of either kind count as right."""
    _check(prompts)
    total = 0.0
    for ranks, scores in prompts:
        pairs = list(combinations(range(len(ranks)), 2))
        total += 1 - sum((ranks[i] - ranks[j]) * (scores[i] - scores[j]) > 0 for i, j in pairs) / len(pairs)
    return total / len(prompts)
