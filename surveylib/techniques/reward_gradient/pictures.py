"""From latents to a reward with its gradient: what every method of this family does at the end of its chain."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from surveylib.diffusion.clamp import straight_through_clamp
from surveylib.diffusion.model import DiffusionModel
from surveylib.rewards.contract import Reward


def reward_of(model: DiffusionModel, latents: Tensor, reward: Reward, prompts: Sequence[str]) -> Tensor:
    """Rewards (B,) of decoded latents, with a gradient to the latents. Points of the Gaussian world are not clamped."""
    samples = model.decode(latents)
    return reward(straight_through_clamp(samples) if samples.ndim == 4 else samples, list(prompts))
