"""Diffusion-KTO: utilities of single pictures that were liked or not (Li et al., arXiv 2404.04465).

With g = l_ref - l_theta at one random (t, eps), y = +1 for liked and -1 for disliked, and z the reference point,

    z    = max(0, mean of g over the whole update), without gradient
    loss = lambda_y (1 - sigmoid(y beta (g - z)))

Special: needs no pairs. The utility may also be loss-averse (log sigmoid) or risk-seeking (-log sigmoid(-x)).
beta is not halved here.

Deviations from jacklishufan/diffusion-kto: classes are balanced by weights only, there is no sampler by class (its
launcher draws 80 % liked). From pairs, the preferred picture is liked and the other not, half and half; there a picture
is liked if it won anywhere, also where it lost as well.
Chapter: techniques/06_direct_preference_optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.diffusion.model import DiffusionModel
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.preference.implicit import check_beta, implicit_rewards, recorded_batch

Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]
UTILITIES = ("kahneman_tversky", "loss_averse", "risk_seeking")


@dataclass(frozen=True)
class DiffusionKTOConfig:
    """Settings of Diffusion-KTO: beta > 0, weights of liked and disliked pictures >= 0, utility, emptied prompts."""

    beta: float = 1000.0
    liked: float = 1.0
    disliked: float = 1.0
    utility: Utility = "kahneman_tversky"
    empty_prompts: float = 0.2

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.utility not in UTILITIES:
            raise TechniqueError(f"utility={self.utility!r}: choose one of {', '.join(UTILITIES)}")
        if min(self.liked, self.disliked) < 0 or self.liked + self.disliked == 0:
            raise TechniqueError(f"liked={self.liked} and disliked={self.disliked} must be >= 0 and not both 0")


def kto_loss(
    g: Tensor, label: Tensor, reference_point: Tensor, beta: float, liked: float = 1.0, disliked: float = 1.0,
    utility: Utility = "kahneman_tversky",
) -> Tensor:
    """Losses (M,) of implicit rewards g (M,), labels 1 or 0 (M,) and z, a number that gets no gradient."""
    sign = 2.0 * label.to(g.dtype) - 1.0
    value = sign * beta * (g - reference_point.detach())
    gain = {"kahneman_tversky": torch.sigmoid(value), "loss_averse": F.logsigmoid(value),
            "risk_seeking": -F.logsigmoid(-value)}[utility]
    return torch.where(label > 0, liked, disliked) * (1 - gain)


class DiffusionKTO(Technique):
    """Diffusion-KTO on recorded likes."""

    name = "diffusion_kto"
    needs = ("binary",)
    Config = DiffusionKTOConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rows of the data."""
        return recorded_batch(model, draw, signal, self.config.empty_prompts)

    def shared(self, model: DiffusionModel, items: Items, signal: Any) -> dict[str, Tensor]:
        """g, whose mean over the update is the reference point."""
        with torch.no_grad():
            return {"g": implicit_rewards(model, items)[:, 0]}

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, at the same times and noise as `shared`."""
        c = self.config
        g = implicit_rewards(model, items)[:, 0]
        z = means["g"].to(g).clamp(min=0)
        losses = kto_loss(g, items["label"], z, c.beta, c.liked, c.disliked, c.utility)
        return losses, {"implicit_reward": g.detach(), "reference_point": z}


DiffusionKTO.PRESETS = {
    "full": Preset(
        DiffusionKTOConfig(),
        Training(epochs=20000, samples=8, lr=1e-7, weight_decay=1e-2, warmup=200, lora_rank=None, micro_batch=2,
                 sample_batch=8, autocast="float16"),
        model="sd1.5", reward="pickapic",
        source="jacklishufan/diffusion-kto (4 GPUs, 2 pictures each); here at most 10,000 records are read "
               "(alignment/preferences.py, MOST), up to 20,000 pictures: 16 GB kept, several times 63 GB while they "
               "are read; each pair gives a like and a dislike, where the code draws 80 % liked (positive_ratio)",
        cost="8 pictures an update, 20,000 updates",
    ),
    "single": Preset(
        DiffusionKTOConfig(),
        Training(epochs=1000, samples=64, lr=1e-5, weight_decay=1e-2, warmup=50, lora_rank=16, micro_batch=8,
                 sample_batch=8, autocast="bfloat16"),
        model="sd1.5", reward="pickapic", source="ours: cut to one 24 GB card", cost="64 pictures an update",
    ),
    "toy": Preset(
        DiffusionKTOConfig(empty_prompts=0.1), Training(epochs=60, samples=64, lr=3e-4, warmup=5, lora_rank=16),
        model="shapes-sd", reward="shapes-small", source="ours", cost="about 5 minutes on one core",
    ),
}
