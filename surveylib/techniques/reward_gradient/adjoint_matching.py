"""Adjoint Matching: fine-tuning as memoryless stochastic optimal control (Domingo-Enrich et al., arXiv 2409.08861).

Sampling is a controlled process whose cost is -lambda r(x_0) + sum_k KL(p_theta || p_pre)(x_k). Where the noise is
memoryless (x_T and x_0 of the base are independent) its optimum is p(x) exp(lambda r(x)), with lambda = 1 / beta. The
lean adjoint a follows the base chain alone, backwards along a sample of the present policy:

    a_0 = -lambda grad r(x_0),      a_t = (d mean_pre(x_t) / d x_t)^T a_s           (t the noisier time)
    loss = sum_t || (mean_theta(x_t) - mean_pre(x_t)) / std_t + std_t a_s ||^2

so that the network regresses a target and no gradient runs through the sampler. Written with the exact Gaussian steps
of DDIM with eta = 1: for VP that is DDPM's ancestral sampler, for flow models the memoryless SDE; both are memoryless
at any number of steps, VP up to the signal a_T that its first time leaves in x_T. The adjoint is kept in float32, and
goes through a network in float16 times a power of two (`scaled_vjp`), as the engine's loss does. Steps without noise
carry the adjoint on and are not trained.

Deviations from microsoft/soc-fine-tuning-sd: no masking of outlying losses (an EMA of a quantile there; the engine
clips the gradient's norm). Chapter: techniques/05_alignment_as_control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM, Dynamics
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.rewards.contract import Reward
from surveylib.runs.randomness import permutation
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import Paths, decode_all, sample_paths
from surveylib.techniques.reward_gradient.pictures import reward_of

MEMORYLESS = DDIM(1.0)
SCALES = (2.0**14, 2.0**7, 1.0)


@dataclass(frozen=True)
class AdjointMatchingConfig:
    """Settings of Adjoint Matching.

    reward_scale: lambda = 1 / beta. steps: of the rollout. guidance: of sampling; None takes the model's own.
    control_guidance: of adjoint, base and policy in the loss; 1.0 (none) in the official code.
    trained: number of steps of the chain that the loss looks at, half from its first 60 %, half from the rest (official
    code); None takes all.
    """

    reward_scale: float = 100.0
    steps: int = 50
    guidance: float | None = 7.5
    control_guidance: float = 1.0
    trained: int | None = 4

    def __post_init__(self) -> None:
        if self.reward_scale <= 0:
            raise TechniqueError(f"reward_scale={self.reward_scale} must be positive: it is 1 / beta")
        if self.steps < 2 or (self.trained is not None and not 1 <= self.trained <= self.steps):
            raise TechniqueError(f"steps={self.steps} must be at least 2, trained={self.trained} between 1 and steps")


def scaled_vjp(mean: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """The vector-Jacobian product (d mean / d x)^T a, (N, *latent_shape).

    Each sample's a is scaled by a power of two to a largest entry in [128, 256) on the way: float16 would lose small
    gradients, and in float32 no digit changes.
    """
    largest = a.flatten(1).abs().amax(1).reshape(-1, *[1] * (a.ndim - 1))
    scale = torch.ldexp(torch.ones_like(largest), 8 - torch.frexp(largest).exponent)
    return torch.autograd.grad(mean, x, grad_outputs=a * scale)[0] / scale


def lean_adjoint(
    model: DiffusionModel, condition: Condition, paths: Paths, terminal: Tensor, dynamics: Dynamics, guidance: float
) -> tuple[Tensor, Tensor]:
    """Lean adjoints and base means along stored paths.

    Args:
        terminal: a_0 = -lambda grad r(x_0), (N, *latent_shape), float32.

    Returns:
        adjoint (N, T, ...): a at the cleaner end of each step; base (N, T, ...): mean_pre(x_t) of each step.
    """
    a, adjoints, means = terminal, [], []
    with model.reference(), torch.enable_grad():
        for k in reversed(range(len(paths.t) - 1)):
            x = paths.x[:, k].detach().requires_grad_()
            mean = dynamics.transition(model.predict(x, paths.t[k], condition, guidance), paths.t[k + 1]).mean
            adjoints.append(a)
            means.append(mean.detach())
            a = scaled_vjp(mean, x, a)
    return torch.stack(adjoints[::-1], 1), torch.stack(means[::-1], 1)


def adjoint_matching_loss(mean: Tensor, base: Tensor, std: Tensor, adjoint: Tensor) -> Tensor:
    """|| (mean - base) / std + std a ||^2, summed over dimensions, (M,). std broadcasts against mean."""
    return ((mean - base) / std + std * adjoint).square().flatten(1).sum(1)


def reward_gradient(model: DiffusionModel, x0: Tensor, reward: Reward, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """grad_x0 r (N, *latent_shape) and r (N,).

    Raises:
        TechniqueError: a gradient that is not finite.
    """
    with torch.enable_grad():
        x = x0.detach().requires_grad_()
        rewards = reward_of(model, x, reward, prompts)
        for scale in SCALES:  # of the loss, against float16's small range; exact in float32
            (gradient,) = torch.autograd.grad(scale * rewards.sum(), x, retain_graph=True)
            if gradient.isfinite().all():
                return gradient.float() / scale, rewards.detach()
    raise TechniqueError(f"the gradient of the reward {reward.name!r} is not finite; check it on these pictures")


class AdjointMatching(Technique):
    """Adjoint Matching on any model whose chain can be sampled with DDIM(eta = 1)."""

    name = "adjoint_matching"
    needs = ("reward", "gradient", "online")
    Config = AdjointMatchingConfig

    def collect(self, model: DiffusionModel, draw: Draw, signal: Reward) -> Batch:
        """Samples, reward gradients at their end, adjoints along the way; `draw.batch` samples at a time."""
        c, condition = self.config, model.encode(draw.prompts)
        paths = sample_paths(model, condition, dynamics=MEMORYLESS, steps=c.steps, generators=draw.generators(),
                             guidance=c.guidance, batch=draw.batch)
        k = self.trained_steps(paths.stochastic, draw)
        parts = []
        for rows in torch.arange(len(draw)).split(draw.batch):
            texts = [draw.prompts[i] for i in rows.tolist()]
            gradient, rewards = reward_gradient(model, paths.x0[rows], signal, texts)
            part = Paths(paths.x[rows], paths.t, paths.log_prob[rows], paths.stochastic)
            found = lean_adjoint(model, condition[rows], part, -c.reward_scale * gradient, MEMORYLESS,
                                 c.control_guidance)
            parts.append((*(value[:, k] for value in found), rewards))
        adjoint, base, rewards = (torch.cat(values) for values in zip(*parts))
        t, s = paths.times(k)
        steps = {"x": paths.x[:, k], "t": t, "s": s, "adjoint": adjoint, "base": base}
        pictures = decode_all(model, paths.x0, draw.batch)
        return Batch(condition, {}, steps, {"reward": rewards.mean().item()}, pictures)

    def trained_steps(self, stochastic: Tensor, draw: Draw) -> Tensor:
        """Numbers of the steps that this epoch trains, increasing; steps without noise are left out."""
        steps = stochastic.nonzero().flatten()
        if self.config.trained is None or self.config.trained >= len(steps):
            return steps
        early, late = steps[: round(0.6 * len(steps))], steps[round(0.6 * len(steps)) :]
        few = min(self.config.trained // 2, len(early))
        rest = min(self.config.trained - few, len(late))
        name = (draw.seed, draw.epoch, "trained")
        chosen = [early[permutation(len(early), *name, "early")[:few]], late[permutation(len(late), *name)[:rest]]]
        return torch.cat(chosen).sort().values

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, on stored steps."""
        prediction = model.predict(items["x"], items["t"], items.condition, self.config.control_guidance)
        transition = MEMORYLESS.transition(prediction, items["s"])
        loss = adjoint_matching_loss(transition.mean, items["base"], transition.std, items["adjoint"])
        kl = ((transition.mean - items["base"]) / transition.std).detach().square().flatten(1).sum(1) / 2
        return loss, {"step_kl": kl}


