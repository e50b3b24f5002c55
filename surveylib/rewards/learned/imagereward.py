"""ImageReward: a scalar head on fused picture and text, Bradley-Terry over all ranked pairs (arXiv 2304.05977).

    L(prompt) = -1 / |P| sum_{(i, j) in P} log sigmoid(r_i - r_j),   P: all pairs of the ranking with i above j

Head: the fused feature through linear layers 768-1024-128-64-16-1 without activations, dropout 0.2, 0.2, 0.1 between
the first four (official code). After training the score is standardised, as the released model is. Ties enter no
pair. Deviations: the fusion is `fusion.Fusion` on CLIP's tokens, where the paper has BLIP's text encoder with cross
attention; `widths` sets the layers (the toy's are smaller). Chapter: "Learning a reward".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.rewards.learned.fusion import Fusion
from surveylib.rewards.learned.pickscore import preference_loss
from surveylib.rewards.learned.trunk import Features, Widths

PAPER_WIDTHS = (1024, 128, 64, 16)
DROPOUT = (0.2, 0.2, 0.1)


def ranking_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Mean of -log sigmoid(r_i - r_j) over all pairs of one ranking with i above j.

    Args:
        scores: (K,). ranks: (K,), 1 is best; pairs of equal rank are left out.

    Raises:
        ValueError: no pair of different ranks.
    """
    above = ranks[:, None] < ranks[None, :]  # (K, K)
    if not above.any():
        raise ValueError(f"ranks {ranks.tolist()} hold no pair of different ranks")
    return -F.logsigmoid(scores[:, None] - scores[None, :])[above].mean()


def scalar_mlp(width: int, hidden: tuple[int, ...], outputs: int = 1) -> nn.Sequential:
    """Linear layers without activations between them, with the paper's dropout after the first three."""
    layers: list[nn.Module] = []
    for place, size in enumerate(hidden):
        layers.append(nn.Linear(width, size))
        if place < len(DROPOUT):
            layers.append(nn.Dropout(DROPOUT[place]))
        width = size
    last = nn.Linear(width, outputs)
    return nn.Sequential(*layers, last)


class ImageRewardHead(nn.Module):
    """Fusion, then the scalar layers."""

    name = "imagereward"
    outputs = ("score",)

    def __init__(self, widths: Widths, hidden: tuple[int, ...] = PAPER_WIDTHS):
        super().__init__()
        self.options = {"hidden": list(hidden)}
        self.fusion = Fusion(widths)
        self.layers = scalar_mlp(self.fusion.width, tuple(hidden))

    def forward(self, features: Features) -> Tensor:
        """(B, 1)."""
        return self.layers(self.fusion(features)).float()

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,) of `forward`'s (B, 1)."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """No bound."""
        return float("-inf"), float("inf")

    def loss(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """(M,) losses of outputs (M, 1); a tie contributes nothing, as in the paper."""
        loss = preference_loss(first[:, 0], second[:, 0], preference)
        return torch.where(preference == 0.5, torch.zeros_like(loss), loss)
