"""Diffusion-DPO: direct preference optimisation of diffusion models (Wallace et al., arXiv 2311.12908).

DPO's likelihood ratio is not known for a diffusion model. The paper takes that of whole chains, with states of the
forward process in place of the model's own posterior; it becomes a mean over (t, eps) of denoising errors l. The loss
of one random (t, eps), shared by winner and loser, in the form of the released code:

    m    = (l_theta(x_w) - l_theta(x_l)) - (l_ref(x_w) - l_ref(x_l))
    loss = -log sigmoid(-beta m / 2)

Eq. 14 of the paper has -beta T omega(lambda_t) before squared norms; the code drops T and omega, and has the factor
1/2 and means over dimensions.

Special: offline, one denoising step an item, no sampling and no reward. The expectation over t stands outside of
log sigmoid: the loss bounds, by Jensen, a DPO loss whose ratio is itself approximate.

beta: the released launchers say 5000 for all models; that belongs to the factor 1/2 and to the mean over dimensions.
Scripts without the 1/2 reach the same with half the number.

Flow models: the errors are those of the velocity eps - x0 with constant weight. error="epsilon" measures them in eps,
which multiplies them by (1 - sigma)^2.

Deviations from SalesforceAIResearch/DiffusionDPO: latents are posterior means (there: samples); no random crops.
Chapter: techniques/06_direct_preference_optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.predictions import check_kind
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.preference.implicit import check_beta, implicit_rewards, recorded_batch


@dataclass(frozen=True)
class DiffusionDPOConfig:
    """Settings of Diffusion-DPO.

    beta: > 0, strength of the reference (with the factor 1/2). error: parametrisation of the denoising error, None for
    the model's own. empty_prompts: share of prompts replaced by "", in [0, 1).
    """

    beta: float = 5000.0
    error: str | None = None
    empty_prompts: float = 0.2

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.error is not None:
            check_kind(self.error)
        if not 0 <= self.empty_prompts < 1:
            raise TechniqueError(f"empty_prompts={self.empty_prompts} must be in [0, 1)")


def dpo_loss(winner: Tensor, loser: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (s_w - s_l) / 2), (M,), of implicit rewards s = l_ref - l_theta; s_w - s_l = -m."""
    return -F.logsigmoid(0.5 * beta * (winner - loser))


def implicit_accuracy(winner: Tensor, loser: Tensor) -> Tensor:
    """(M,): 1 where the winner has the greater implicit reward, 1/2 for a tie, 0 otherwise."""
    return 0.5 * (torch.sign(winner - loser) + 1)


class DiffusionDPO(Technique):
    """Diffusion-DPO on recorded pairs."""

    name = "diffusion_dpo"
    needs = ("pairs",)
    Config = DiffusionDPOConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rows of the data, the winner first."""
        batch = recorded_batch(model, draw, signal, self.config.empty_prompts)
        x, label = batch.samples["x"], batch.samples["label"]
        rows = torch.arange(len(x), device=x.device)
        ordered = torch.stack([x[rows, label], x[rows, 1 - label]], 1)
        return Batch(batch.condition, {"x": ordered})

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule at one time and noise a pair."""
        winner, loser = implicit_rewards(model, items, kind=self.config.error).unbind(1)
        metrics = {"implicit_accuracy": implicit_accuracy(winner, loser).detach(), "margin": (winner - loser).detach()}
        return dpo_loss(winner, loser, self.config.beta), metrics


DiffusionDPO.PRESETS = {
    "full": Preset(
        DiffusionDPOConfig(beta=5000.0),
        Training(epochs=2000, samples=2048, lr=2.05e-5, weight_decay=1e-2, warmup=500, lora_rank=None, micro_batch=1,
                 sample_batch=8, autocast="float16"),
        model="sd1.5", reward="pickapic_v2",
        source="arXiv 2311.12908 and SalesforceAIResearch/DiffusionDPO launchers (16 GPUs; lr 1e-8 times 2048); here "
               "at most 10,000 records are read (alignment/preferences.py, MOST), up to 20,000 pictures: 16 GB kept, "
               "several times 63 GB while they are read; so 2,000 updates pass over the pairs at least 409 times",
        cost="2048 pairs an update, 2,000 updates",
    ),
    "single": Preset(
        DiffusionDPOConfig(beta=5000.0),
        Training(epochs=500, samples=128, lr=1e-5, weight_decay=1e-2, warmup=50, lora_rank=16, micro_batch=4,
                 sample_batch=8, autocast="bfloat16"),
        model="sd1.5", reward="pickapic_v2", source="ours: the paper's setting cut to one 24 GB card",
        cost="128 pairs an update, 500 updates",
    ),
    "toy": Preset(
        DiffusionDPOConfig(beta=2000.0, empty_prompts=0.1),
        Training(epochs=60, samples=64, lr=3e-4, warmup=5, lora_rank=16, micro_batch=64),
        model="shapes-sd", reward="shapes-small", source="ours", cost="about 4 minutes on one core",
    ),
}
