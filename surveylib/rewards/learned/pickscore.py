"""PickScore: a cosine head and a softmax over two pictures, with ties and example weights (arXiv 2305.01569).

    s(x, c) = exp(tau) * cos(E_img(x), E_txt(c))
    p_hat   = softmax(s_1, s_2)
    L       = KL(p || p_hat) = sum_i p_i (log p_i - log p_hat_i),   p = (1, 0), (0, 1) or (1/2, 1/2)
    L_batch = sum_j w_j L_j,   w_j = (1 / n_j) / sum_k (1 / n_k),   n_j examples of the prompt of example j

For p in {0, 1} this is cross entropy, which is Bradley-Terry's -log sigmoid(s_w - s_l). For a tie it is the cross
entropy minus the tie's entropy log 2, so that equal scores cost nothing, as in the official code. There n_j is a
column of the data set (num_example_per_prompt) and the weights are normalised over the global batch; here n_j is
counted in the data. Any p in [0, 1] is accepted (aggregated votes). Chapter: "Learning a reward".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surveylib.rewards.learned.trunk import Features, Widths

LOGIT_SCALE = math.log(1 / 0.07)  # CLIP's initial value, 2.6592 (arXiv 2103.00020)


def preference_loss(score_1: Tensor, score_2: Tensor, preference: Tensor) -> Tensor:
    """KL(p || softmax(s_1, s_2)), (M,) each; `preference` is the probability in [0, 1] that the first wins."""
    log_odds = score_1 - score_2
    cross = -preference * F.logsigmoid(log_odds) - (1 - preference) * F.logsigmoid(-log_odds)
    return cross - entropy(preference)


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats of (p, 1 - p); 0 at 0 and 1."""
    return torch.special.entr(p) + torch.special.entr(1 - p)


def example_weights(prompt_ids: Tensor) -> Tensor:
    """(M,) 1 / number of examples of the same prompt, counted in `prompt_ids` (M,): every prompt weighs the same."""
    _, group, count = prompt_ids.unique(return_inverse=True, return_counts=True)
    return 1.0 / count[group].float()


def normalised(weights: Tensor) -> Tensor:
    """Weights of a batch divided by their sum.

    Raises:
        ValueError: a negative weight, or all of them zero.
    """
    total = weights.sum()
    if (weights < 0).any() or not total > 0:
        raise ValueError(f"weights of a batch must be at least 0 with a positive sum; they sum to {total:.4g}")
    return weights / total


class PickScoreHead(nn.Module):
    """s = exp(logit scale) * cosine. Nothing but the scale is the head's own; the trunk's last layers do the work.

    With a trunk that is frozen throughout, `adapt=True` gives it a linear map of the picture's embedding to train,
    initialised to the identity (ours).
    """

    name = "pickscore"
    outputs = ("score",)

    def __init__(self, widths: Widths, adapt: bool = False, logit_scale: float = LOGIT_SCALE):
        super().__init__()
        self.options = {"adapt": adapt}
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        self.adapt = nn.Linear(widths.projection, widths.projection, bias=False) if adapt else nn.Identity()
        if adapt:
            nn.init.eye_(self.adapt.weight)

    def forward(self, features: Features) -> Tensor:
        """(B, 1)."""
        cosine = F.cosine_similarity(self.adapt(features.image).float(), features.text.float(), dim=-1)
        return (self.logit_scale.clamp(max=math.log(100)).exp() * cosine)[:, None]

    def reward(self, outputs: Tensor) -> Tensor:
        """(B,) of `forward`'s (B, 1)."""
        return outputs[:, 0]

    def range(self) -> tuple[float, float]:
        """Scores lie between minus and plus the logit scale."""
        scale = math.exp(min(self.logit_scale.item(), math.log(100)))
        return -scale, scale

    def loss(self, first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
        """(M,) losses of outputs (M, 1) each."""
        return preference_loss(first[:, 0], second[:, 0], preference)
