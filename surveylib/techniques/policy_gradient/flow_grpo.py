"""Flow-GRPO: group-relative policy optimisation of flow models (Liu et al., arXiv 2505.05470).

A flow model samples by an ODE, which has no probabilities. An SDE with the same marginals has, and PPO applies:

    A_i  = (r_i - mean of the group) / std,                 a group being K samples of one prompt
    L    = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) + beta KL_t,      rho = p_theta(x_s | x_t) / p_old(x_s | x_t)
    KL_t = (mu_theta - mu_ref)^2 / (2 std^2)

* dynamics "sde": g = a sqrt(sigma / (1 - sigma)), std = g sqrt(dt), a = 0.7 (`FlowSDE`).
* dynamics "cps": coefficients-preserving sampling (arXiv 2509.05952), std = sigma' sin(a pi / 2) (`CPS`).
* window: noise in a few consecutive steps only, at a place drawn anew in each epoch, the ODE elsewhere; only these
  steps are trained. With shared_noise, all samples of a prompt come to the window on one path (Flow-GRPO-Fast).

Special: no value network, the group is the baseline; the KL term has the sampler's own std.

Three conventions of the official code, off by default because they are not what their names say:
``kl="official"`` leaves dt out of the SDE's variance, so that its KL is dt times the true one (its betas, 0.01 to 0.04,
belong to that); ``log_prob="official"`` with "cps" is -mean((x' - mu)^2), a rescaled log-probability, whose exponential
is no likelihood ratio and needs its own clip; ``reduction="mean"`` (on by default, clip 1e-4 belongs to it) divides
log-probability and KL by the number of dimensions.

The KL term's gradient is the local one, as in the paper; ``kl_gradient="path"`` makes it whole (see `dpok`). Then, and
where the SDE is memoryless, a = sqrt(2) (arXiv 2409.08861), the optimum is the tilted distribution. With less noise the
sample stays tied to its initial noise: little with a = 0.7, much with 0.2 (`tests/truth`).

Deviations from yifan123/flow_grpo: the last step has no noise (there it has, and is left out of training); samples with
zero advantage stay, since the KL term holds for them too; the path before a window is computed for each sample.
Runs on VP models as well: the SDE is written in flow coordinates.
Chapter: techniques/03_group_relative_policy_gradients_on_flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import CPS, DDIM, Dynamics, FlowSDE, Reduction, Transition, reduce
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.schedules import Schedule, broadcast
from surveylib.runs.randomness import normal, permutation
from surveylib.techniques.advantages import group_advantages
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import decode_all, sample_paths, score_all
from surveylib.techniques.policy_gradient.ddpo import importance_sampling_loss
from surveylib.techniques.policy_gradient.replay import (
    check_fraction,
    kl_ahead,
    kl_to_mean,
    reference_transitions,
    stored_steps,
)


@dataclass(frozen=True)
class FlowGRPOConfig:
    """Settings of Flow-GRPO.

    steps, guidance: of the rollout; guidance None takes the model's own and is used in training too.
    dynamics, noise: "sde" or "cps", and its a. window: consecutive steps with noise, None for all; its first step is
    drawn from the first half of the steps. shared_noise: one initial noise for all samples of a prompt.
    timestep_fraction: share of the steps with noise that is trained, the noisiest first, rounded up (official code:
    0.99 of all steps, which leaves the last of 10 out; here that one has no noise).
    clip: eps. clip_advantage: bound of |A|. scale: the std that A is divided by: of all rewards ("global"), of the
    group ("group"), or none (then beta is in units of the reward).
    beta: weight of the KL term, 0 for none. kl, kl_gradient, log_prob, reduction: see the module.
    """

    steps: int = 10
    guidance: float | None = None
    dynamics: Literal["sde", "cps"] = "sde"
    noise: float = 0.7
    window: int | None = None
    shared_noise: bool = False
    timestep_fraction: float = 1.0
    clip: float = 1e-4
    clip_advantage: float = 5.0
    scale: Literal["global", "group", "none"] = "global"
    beta: float = 0.04
    kl: Literal["exact", "official"] = "exact"
    kl_gradient: Literal["local", "path"] = "local"
    log_prob: Literal["exact", "official"] = "exact"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if self.dynamics not in ("sde", "cps"):
            raise TechniqueError(f"dynamics={self.dynamics!r}: choose 'sde' or 'cps'")
        if {self.kl, self.log_prob} - {"exact", "official"}:
            raise TechniqueError(f"kl={self.kl!r}, log_prob={self.log_prob!r}: choose 'exact' or 'official'")
        if self.kl_gradient not in ("local", "path") or (self.kl_gradient == "path" and self.kl == "official"):
            raise TechniqueError(f"kl_gradient={self.kl_gradient!r} with kl={self.kl!r}: choose 'local', or 'path' "
                                 "with kl='exact'")
        if self.log_prob == "official" and self.dynamics != "cps":
            raise TechniqueError("log_prob='official' is a convention of CPS; with dynamics='sde' choose 'exact'")
        if self.noise <= 0 or (self.dynamics == "cps" and self.noise > 1):
            raise TechniqueError(f"noise={self.noise} must be positive, and at most 1 with 'cps': without noise no "
                                 "step has a probability")
        if self.clip <= 0 or self.beta < 0 or self.steps < 2:
            raise TechniqueError(f"clip={self.clip} must be positive, beta={self.beta} not negative, steps="
                                 f"{self.steps} at least 2 (the last step has no noise)")
        check_fraction(self.timestep_fraction)
        if self.timestep_fraction < 1 and (self.window is not None or self.kl_gradient == "path"):
            raise TechniqueError(f"timestep_fraction={self.timestep_fraction} with window={self.window}, kl_gradient="
                                 f"{self.kl_gradient!r}: a window chooses the steps itself, and the whole gradient of "
                                 "the KL needs every step. Leave timestep_fraction at 1 there")
        if self.window is not None and not 1 <= self.window < self.steps:
            raise TechniqueError(f"window={self.window} must be between 1 and steps - 1 = {self.steps - 1}")


def official_cps_log_prob(x_next: Tensor, mean: Tensor, reduction: Reduction) -> Tensor:
    """-(x' - mean)^2 without variance and constant, (M,): the code's log-probability of a CPS step."""
    return -reduce((x_next.detach() - mean).square(), reduction)


def official_kl(kl: Tensor, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The SDE's KL without dt in its variance, (M,): |dt| times the true one, dt the step in sigma."""
    sigma, sigma_next = (noise / (a + noise) for a, noise in (schedule.coefficients(t), schedule.coefficients(s)))
    return kl * broadcast(sigma - sigma_next, kl)


class FlowGRPO(Technique):
    """Flow-GRPO, its window ("Fast") and CPS."""

    name = "flow_grpo"
    needs = ("reward", "online")
    Config = FlowGRPOConfig

    @property
    def dynamics(self) -> Dynamics:
        """Of the steps with noise."""
        return (FlowSDE if self.config.dynamics == "sde" else CPS)(self.config.noise)

    def check(self, model: DiffusionModel, signal: Any, training: Training) -> None:
        """As in `Technique.check`; groups need at least two samples."""
        super().check(model, signal, training)
        if training.samples_per_prompt < 2:
            raise TechniqueError("Flow-GRPO compares samples of one prompt: samples_per_prompt=1 gives every advantage "
                                 "the value 0. Set it to 2 or more (the paper: 24)")

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rolls out, scores, keeps the steps that have noise, and the reference's means there."""
        c = self.config
        condition = model.encode(draw.prompts)
        start = None
        if c.shared_noise:
            start = normal(draw.groups, model.latent_shape, draw.seed, draw.epoch, "start").to(model.device)
        paths = sample_paths(model, condition, dynamics=self._per_step(draw), steps=c.steps, guidance=c.guidance,
                             generators=draw.generators(), reduction=c.reduction, start=start, batch=draw.batch,
                             keep_means=c.log_prob == "official" or c.kl_gradient == "path")
        pictures = decode_all(model, paths.x0, draw.batch)
        rewards = score_all(signal, pictures, draw.prompts, draw.batch)
        steps, k = stored_steps(paths, c.timestep_fraction)
        mean = None if paths.mean is None else paths.mean[:, k.to(paths.x.device)].flatten(0, 1)
        if c.log_prob == "official":
            old = official_cps_log_prob(steps["x_next"].flatten(0, 1), mean, c.reduction)
            steps["old"] = old.unflatten(0, steps["t"].shape)
        advantage = self._advantages(draw, rewards)[:, None].expand(steps["t"].shape)
        if c.beta:
            steps["reference"], std = reference_transitions(model, condition, self.dynamics, steps, c.guidance,
                                                            draw.batch)
            if c.kl_gradient == "path":
                kl = kl_to_mean(Transition(mean, std.flatten(0, 1)), steps["reference"].flatten(0, 1), "sum")
                advantage = advantage - c.beta * self._centred(draw, kl_ahead(kl.unflatten(0, std.shape[:2])))
        return Batch(condition, {}, steps | {"advantage": advantage}, {"reward": rewards.mean().item()}, pictures)

    def _centred(self, draw: Draw, costs: Tensor) -> Tensor:
        """Costs (N, K) less their mean over the group."""
        everyone, groups = draw.gather(costs.cpu()), draw.gather(draw.groups)
        columns = [group_advantages(column, groups, scale="none") for column in everyone.unbind(1)]
        return torch.stack(columns, 1)[draw.local].to(costs)

    def _per_step(self, draw: Draw) -> list[Dynamics]:
        c = self.config
        if c.window is None:
            return [self.dynamics] * c.steps
        starts = max(1, min(c.steps // 2, c.steps - c.window))
        first = int(permutation(starts, draw.seed, draw.epoch, "window")[0])
        return [self.dynamics if first <= i < first + c.window else DDIM(0.0) for i in range(c.steps)]

    def _advantages(self, draw: Draw, rewards: Tensor) -> Tensor:
        c = self.config
        everyone, groups = draw.gather(rewards.cpu()), draw.gather(draw.groups)
        advantage = group_advantages(everyone, groups, scale=c.scale)[draw.local]
        return advantage.clamp(-c.clip_advantage, c.clip_advantage).to(rewards.device)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, on stored steps."""
        c = self.config
        prediction = model.predict(items["x"], items["t"], items.condition, c.guidance)
        transition = self.dynamics.transition(prediction, items["s"])
        if c.log_prob == "official":
            log_prob = official_cps_log_prob(items["x_next"], transition.mean, c.reduction)
        else:
            log_prob = transition.log_prob(items["x_next"].detach(), c.reduction)
        loss = importance_sampling_loss(log_prob, items["old"], items["advantage"], c.clip)
        change = (log_prob - items["old"]).detach()
        metrics = {"clipped": (change.exp() - 1).abs() > c.clip, "approx_kl": 0.5 * change**2}
        if c.beta:
            kl = self.kl_term(model, transition, items)
            loss, metrics["kl"] = loss + c.beta * kl, kl.detach()
        return loss, metrics

    def kl_term(self, model: DiffusionModel, transition: Transition, items: Items) -> Tensor:
        """KL of the step from the reference's, (M,), in the configured convention."""
        kl = kl_to_mean(transition, items["reference"], self.config.reduction)
        if self.config.kl == "official" and self.config.dynamics == "sde":
            return official_kl(kl, model.schedule, items["t"], items["s"])
        return kl  # the std of CPS has no dt in it


FlowGRPO.PRESETS = {
    "full": Preset(
        FlowGRPOConfig(guidance=4.5, kl="official", beta=0.01),
        Training(epochs=1000, samples=1152, samples_per_prompt=24, updates=2, lr=3e-4, lora_rank=32, lora_alpha=64,
                 ema=0.9, ema_every=8, micro_batch=8, sample_batch=8),
        model="sd3.5-medium", reward="pickscore",
        source="arXiv 2505.05470 and yifan123/flow_grpo config/grpo.py (several nodes of 8 GPUs); its beta is 0.04 for "
               "GenEval and OCR, 0.01 for PickScore; the number of epochs is ours",
        cost="1,152 pictures and 10,368 trained steps an epoch",
    ),
    "single": Preset(
        FlowGRPOConfig(guidance=4.5, window=2, shared_noise=True, beta=0.0, noise=0.8, clip=1e-5),
        Training(epochs=200, samples=96, samples_per_prompt=12, updates=2, lr=3e-4, lora_rank=32, lora_alpha=64,
                 ema=0.9, ema_every=8, micro_batch=2, sample_batch=4),
        model="sd3.5-medium", reward="pickscore",
        source="ours: the window of Flow-GRPO-Fast (its a, clip and beta) cut to one 24 GB card",
        cost="96 pictures and 192 trained steps an epoch",
    ),
    "toy": Preset(
        FlowGRPOConfig(steps=8, guidance=3.0, dynamics="cps", clip=1e-3, beta=0.01),
        Training(epochs=20, samples=32, samples_per_prompt=8, updates=2, lr=3e-3, lora_rank=16, micro_batch=64,
                 sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore",
        source="ours; on shapes-sd, whose VP schedule is read in flow coordinates; in 8 steps the SDE leaves noise in "
               "the pictures, CPS does not",
        cost="about 5 minutes on one core",
    ),
}
