"""DNO: direct noise optimisation (Tang et al., arXiv 2405.18881).

A sampler is a map M from noise to a picture, z = (z_T, z_{T-1}, ..., z_1) -> x_0. The noise itself is optimised,

    max_z  r(D(M(z))) - gamma R(z)                                                       (probability-regularised)

by AdamW through all steps. R keeps z looking like N(0, I): cut into m vectors of dimension k, with M1 = |mean| and
M2 = |second moments - I|_2, concentration bounds how likely such values are,

    log p1 = min(-log 2, -m M1² / (2 k))
    log p2 = min(-log 2, -(m / 2) max(0, sqrt(1 + M2) - 1 - sqrt(k / m))²)
    R      = -[log p1 + log p2 + mean over random permutations of z of the same]         (section 4, official code)

Special: with eta = 1 every step's noise is a variable, with eta = 0 the first alone. Without R the noise leaves the
region where the model was trained (out-of-distribution reward hacking); R is flat while z is plausible.

Rewards without gradient: with perturbations xi ~ N(0, I), the direction in the picture is estimated as
g = mean over xi of (r(M(z + mu xi)) - r(M(z))) (M(z + mu xi) - M(z)) / mu², and goes back through M exactly
(`gradient="zeroth"`; our reading of the paper's hybrid method). With J the Jacobian of M, g estimates J J' grad r: an
ascent direction, the gradient itself only where J J' = I.

Deviations from TZW1998/Direct-Noise-Optimization: no weight decay (AdamW's default of 0.01 pulls the noise to zero by
itself); the iterate with the best objective is kept; one picture is decoded an iteration, not one a step.
Chapter: techniques/08_optimising_noise_and_prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.contract import Reward
from surveylib.runs.randomness import generator
from surveylib.techniques.contract import Preset, Sampler, Samples, TechniqueError
from surveylib.techniques.test_time.base import (
    NO_TRAINING,
    check_rollout,
    clip_each,
    counted,
    loss_scale,
    row_generators,
    texts,
)


@dataclass(frozen=True)
class DNOConfig:
    """Settings of DNO.

    iterations: optimiser steps; 0 is the base sampler. lr, weight_decay: of AdamW. clip_norm: each sample's.
    gamma: weight of R. block: k. permutations: of z in R.
    gradient: "exact", or "zeroth" for a reward without gradient, with `probes` perturbations of size `mu`.
    steps, eta, guidance: of the rollout; guidance None takes the model's own. checkpoint: recompute network calls in
    the backward pass (memory of one call instead of all). batch: pictures optimised together.
    """

    iterations: int = 100
    lr: float = 0.01
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    gamma: float = 1.0
    block: int = 4
    permutations: int = 100
    gradient: Literal["exact", "zeroth"] = "exact"
    probes: int = 4
    mu: float = 0.01
    steps: int = 50
    eta: float = 1.0
    guidance: float | None = 5.0
    checkpoint: bool = True
    batch: int = 16

    def __post_init__(self) -> None:
        check_rollout(self.steps, self.eta, self.batch)
        if self.iterations < 0 or self.lr <= 0 or self.clip_norm <= 0 or self.mu <= 0:
            raise TechniqueError(f"iterations={self.iterations} must not be negative; lr={self.lr}, "
                                 f"clip_norm={self.clip_norm} and mu={self.mu} must be positive")
        if not 0 <= self.gamma < math.inf or self.weight_decay < 0:
            raise TechniqueError(f"gamma={self.gamma} and weight_decay={self.weight_decay} must not be negative")
        if self.block < 1 or self.permutations < 0 or self.probes < 1:
            raise TechniqueError(f"block={self.block} and probes={self.probes} must be at least 1, "
                                 f"permutations={self.permutations} not negative")
        if self.gradient not in ("exact", "zeroth"):
            raise TechniqueError(f"gradient={self.gradient!r}: choose 'exact' or 'zeroth'")


def log_probability(z: Tensor, block: int) -> Tensor:
    """log p1 + log p2 (...,) of noise z (..., n): bounds on the probability of its mean and second moments. The rest of
    n / block is left out. At most -2 log 2, and flat there."""
    m = z.shape[-1] // block
    vectors = z[..., : m * block].unflatten(-1, (m, block))
    mean = vectors.mean(-2)
    second = vectors.transpose(-1, -2) @ vectors / m - torch.eye(block, dtype=z.dtype, device=z.device)
    excess = torch.sqrt(1 + torch.linalg.matrix_norm(second, ord=2)) - 1 - math.sqrt(block / m)
    log_p1 = -m * mean.square().sum(-1) / (2 * block)
    log_p2 = -m / 2 * excess.clamp(min=0).square()
    return log_p1.clamp(max=-math.log(2)) + log_p2.clamp(max=-math.log(2))


def improbability(z: Tensor, orders: Sequence[Tensor], block: int) -> Tensor:
    """R (B,) of noise z (B, n); orders: permutations of n."""
    value = -log_probability(z, block)
    if len(orders):
        value = value - torch.stack([log_probability(z[:, order], block) for order in orders]).mean(0)
    return value


def picture_gradient(pictures: Tensor, reward: Tensor, probes: Tensor, rewards: Tensor, mu: float) -> Tensor:
    """Estimate (B, ...) of an ascent direction in the pictures (B, ...), J J' grad r with J the Jacobian of M: probes
    (m, B, ...) and their rewards (m, B) are M(z + mu xi) and r of it."""
    change = (rewards - reward).reshape(*rewards.shape, *[1] * (pictures.ndim - 1))
    return (change * (probes - pictures)).mean(0) / mu**2


class DNO(Sampler):
    """Direct noise optimisation. trace: one entry an iteration: "reward" (B,), "improbability" (B,) R (nan where gamma
    is 0), "norm" (B,) of z over sqrt(n)."""

    name = "dno"
    needs = ("reward", "gradient")
    Config = DNOConfig

    def check(self, model: DiffusionModel, reward: Reward) -> None:
        """As in `Sampler.check`; with gradient="zeroth" the reward needs none."""
        if self.config.gradient == "exact" or not isinstance(reward, Reward) or reward.differentiable:
            super().check(model, reward)

    def sample(self, model: DiffusionModel, prompts: Sequence[str], reward: Reward, *, seed: int = 0) -> Samples:
        """See `Sampler.sample`."""
        self.check(model, reward)
        prompts = texts(prompts)
        with counted(model, reward) as ledger:
            condition = model.encode(prompts)
            runs = [_Optimisation(model, condition[rows], reward, self.config, seed, rows.tolist()).run()
                    for rows in torch.arange(len(prompts)).split(self.config.batch)]
        pictures, latents, rewards = (torch.cat(parts) for parts in zip(*(found for found, _ in runs)))
        trace = [{"iteration": i} | {name: torch.cat([entry[name] for entry in entries]) for name in entries[0]}
                 for i, entries in enumerate(zip(*(trace for _, trace in runs)))]
        return Samples(pictures, latents, rewards, trace, ledger)


class _Optimisation:
    """The noise z (B, 1 + S, ...) of B pictures, S noisy steps, and its ascent."""

    def __init__(self, model, condition: Condition, reward: Reward, config: DNOConfig, seed: int, rows: list[int]):
        self.model, self.condition, self.reward, self.config = model, condition, reward, config
        self.seed, self.rows, self.dynamics = seed, rows, DDIM(config.eta)
        self.noisy = noisy_steps(model, self.dynamics, config.steps)
        stream = row_generators(seed, rows, "rollout")  # in the order in which a rollout draws
        first = model.initial_noise(len(condition), stream)
        later = [randn_tensor(first.shape, stream, first.device, first.dtype) for _ in range(sum(self.noisy))]
        self.z = torch.stack([first, *later], 1)

    def run(self) -> tuple[tuple[Tensor, Tensor, Tensor], list[dict[str, Any]]]:
        """Best (pictures, latents, rewards) and the trace."""
        c = self.config
        self.z.requires_grad_(c.iterations > 0)
        optimiser = torch.optim.AdamW([self.z], lr=c.lr, weight_decay=c.weight_decay)
        found, best, trace = None, None, []
        for i in range(c.iterations + 1):
            with torch.set_grad_enabled(i < c.iterations):
                latents, pictures, rewards, objective, entry = self._evaluate(i)
            now = (pictures.detach(), latents.detach(), rewards.detach())
            value = entry.pop("objective")
            better = torch.ones_like(value, dtype=torch.bool) if best is None else value > best
            found = now if found is None else tuple(_where(better, new, old) for new, old in zip(now, found))
            best = value if best is None else torch.where(better, value, best)
            trace.append(entry)
            if i < c.iterations:
                scale = loss_scale(self.model)
                gradient = torch.autograd.grad(-scale * objective.sum(), self.z)[0] / scale
                self.z.grad = clip_each(gradient, c.clip_norm)
                optimiser.step()
        return found, trace

    def _evaluate(self, i: int):
        c = self.config
        live = torch.is_grad_enabled()
        latents, pictures = self._generate(self.z, live)
        rewards = self.reward(pictures, self.condition.prompts)
        objective = rewards
        if live and c.gradient == "zeroth":
            objective = (self._probe(i, pictures.detach(), rewards.detach()) * pictures).flatten(1).sum(1)
        flat = self.z.flatten(1)
        cost = torch.full_like(rewards, float("nan"))
        if c.gamma > 0:
            orders = [torch.randperm(flat.shape[1], generator=generator(self.seed, i, k, "permutation"))
                      for k in range(c.permutations)]
            cost = improbability(flat, [order.to(flat.device) for order in orders], c.block)
            objective = objective - c.gamma * cost
        total = (rewards - c.gamma * cost if c.gamma > 0 else rewards).detach()
        norm = flat.detach().norm(dim=1) / math.sqrt(flat.shape[1])
        entry = {"objective": total, "reward": rewards.detach().cpu(), "improbability": cost.detach().cpu(),
                 "norm": norm.cpu()}
        return latents, pictures, rewards, objective, entry

    def _generate(self, z: Tensor, live: bool) -> tuple[Tensor, Tensor]:
        """M(z): latents and pictures."""
        c, later = self.config, iter(z.unbind(1)[1:])
        noises = [next(later) if noisy else None for noisy in self.noisy]
        *_, last = rollout(self.model, self.condition, dynamics=self.dynamics, steps=c.steps, guidance=c.guidance,
                           x=z[:, 0], noises=noises, gradient="all" if live else "none",
                           checkpoint=c.checkpoint and live)
        return last.x_next, self.model.decode(last.x_next, clamp=True)

    @torch.no_grad()
    def _probe(self, i: int, pictures: Tensor, rewards: Tensor) -> Tensor:
        probes, values = [], []
        for k in range(self.config.probes):
            stream = row_generators(self.seed, self.rows, "probe", i, k)
            xi = randn_tensor(self.z.shape, stream, self.z.device, self.z.dtype)
            probes.append(self._generate(self.z + self.config.mu * xi, False)[1])
            values.append(self.reward(probes[-1], self.condition.prompts))
        return picture_gradient(pictures, rewards, torch.stack(probes), torch.stack(values), self.config.mu)


def noisy_steps(model: DiffusionModel, dynamics: DDIM, steps: int) -> list[bool]:
    """Which steps of a rollout draw noise; the network is not asked, since no std depends on it."""
    times, zeros = model.schedule.grid(steps), torch.zeros(1, *model.latent_shape)
    return [not dynamics.transition(Prediction(zeros, t, zeros, model.prediction_kind, model.schedule), s).deterministic
            for t, s in pairwise(times)]


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


DNO.PRESETS = {
    "full": Preset(DNOConfig(batch=1), NO_TRAINING, model="sd1.5", reward="aesthetic",
                   source="arXiv 2405.18881 and its code: AdamW 0.01, clip 1, 100 steps, 50 DDIM steps, CFG 5, gamma 1",
                   cost="100 x 50 steps x 2 branches = 10,000 network calls with recomputed gradient a picture"),
    "single": Preset(DNOConfig(iterations=50, steps=20, batch=1), NO_TRAINING, model="sd1.5", reward="aesthetic",
                     source="ours: fewer steps", cost="2,000 network calls with recomputed gradient a picture"),
    "toy": Preset(DNOConfig(iterations=15, lr=0.05, permutations=10, steps=10, guidance=3.0, checkpoint=False),
                  NO_TRAINING, model="shapes-sd", reward="shapes-pickscore", source="ours",
                  cost="320 network calls, 300 of them with gradient, a picture"),
}
