"""DRaFT: direct reward fine-tuning (Clark et al., arXiv 2309.17400).

The reward is differentiated through the sampler itself: with x_0 = sample(theta, x_T, c), deterministic,

    DRaFT      grad J = d r(x_0, c) / d theta through all T steps
    DRaFT-K    the same with a stop-gradient on x_K: only the last K steps are differentiated
    DRaFT-LV   K = 1, averaged over n re-noisings of x_0 to the last noise level t_1:
               x_1^i = a(t_1) sg(x_0) + s(t_1) eps_i,  loss = -mean_i r(step(x_1^i))

Special: no KL term and no exploration; the fastest way up a reward, and past it. Less of the adapter at sampling time
(`lora_strength`) is the paper's brake. Cutting x_K is the same as detaching the first T - K network outputs.
Deviations: rewards see a straight-through clamp of the picture; LV averages the n re-noisings alone and leaves out the
gradient of the last step that x_0 came from, which would be one more draw of the same.
Chapter: techniques/04_following_the_rewards_gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.contract import Reward
from surveylib.runs.randomness import normal
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.reward_gradient.pictures import reward_of


@dataclass(frozen=True)
class DRaFTConfig:
    """Settings of DRaFT.

    variant: "full" (all steps), "k" (the last `last`), "lv" (the last one, averaged over `renoisings`).
    steps, guidance: of the rollout; guidance None takes the model's own. checkpoint: recompute the network's
    activations in the backward pass.
    """

    variant: Literal["full", "k", "lv"] = "k"
    last: int = 1
    renoisings: int = 2
    steps: int = 50
    guidance: float | None = 7.5
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.variant not in ("full", "k", "lv"):
            raise TechniqueError(f"variant={self.variant!r}: choose 'full', 'k' or 'lv'")
        if not 1 <= self.last <= self.steps:
            raise TechniqueError(f"last={self.last} must be between 1 and steps={self.steps}")
        if self.renoisings < 1:
            raise TechniqueError(f"renoisings={self.renoisings} must be at least 1")


def differentiable_sample(
    model: DiffusionModel, condition: Condition, noise: Tensor, config: DRaFTConfig
) -> Tensor:
    """x_0 (B, *latent_shape) from x_T = noise, with the gradient of the variant ("lv": of the last step)."""
    last = {"full": config.steps, "k": config.last, "lv": 1}[config.variant]
    cut = config.steps - last
    times = model.schedule.grid(config.steps)
    options = {"dynamics": DDIM(0.0), "guidance": config.guidance}
    x = noise
    if cut:
        with torch.no_grad():
            x = deque(rollout(model, condition, steps=times[: cut + 1], x=x, **options), maxlen=1).pop().x_next
    chain = rollout(model, condition, steps=times[cut:], x=x.detach(), gradient="all", checkpoint=config.checkpoint,
                    **options)
    return deque(chain, maxlen=1).pop().x_next


def low_variance_samples(
    model: DiffusionModel, condition: Condition, x0: Tensor, noises: Tensor, config: DRaFTConfig
) -> Tensor:
    """Re-noisings of x_0 to the last noise level, each denoised in one step with gradient: (n B, *latent_shape).

    noises: (n, B, *latent_shape). Ordered noise by noise.
    """
    n, times = len(noises), model.schedule.grid(config.steps)[-2:]
    again = x0.detach().expand(n, *x0.shape).flatten(0, 1)
    x1 = model.schedule.add_noise(again, noises.flatten(0, 1), times[0])
    repeated = Condition.cat([condition] * n)
    chain = rollout(model, repeated, steps=times, x=x1, dynamics=DDIM(0.0), guidance=config.guidance, gradient="all",
                    checkpoint=config.checkpoint)
    return deque(chain, maxlen=1).pop().x_next


class DRaFT(Technique):
    """DRaFT, DRaFT-K and DRaFT-LV."""

    name = "draft"
    needs = ("reward", "gradient", "online")
    Config = DRaFTConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Reward) -> Batch:
        """Prompts only: the rollout happens in the loss, with gradient."""
        return Batch(model.encode(draw.prompts))

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-r of the samples."""
        c, prompts = self.config, items.condition.prompts
        noise = normal(items.keys, model.latent_shape, "start").to(model.device)
        if c.variant != "lv":
            rewards = reward_of(model, differentiable_sample(model, items.condition, noise, c), signal, prompts)
            return -rewards, {"reward": rewards.detach()}
        with torch.no_grad():
            x0 = differentiable_sample(model, items.condition, noise, c)
        noises = torch.stack([normal(items.keys, model.latent_shape, f"again {i}") for i in range(c.renoisings)])
        latents = low_variance_samples(model, items.condition, x0, noises.to(x0), c)
        rewards = reward_of(model, latents, signal, prompts * c.renoisings).unflatten(0, (c.renoisings, -1)).mean(0)
        return -rewards, {"reward": rewards.detach()}


DRaFT.PRESETS = {
    "full": Preset(
        DRaFTConfig(variant="lv", last=1, renoisings=2, checkpoint=True),
        Training(epochs=10_000, samples=16, lr=2e-4, weight_decay=0.1, lora_rank=32, micro_batch=4, sample_batch=4,
                 autocast="bfloat16"),
        model="sd1.5", reward="hps_v2",
        source="arXiv 2309.17400, its large setting for HPSv2 (rank, lr, weight decay, batch, updates, 50 steps, "
               "guidance), not verified: there is no official code; 2 re-noisings are those of a "
               "re-implementation, RuoyuWang-2077/FlowBP",
        cost="16 pictures an update, 10,000 updates",
    ),
    "single": Preset(
        DRaFTConfig(variant="k", last=1, checkpoint=True, steps=30),
        Training(epochs=500, samples=8, lr=2e-4, lora_rank=16, micro_batch=2, sample_batch=2, autocast="bfloat16"),
        model="sd1.5", reward="pickscore", source="ours", cost="8 pictures an update",
    ),
    "toy": Preset(
        DRaFTConfig(variant="k", last=3, steps=10, guidance=3.0),
        Training(epochs=60, samples=32, lr=1.5e-3, lora_rank=16, micro_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 7 minutes on one core",
    ),
}