AdjointMatching.PRESETS = {
    "full": Preset(
        AdjointMatchingConfig(),
        Training(epochs=1000, samples=125, lr=3e-6, betas=(0.9, 0.95), warmup=20, lora_rank=None, micro_batch=5,
                 sample_batch=5),
        model="sd1.5", reward="imagereward",
        source="arXiv 2409.08861 and microsoft/soc-fine-tuning-sd (batch 5 times 25); the number of updates is ours, "
        "its prompt dropout of 0.2 is left out",
        cost="125 pictures an update: 19,250 network calls, 6,750 of them with gradient",
    ),
    "single": Preset(
        AdjointMatchingConfig(steps=30),
        Training(epochs=300, samples=16, lr=1e-4, betas=(0.9, 0.95), warmup=20, lora_rank=16, micro_batch=4,
                 sample_batch=4, autocast="bfloat16"),
        model="sd1.5", reward="imagereward", source="ours: the paper's setting cut to one 24 GB card",
        cost="16 pictures an update: 1,504 network calls, 544 with gradient",
    ),
    "toy": Preset(
        AdjointMatchingConfig(reward_scale=20.0, steps=20, guidance=3.0, trained=6),
        Training(epochs=40, samples=32, lr=1e-3, betas=(0.9, 0.95), lora_rank=16, micro_batch=96, sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 20 minutes on one core",
    ),
}
