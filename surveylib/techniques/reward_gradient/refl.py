"""ReFL: reward feedback learning (ImageReward, Xu et al., arXiv 2304.05977).

Denoise without gradient to a random late step t, call the network once with gradient, read off the clean picture it
predicts, and follow the reward of that:

    x0_hat = (x_t - s eps_theta(x_t, t, c)) / a,        loss = lambda phi(r(x0_hat, c)),   phi(r) = ReLU(2 - r)

with t uniform among steps 30 to 39 of 40 and lambda = 1e-3 (official code). phi stops pushing once the reward is 2.
Special: one step of gradient at any depth of the window, on the posterior mean instead of a sample. The window is late,
so colours and texture move and the composition hardly does. No guidance in the rollout.
Deviations from THUDM/ImageReward: a LoRA adapter at small scales; one step of the window for all pictures of an epoch;
rewards see a straight-through clamp; the toy preset has guidance and no ceiling; no pre-training loss, as in the
released script. Chapter: techniques/04_following_the_rewards_gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.contract import Reward
from surveylib.runs.randomness import normal, seed_of
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.reward_gradient.pictures import reward_of


@dataclass(frozen=True)
class ReFLConfig:
    """Settings of ReFL.

    steps: of the rollout. first, last: window of step numbers, both included, 0 the noisiest.
    scale: lambda. ceiling: the 2 of phi, in units of the reward; None follows the reward without end (phi(r) = -r).
    guidance: of the rollout and of the gradient step. checkpoint: recompute activations in the backward pass.
    """

    steps: int = 40
    first: int = 30
    last: int = 39
    scale: float = 1e-3
    ceiling: float | None = 2.0
    guidance: float | None = 1.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < self.steps:
            raise TechniqueError(f"the window {self.first} to {self.last} must lie in steps 0 to {self.steps - 1}")
        if self.scale <= 0:
            raise TechniqueError(f"scale={self.scale} must be positive")


def phi(reward: Tensor, ceiling: float | None) -> Tensor:
    """ReLU(ceiling - r), or -r without a ceiling."""
    return -reward if ceiling is None else F.relu(ceiling - reward)


class ReFL(Technique):
    """ReFL. All items of an epoch share their step, a function of (seed, epoch)."""

    name = "refl"
    needs = ("reward", "gradient", "online")
    Config = ReFLConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Reward) -> Batch:
        """Prompts, and the step of the window that the epoch looks at."""
        c = self.config
        step = c.first + seed_of(draw.seed, draw.epoch, "window") % (c.last - c.first + 1)
        return Batch(model.encode(draw.prompts), {"step": torch.full((len(draw),), step)}, metrics={"step": step})

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """lambda phi(r(x0_hat)) at the step of the epoch."""
        c, k = self.config, int(items["step"][0])
        times = model.schedule.grid(c.steps)
        x = normal(items.keys, model.latent_shape, "start").to(model.device)
        options = {"dynamics": DDIM(0.0), "guidance": c.guidance}
        if k:
            with torch.no_grad():
                x = deque(rollout(model, items.condition, steps=times[: k + 1], x=x, **options), maxlen=1).pop().x_next
        step = next(rollout(model, items.condition, steps=times[k:], x=x.detach(), gradient={0},
                            checkpoint=c.checkpoint, **options))
        rewards = reward_of(model, step.prediction.x0, signal, items.condition.prompts)
        return c.scale * phi(rewards, c.ceiling), {"reward": rewards.detach()}


ReFL.PRESETS = {
    "full": Preset(
        ReFLConfig(),
        Training(epochs=100, samples=64, lr=1e-5, weight_decay=1e-2, lora_rank=None, micro_batch=2, sample_batch=2),
        model="sd1.5", reward="imagereward", source="arXiv 2304.05977 and THUDM/ImageReward (8 GPUs; SD1.4 there)",
        cost="64 pictures an update, 100 updates",
    ),
    "single": Preset(
        ReFLConfig(checkpoint=True),
        Training(epochs=400, samples=16, lr=1e-4, weight_decay=1e-2, lora_rank=16, micro_batch=2, autocast="bfloat16"),
        model="sd1.5", reward="imagereward", source="ours: the paper's setting cut to one 24 GB card",
        cost="16 pictures an update",
    ),
    "rehearsal": Preset(
        ReFLConfig(steps=4, first=2, last=3),
        Training(epochs=2, samples=4, lr=1e-4, lora_rank=2, lora_alpha=4, micro_batch=4, sample_batch=4),
        model="tiny-sd", reward="tiny-imagereward", source="ours", cost="seconds",
    ),
    "toy": Preset(
        ReFLConfig(steps=20, first=10, last=19, scale=1.0, ceiling=None, guidance=3.0),
        Training(epochs=60, samples=32, lr=1.5e-3, lora_rank=16, micro_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 9 minutes on one core",
    ),
}
