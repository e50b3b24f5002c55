"""MPS: one reward model for several dimensions of preference (arXiv 2405.14705).

    L = sum_d w_d L_d,   L_d = cross entropy of softmax(s_1^d, s_2^d) against the choice made on dimension d

In the paper every dimension has condition words; prompt tokens unlike them are masked out of the cross attention, so
that each dimension reads another part of the prompt. `condition_mask` is that rule. `MPSHead` has a learned query a
dimension in its place (ours: the grammar of the Shapes world has no words such as "aesthetics"). A missing answer is
NaN and enters no loss. Chapter: "Learning a reward".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from surveylib.feedback.pairs import PairData
from surveylib.rewards.learned.fusion import Fusion
from surveylib.rewards.learned.pickscore import preference_loss
from surveylib.rewards.learned.trunk import Features, Widths

DIMENSIONS = ("overall", "aesthetics", "alignment", "detail")  # of the paper
THRESHOLD = 0.3  # of the released evaluation scripts; the released model's forward has 0.01


def dimension_loss(first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """(M,) losses, summed over the dimensions that were judged.

    Args:
        first, second: (M, K) scores of each picture of a pair, a column a dimension.
        preference: (M, K) probability that the first wins, NaN where the dimension was not judged.
    """
    judged = ~preference.isnan()
    loss = preference_loss(first, second, preference.nan_to_num(0.5))
    return (loss * judged).sum(1)


def condition_mask(prompt: Tensor, condition: Tensor, valid: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which prompt tokens a condition keeps: (B, L) bool.

    The largest dot product of a token with any condition token, scaled to [0, 1] over the prompt's valid tokens, must
    exceed the threshold.

    Args:
        prompt: (B, L, W) tokens. condition: (C, W) tokens of the condition's words. valid: (B, L) bool.
    """
    best = (prompt @ condition.T).amax(-1)
    low = best.masked_fill(~valid, float("inf")).amin(1, keepdim=True)
    high = best.masked_fill(~valid, float("-inf")).amax(1, keepdim=True)
    return valid & ((best - low) / (high - low).clamp(min=1e-12) > threshold)


class MPSHead(nn.Module):
    """One score a dimension: a learned query a dimension weighs the fused tokens; then a linear layer of its own.

    Args:
        dimensions: their names; the first is the reward.
    """

    name = "mps"

    def __init__(self, widths: Widths, dimensions: Sequence[str] = DIMENSIONS):
        super().__init__()
        if len(set(dimensions)) < len(dimensions) or not dimensions:
            raise ValueError(f"dimensions {list(dimensions)} must be different names, at least one")
        self.options = {"dimensions": list(dimensions)}
        self.outputs = tuple(dimensions)
        self.fusion = Fusion(widths)
        size = widths.projection
        self.query = nn.Parameter(torch.randn(len(dimensions), size) / size**0.5)
        self.out = nn.ModuleList(nn.Linear(self.fusion.width, 1) for _ in dimensions)

    def forward(self, features: Features) -> Tensor:
        """(B, K), a column a dimension."""
        tokens = self.fusion.tokens(features)
        weight = (tokens @ self.query.T).masked_fill(~features.text_mask[..., None], float("-inf")).softmax(1)
        pooled = torch.einsum("blk,blw->kbw", weight, tokens)
        columns = [layer(self.fusion.join(token, features)) for layer, token in zip(self.out, pooled)]
        return torch.cat(columns, 1).float()

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,): the first dimension."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """No bound."""
        return float("-inf"), float("inf")

    def loss(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """(M,); `preference` (M, K), or (M,) where there is one dimension."""
        if preference.ndim == 1:
            preference = preference[:, None]
        if preference.shape != first.shape:
            raise ValueError(f"preferences of shape {tuple(preference.shape)} for {len(self.outputs)} dimensions "
                             f"{', '.join(self.outputs)}: make them with mps.dimension_pairs")
        return dimension_loss(first, second, preference)


def dimension_pairs(by_dimension: Mapping[str, PairData], dimensions: Sequence[str] = DIMENSIONS) -> PairData:
    """Pairs of several dimensions as one `PairData` whose preference is (M, K), NaN where a row judged another one.

    Raises:
        ValueError: a dimension that is not in `dimensions`, or pictures of different sizes.
    """
    unknown = [name for name in by_dimension if name not in dimensions]
    if unknown or not by_dimension:
        raise ValueError(f"unknown dimensions {unknown}; known: {', '.join(dimensions)}; at least one is needed")
    parts, texts, shift = list(by_dimension.items()), {}, 0
    images, first, second, prompts, columns, weights = [], [], [], [], [], []
    for name, pairs in parts:
        column = torch.full((len(pairs), len(dimensions)), float("nan"))
        column[:, list(dimensions).index(name)] = pairs.preference
        images.append(pairs.images)
        first.append(pairs.first + shift)
        second.append(pairs.second + shift)
        prompts += pairs.prompts
        columns.append(column)
        weights.append(pairs.weight)
        shift += len(pairs.images)
    ids = torch.tensor([texts.setdefault(text, len(texts)) for text in prompts])
    skipped = sum((pairs.skipped for _, pairs in parts), parts[0][1].skipped.__class__())
    return PairData(torch.cat(images), torch.cat(first), torch.cat(second), prompts, ids, torch.cat(columns),
                    torch.cat(weights), skipped)
