"""RankDPO: ranked preference optimisation (Karthik et al., arXiv 2410.18013, algorithms 1 and 2).

For k pictures of a prompt with gains psi and ranks tau (1 is best), and implicit rewards s = l_ref - l_theta,

    Delta_ij = |2^psi_i - 2^psi_j| |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|
    loss     = -sum over i better than j of Delta_ij log sigmoid(beta (s_i - s_j) / 2)

Special: all pairs of a ranking at once, weighted by what swapping them would change in the discounted gain (DCG). With
k = 2, weight 1 and shared noise it is Diffusion-DPO.

There is no public code. Algorithm 2 writes sigma(-beta (s_i - s_j)) with s = l_theta - l_ref of squared norms; here s
has the other sign, l is a mean over dimensions and beta carries the factor 1/2 of Diffusion-DPO. Learning rate, beta
and steps of the paper are not known to us: the presets are ours. Noise is drawn for each picture, the time is shared.
Chapter: techniques/06_direct_preference_optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.model import DiffusionModel
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.preference.diffusion_dpo import dpo_loss, implicit_accuracy
from surveylib.techniques.preference.implicit import check_beta, implicit_rewards, recorded_batch


@dataclass(frozen=True)
class RankDPOConfig:
    """Settings of RankDPO: beta > 0 (with the factor 1/2), pair weights, noise shared in a ranking, emptied prompts."""

    beta: float = 5000.0
    weights: Literal["dcg", "unit"] = "dcg"
    shared_noise: bool = False
    empty_prompts: float = 0.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.weights not in ("dcg", "unit"):
            raise TechniqueError(f"weights={self.weights!r}: choose 'dcg' or 'unit'")


def dcg_weights(gains: Tensor) -> Tensor:
    """Delta (M, k, k) of gains psi (M, k); 0 for ties."""
    ranks = gains.argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1
    discount = 1 / torch.log(1 + ranks.to(gains.dtype))
    gain = 2**gains
    return (gain[..., :, None] - gain[..., None, :]).abs() * (discount[..., :, None] - discount[..., None, :]).abs()


def rankdpo_loss(s: Tensor, gains: Tensor, beta: float, weights: Tensor) -> Tensor:
    """Losses (M,) of implicit rewards s (M, k), gains (M, k) and pair weights (M, k, k)."""
    better = gains[..., :, None] > gains[..., None, :]
    losses = dpo_loss(s[..., :, None], s[..., None, :], beta)
    return (losses * weights * better).sum((-1, -2))


class RankDPO(Technique):
    """RankDPO on recorded rankings."""

    name = "rankdpo"
    needs = ("rankings",)
    Config = RankDPOConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rows of the data."""
        return recorded_batch(model, draw, signal, self.config.empty_prompts)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule at one time a ranking."""
        c, gains = self.config, items["label"]
        s = implicit_rewards(model, items, shared_noise=c.shared_noise)
        weights = dcg_weights(gains) if c.weights == "dcg" else torch.ones_like(s)[..., None].expand(-1, -1, s.shape[1])
        better = gains[:, :, None] > gains[:, None, :]
        right = (implicit_accuracy(s[:, :, None], s[:, None, :]) * better).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)
        return rankdpo_loss(s, gains, c.beta, weights), {"implicit_accuracy": right.detach()}


RankDPO.PRESETS = {
    "full": Preset(
        RankDPOConfig(), Training(epochs=400, samples=1024, lr=1e-5, warmup=20, lora_rank=64, micro_batch=1,
                                  sample_batch=8, autocast="bfloat16"),
        model="sdxl", reward="own:pickscore",
        source="arXiv 2410.18013 for the rule; settings ours; the rankings are of 4 pictures for each prompt of the "
               "scale's setting, 75 texts, so 400 updates pass over them about 5,460 times",
        cost="1024 rankings an update, 400 updates",
    ),
    "single": Preset(
        RankDPOConfig(), Training(epochs=400, samples=64, lr=1e-5, warmup=20, lora_rank=16, micro_batch=1,
                                  sample_batch=8, autocast="bfloat16"),
        model="sd1.5", reward="own:pickscore", source="ours: cut to one 24 GB card", cost="64 rankings an update",
    ),
    "toy": Preset(
        RankDPOConfig(beta=2000.0), Training(epochs=60, samples=32, lr=3e-4, warmup=5, lora_rank=16, micro_batch=32),
        model="shapes-sd", reward="shapes-small", source="ours", cost="about 3 minutes on one core",
    ),
}
