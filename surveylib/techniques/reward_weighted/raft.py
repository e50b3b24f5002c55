"""RAFT: reward-ranked fine-tuning (Dong et al., arXiv 2304.06767).

Each round: sample K pictures of every prompt, keep the best (or the best few), train on them as in pre-training.

    L = E[ w_i |eps_theta(x_t, t, c) - eps|^2 ],     w_i = K / keep for the `keep` best of the K samples of a prompt,
                                                     0 for the others

Special: only the order within a prompt counts, never the size of a reward, so rewards need no normalising. Nothing
holds the model near its start: best of K, again and again, tends to the mode.

Deviations: the paper fine-tunes language models and Stable Diffusion, each on its pre-training loss; here the denoising
error alone. Ties go to the sample that was drawn first, so equal rewards keep a sample chosen blindly.
Chapter: techniques/01_weighting_by_reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surveylib.diffusion.model import DiffusionModel
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.reward_weighted.regression import draws, sample_latents, weighted_denoising_error


@dataclass(frozen=True)
class RAFTConfig:
    """Settings of RAFT. K is ``samples_per_prompt`` of the training.

    keep: samples kept of each prompt. steps, eta, guidance: of the sampler. train_guidance: of the trained prediction;
    1 is the conditional model alone. times: noise levels drawn for each kept sample and pass.
    """

    keep: int = 1
    steps: int = 40
    eta: float = 0.0
    guidance: float | None = None
    train_guidance: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        if self.keep < 1 or self.steps < 1 or self.times < 1:
            raise TechniqueError(f"keep={self.keep}, steps={self.steps} and times={self.times} must be at least 1")


def best_of_group(rewards: Tensor, groups: Tensor, keep: int) -> Tensor:
    """Weights (N,): K / keep for the `keep` highest rewards of each group of K, else 0; ties go to the earlier."""
    best_first = torch.sort(rewards, descending=True, stable=True).indices
    weights = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = best_first[groups[best_first] == group]
        weights[rows[:keep]] = len(rows) / keep
    return weights


class RAFT(Technique):
    """Reward-ranked fine-tuning."""

    name = "raft"
    needs = ("reward", "online")
    Config = RAFTConfig

    def check(self, model: DiffusionModel, signal: Any, training: Training) -> None:
        """As in `Technique.check`; there must be something to rank."""
        super().check(model, signal, training)
        if training.samples_per_prompt <= self.config.keep:
            raise TechniqueError(f"RAFT keeps the best {self.config.keep} of samples_per_prompt="
                                 f"{training.samples_per_prompt} samples: nothing is left out; raise it")

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Samples, scores, ranks."""
        c = self.config
        condition = model.encode(draw.prompts)
        x0 = sample_latents(model, condition, draw.generators(), eta=c.eta, steps=c.steps, guidance=c.guidance,
                            batch=draw.batch)
        pictures = decode_all(model, x0, draw.batch)
        rewards = score_all(signal, pictures, draw.prompts, draw.batch)
        weights = best_of_group(draw.gather(rewards.cpu()), draw.gather(draw.groups), c.keep)[draw.local]
        kept = weights > 0
        metrics = {"reward": rewards.mean().item()}
        if kept.any():
            metrics["reward_kept"] = rewards[kept.to(rewards.device)].mean().item()
        return Batch(condition, {"x0": x0}, draws(weights.to(x0.device), c.times), metrics, pictures)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising error of what was kept."""
        return weighted_denoising_error(model, items, self.config.train_guidance), {}


RAFT.PRESETS = {
    "full": Preset(
        RAFTConfig(guidance=4.5),
        Training(epochs=200, samples=1152, samples_per_prompt=24, updates=2, lr=3e-4, lora_rank=32, lora_alpha=64,
                 micro_batch=8, sample_batch=8),
        model="sd3.5-medium", reward="pickscore",
        source="yifan123/flow_grpo's online fine-tuning (K, steps, guidance, lr, rank); rounds are ours; trained times "
               "are uniform here, logit-normal there",
        cost="1,152 pictures and 48 trained noise levels an epoch",
    ),
    "single": Preset(
        RAFTConfig(guidance=4.5, times=4),
        Training(epochs=100, samples=96, samples_per_prompt=12, updates=2, lr=3e-4, lora_rank=32, lora_alpha=64,
                 micro_batch=4, sample_batch=4),
        model="sd3.5-medium", reward="pickscore", source="ours: cut to one 24 GB card",
        cost="96 pictures and 32 trained noise levels an epoch",
    ),
    "toy": Preset(
        RAFTConfig(steps=10, guidance=3.0, train_guidance=3.0, times=32),
        Training(epochs=20, samples=64, samples_per_prompt=8, updates=1, lr=3e-4, lora_rank=16, micro_batch=512,
                 sample_batch=64),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 7 minutes on one core",
    ),
}
