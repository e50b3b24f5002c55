"""Rewards made of rewards: weighted sum, minimum, rank ensemble, standardised.

Sum, minimum and standardised are differentiable where all their parts are. Each part is called through the contract,
so its pictures are counted and its scores are checked under its own name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from surveylib.rewards.contract import Reward

LEAST_STD = 1e-8  # below it the scores of the fitting batch do not differ


class Combined(Reward):
    """Base of the combinators.

    Raises:
        ValueError: no parts.
        TypeError: a part that is not a Reward.
    """

    def __init__(self, parts: Sequence[Reward], name: str):
        parts = list(parts)
        if not parts:
            raise ValueError(f"{name}: give at least one reward")
        for part in parts:
            if not isinstance(part, Reward):
                raise TypeError(f"{name}: a part is a Reward, not {type(part).__name__}; see FunctionReward")
        self.parts, self.name = parts, name
        self.differentiable = all(part.differentiable for part in parts)
        self.needs_prompt = any(part.needs_prompt for part in parts)

    def scores_of_parts(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(number of parts, B) scores, in the order of `parts`, on the pictures' device."""
        return torch.stack([part(images, prompts).to(images.device) for part in self.parts])

    def to(self, device: torch.device | str) -> Combined:
        """Moves the parts."""
        self.parts = [part.to(device) for part in self.parts]
        return self


class WeightedSum(Combined):
    """sum_k w_k r_k. Weights may be negative. Scales of the parts differ: standardise them first.

    Args:
        weights: reward -> weight.
    """

    def __init__(self, weights: Mapping[Reward, float], name: str = "weighted_sum"):
        super().__init__(list(weights), name)
        bad = [weight for weight in weights.values() if not math.isfinite(weight)]
        if bad:
            raise ValueError(f"{name}: weights must be finite, not {bad}")
        self.weights = tuple(float(weight) for weight in weights.values())
        ends = [sorted(w * e for e in part.range) if w else [0.0, 0.0] for w, part in zip(self.weights, self.parts)]
        self.range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        return torch.einsum("k,kb->b", images.new_tensor(self.weights).float(), self.scores_of_parts(images, prompts))


class Minimum(Combined):
    """min_k r_k: a picture is as good as its worst part. Parts need a common scale (`Standardised`)."""

    def __init__(self, parts: Sequence[Reward], name: str = "minimum"):
        super().__init__(parts, name)
        self.range = (min(part.range[0] for part in self.parts), min(part.range[1] for part in self.parts))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,); the gradient is that of the least part."""
        return self.scores_of_parts(images, prompts).min(0).values


def fractional_ranks(scores: Tensor) -> Tensor:
    """Ranks of (..., B) scores along the last dimension, 0 for the worst and 1 for the best; ties share their mean.

    A single score has rank 0.5.
    """
    below = (scores[..., None, :] < scores[..., :, None]).float().sum(-1)
    tied = (scores[..., None, :] == scores[..., :, None]).float().sum(-1) - 1
    count = scores.shape[-1]
    return torch.full_like(below, 0.5) if count == 1 else (below + tied / 2) / (count - 1)


class RankEnsemble(Combined):
    """Mean over the parts of the rank within the batch, in [0, 1]: free of the parts' scales. Not differentiable.

    A score depends on the batch: only compare scores of one call.

    Args:
        by_prompt: rank among the pictures of the same prompt instead of among all.
    """

    range = (0.0, 1.0)

    def __init__(self, parts: Sequence[Reward], by_prompt: bool = False, name: str = "rank_ensemble"):
        super().__init__(parts, name)
        self.by_prompt, self.differentiable = by_prompt, False
        self.needs_prompt = self.needs_prompt or by_prompt

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]."""
        scores = self.scores_of_parts(images, prompts)
        if not self.by_prompt:
            return fractional_ranks(scores).mean(0)
        ranks = torch.empty_like(scores)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([i for i, other in enumerate(prompts) if other == prompt], device=scores.device)
            ranks[:, rows] = fractional_ranks(scores[:, rows])
        return ranks.mean(0)


class Standardised(Combined):
    """(r - mean) / std with fixed constants, which the attributes `mean` and `std` state.

    Raises:
        ValueError: a mean that is not finite, or a std that is not positive.
    """

    def __init__(self, reward: Reward, mean: float, std: float, name: str | None = None):
        super().__init__([reward], name or f"standardised {getattr(reward, 'name', reward)}")
        if not math.isfinite(mean) or not (math.isfinite(std) and std > LEAST_STD):
            raise ValueError(f"{self.name}: needs a finite mean and a positive std, not mean {mean} and std {std}")
        self.mean, self.std = float(mean), float(std)
        self.range = tuple((end - self.mean) / self.std for end in reward.range)

    @classmethod
    def fit(cls, reward: Reward, images: Tensor, prompts: Sequence[str] | None = None) -> Standardised:
        """Takes mean and (population) std of the reward over a batch of pictures.

        Raises:
            ValueError: fewer than two pictures, or all scores equal.
        """
        if len(images) < 2:
            raise ValueError(f"standardising {reward.name!r} needs at least two pictures, not {len(images)}")
        with torch.no_grad():
            scores = reward(images, prompts)
        if float(scores.std(correction=0)) <= LEAST_STD:
            raise ValueError(f"all scores of {reward.name!r} on these pictures are {scores[0]:.4g}: no scale to fit")
        return cls(reward, float(scores.mean()), float(scores.std(correction=0)))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,): mean 0 and std 1 over the pictures of the fit."""
        return (self.scores_of_parts(images, prompts)[0] - self.mean) / self.std
