"""Ensembles of rewards with a lower confidence bound.

    r_LCB(x, c) = mean_m r_m(x, c) - k * std_m r_m(x, c)

Where members disagree the reward is not trusted. std has M - 1 in the denominator. The minimum over members is the
limit of pessimism ("worst-case" in arXiv 2310.02743, which for its soft form subtracts the variance in place of the
deviation). Members must be on one scale: standardise them first (`RewardConfig.standardise`). Chapter: "Learning a
reward".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveylib.rewards.contract import Reward


def lower_confidence_bound(scores: Tensor, k: float = 1.0) -> Tensor:
    """mean - k std over the members: scores (M, B) -> (B,). With one member the deviation counts as 0."""
    if len(scores) == 1:
        return scores[0]
    # At equal scores std has no derivative; a tiny variance is added under the root and taken off again.
    variance, tiny = scores.var(0), 1e-12
    return scores.mean(0) - k * ((variance + tiny).sqrt() - tiny**0.5)


class Ensemble(Reward):
    """Several rewards as one: their lower confidence bound.

    Args:
        members: at least one reward.
        k: how many standard deviations are taken off; 0 is the plain mean.
        name: default: made of the members' names.

    Raises:
        ValueError: no member, or a negative k.
    """

    def __init__(self, members: Sequence[Reward], k: float = 1.0, name: str = ""):
        if not members or k < 0:
            raise ValueError(f"an ensemble needs at least one member and k >= 0, got {len(members)} and k={k}")
        self.members, self.k = list(members), float(k)
        self.name = name or f"lcb({', '.join(m.name for m in members)}; k={k:g})"
        self.differentiable = all(m.differentiable for m in members)
        self.needs_prompt = any(m.needs_prompt for m in members)
        bounds = [m.range for m in members]
        # a deviation is at most the members' spread times sqrt(M / (M - 1)) / 2 <= spread / sqrt(2)
        high, low = max(b for _, b in bounds), min(a for a, _ in bounds)
        self.range = (low - self.k * (high - low) / 2**0.5 if self.k else low, high)

    def member_scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(M, B): each member's scores."""
        return torch.stack([member(images, prompts).to(images.device) for member in self.members])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) lower confidence bounds."""
        return lower_confidence_bound(self.member_scores(images, prompts), self.k)

    def to(self, device: torch.device | str) -> Ensemble:
        """Moves every member."""
        for member in self.members:
            member.to(device)
        return self
