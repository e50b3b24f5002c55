"""RWR: reward-weighted regression, as the baseline of the DDPO paper (Black et al., arXiv 2305.13301).

Sample x_0 from the model, weigh it by its reward, and regress on it as in pre-training:

    L = E[ w(r) |eps_theta(x_t, t, c) - eps|^2 ],     w = exp(r / beta) / mean exp(r / beta)      ("exponential")
                                                      w = 1[r >= C]                               ("sparse")

Special: no log-probabilities, any sampler will do. One round to convergence turns p into p exp(r / beta), up to a
constant. With source="policy" each round tilts what the last one left, so that n rounds tend to p exp(n r / beta): the
mode. With source="reference" every round samples the reference again, and the target stays the tilt.

The denoising loss bounds -log p_theta(x_0 | c) and is not equal to it: this is no exact policy gradient.

Deviations: the paper writes exp(beta r), here beta is a temperature in units of the reward; rewards are standardised
within the prompt's group of the round; C is a quantile of the round's rewards unless a number is given.
Trap: samples drawn with guidance carry the guidance into the conditional model. Sample later without, or train the
guided prediction itself (train_guidance).
Chapter: techniques/01_weighting_by_reward.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.model import DiffusionModel
from surveylib.techniques.advantages import group_advantages
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import decode_all, score_all
from surveylib.techniques.reward_weighted.regression import draws, sample_latents, weighted_denoising_error


@dataclass(frozen=True)
class RWRConfig:
    """Settings of RWR.

    weighting: "exponential" or "sparse". beta: temperature of the first, in units of the (standardised) reward.
    quantile, threshold: of the second: C is that quantile of all rewards, or the threshold where one is given, both in
    units of the (standardised) reward. A round in which no sample reaches the threshold trains nothing, with a warning.
    standardise: rewards to mean 0 and std 1 within a prompt's group ("prompt"), over all ("batch"), or "none".
    source: which weights sample, "policy" or "reference".
    steps, eta, guidance: of the sampler. train_guidance: of the trained prediction; 1 is the conditional model alone.
    times: noise levels drawn for each sample and pass.
    """

    weighting: Literal["exponential", "sparse"] = "exponential"
    beta: float = 1.0
    quantile: float = 0.9
    threshold: float | None = None
    standardise: Literal["prompt", "batch", "none"] = "prompt"
    source: Literal["policy", "reference"] = "policy"
    steps: int = 50
    eta: float = 1.0
    guidance: float | None = 5.0
    train_guidance: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        choices = {"weighting": ("exponential", "sparse"), "standardise": ("prompt", "batch", "none"),
                   "source": ("policy", "reference")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise TechniqueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.beta <= 0:
            raise TechniqueError(f"beta={self.beta} must be positive: exp(r / beta) has no other meaning. "
                                 "To keep only the best sample of a prompt, use raft")
        if not 0 <= self.quantile <= 1 or self.steps < 1 or self.times < 1:
            raise TechniqueError(f"quantile={self.quantile} must be in [0, 1], steps={self.steps} and times="
                                 f"{self.times} at least 1")


def exponential_weights(rewards: Tensor, beta: float) -> Tensor:
    """exp(r / beta) divided by its mean over the batch, (N,): their mean is 1."""
    return torch.softmax(rewards.double() / beta, 0).to(rewards.dtype) * len(rewards)


def sparse_weights(rewards: Tensor, quantile: float, threshold: float | None = None) -> Tensor:
    """1 where the reward is at least the threshold (default: the quantile of the batch), else 0. (N,)."""
    bound = torch.quantile(rewards, quantile) if threshold is None else threshold
    return (rewards >= bound).to(rewards.dtype)


class RWR(Technique):
    """Reward-weighted regression."""

    name = "rwr"
    needs = ("reward", "online")
    Config = RWRConfig

    def check(self, model: DiffusionModel, signal: Any, training: Training) -> None:
        """As in `Technique.check`; statistics of a prompt need two samples of it."""
        super().check(model, signal, training)
        if self.config.standardise == "prompt" and training.samples_per_prompt < 2:
            raise TechniqueError("standardise='prompt' needs samples_per_prompt of at least 2; it is 1. Raise it, or "
                                 "set standardise='batch'")

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Samples, scores, weighs."""
        c = self.config
        condition = model.encode(draw.prompts)
        with model.reference() if c.source == "reference" else nullcontext():
            x0 = sample_latents(model, condition, draw.generators(), eta=c.eta, steps=c.steps, guidance=c.guidance,
                                batch=draw.batch)
        pictures = decode_all(model, x0, draw.batch)
        rewards = score_all(signal, pictures, draw.prompts, draw.batch)
        weights = self.weights(draw.gather(rewards.cpu()), draw.gather(draw.groups))
        metrics = {"reward": rewards.mean().item(), "kept": (weights > 0).float().mean().item(),
                   "effective_samples": (weights.sum() ** 2 / weights.square().sum().clamp(min=1e-30)).item()}
        mine = weights[draw.local].to(x0.device)
        return Batch(condition, {"x0": x0}, draws(mine, c.times), metrics, pictures)

    def weights(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Weights (N,) of all samples of the round."""
        c = self.config
        if c.standardise == "prompt":
            rewards = group_advantages(rewards, groups, scale="group")
        elif c.standardise == "batch":
            rewards = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        if c.weighting == "exponential":
            return exponential_weights(rewards, c.beta)
        weights = sparse_weights(rewards, c.quantile, c.threshold)
        if c.threshold is not None and not (weights > 0).any():
            warnings.warn(f"no reward of this round reaches threshold={c.threshold:g} (largest: {rewards.max():.3g}, "
                          f"standardise={c.standardise!r}), so nothing is trained: lower it, or set standardise='none' "
                          "for a threshold in the reward's own units", stacklevel=2)
        return weights

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted denoising error."""
        return weighted_denoising_error(model, items, self.config.train_guidance), {}


RWR.PRESETS = {
    "full": Preset(
        RWRConfig(),
        Training(epochs=20, samples=10240, samples_per_prompt=4, updates=160, passes=4, lr=3e-4, lora_rank=4,
                 micro_batch=8, sample_batch=8),
        model="sd1.5", reward="aesthetic",
        source="arXiv 2305.13301 for the method and its sampler; rounds, samples, passes and temperature 1 are ours: "
               "the paper's beta in exp(beta r) is one over the temperature",
        cost="10,240 pictures and 40,960 trained noise levels an epoch",
    ),
    "single": Preset(
        RWRConfig(steps=30, times=4),
        Training(epochs=20, samples=256, samples_per_prompt=8, updates=8, lr=3e-4, lora_rank=4, micro_batch=4,
                 sample_batch=8),
        model="sd1.5", reward="aesthetic", source="ours: cut to one 24 GB card",
        cost="256 pictures and 1,024 trained noise levels an epoch",
    ),
    "toy": Preset(
        RWRConfig(steps=10, guidance=3.0, train_guidance=3.0, times=8),
        Training(epochs=25, samples=32, samples_per_prompt=8, updates=1, lr=3e-4, lora_rank=16, micro_batch=64,
                 sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 7 minutes on one core",
    ),
}
