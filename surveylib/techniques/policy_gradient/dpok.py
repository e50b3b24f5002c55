"""DPOK: policy gradient with a KL penalty along the path (Fan et al., arXiv 2305.16381).

    maximise  E[ r(x_0, c) ] - beta sum_t E[ KL( p_theta(x_s | x_t, c) || p_ref(x_s | x_t, c) ) ]          (section 4)

The sum bounds the KL divergence of the pictures from above. With steps that are memoryless (eta = 1, x_T independent of
x_0) its optimum is the tilted distribution p_ref(x_0) exp(r / beta). The loss of a stored step, beta = w_kl / w_r:

    L = -w_r A clamp(rho, 1 - eps, 1 + eps) + w_kl KL_t,        A = r - V_phi(x_t, c, t)

Special: the KL term, and a value network V_phi as baseline. The ratio rho is clamped only, without PPO's pessimistic
maximum: outside the band the reward has no gradient, whatever the sign of A.

The gradient of the penalty has two parts: that of each KL_t where the path passes ("local", as in the official code),
and that of where the path goes, since a step also decides which KL terms follow. With ``kl_gradient="path"`` the KL of
the steps to come is taken off the reward, which makes the gradient whole; only then is the optimum the tilt.

Deviations from google-research/dpok: each epoch learns from its own samples, not from a buffer of 1000 transitions;
V_phi is a perceptron over coarse latents and averaged text states, not a convolution; ``kl="official"`` is the code's
distance, the squared difference of what the two networks put out, after guidance: of Stable Diffusion the predicted
noises. It leaves out the weight of the prediction in the mean, and the variance.
Chapter: techniques/02_denoising_as_a_decision_process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM, Dynamics, Reduction, Transition, reduce
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.rollout import step_log_prob
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import decode_all, sample_paths, score_all
from surveylib.techniques.policy_gradient.replay import kl_ahead, kl_to_mean, reference_transitions, stored_steps
from surveylib.techniques.policy_gradient.value import ValueNetwork, value_features


@dataclass(frozen=True)
class DPOKConfig:
    """Settings of DPOK.

    steps, eta, guidance: of the rollout; guidance None takes the model's own and is used in training too.
    reward_weight, kl_weight: w_r and w_kl; beta = w_kl / w_r, in units of the reward, when kl is "exact".
    kl: "exact" KL of the two Gaussians, or "official", the squared difference of the two networks' outputs.
    kl_gradient: "path" (whole) or "local" (official); see the module.
    clip: eps; 1e-4 belongs to reduction "mean". reduction: of log-probabilities and KL.
    value_lr, value_steps, value_batch: of V_phi, which is fitted in each epoch before it is used.
    """

    steps: int = 50
    eta: float = 1.0
    guidance: float | None = None
    reward_weight: float = 100.0
    kl_weight: float = 0.01
    kl: Literal["exact", "official"] = "exact"
    kl_gradient: Literal["path", "local"] = "path"
    clip: float = 1e-4
    reduction: Reduction = "mean"
    value_lr: float = 1e-4
    value_steps: int = 5
    value_batch: int = 256

    def __post_init__(self) -> None:
        if self.kl not in ("exact", "official") or self.kl_gradient not in ("path", "local"):
            raise TechniqueError(f"kl={self.kl!r}, kl_gradient={self.kl_gradient!r}: choose 'exact' or 'official', and "
                                 "'path' or 'local'")
        if not 0 < self.eta <= 1:
            raise TechniqueError(f"eta={self.eta} must be in (0, 1]: without noise no step has a probability")
        if self.clip <= 0 or self.steps < 2 or self.reward_weight <= 0:
            raise TechniqueError(f"clip={self.clip} and reward_weight={self.reward_weight} must be positive, steps="
                                 f"{self.steps} at least 2 (the last step has no noise)")
        if self.kl_weight <= 0:
            raise TechniqueError(f"kl_weight={self.kl_weight} must be positive; without a KL term this is ddpo")


def dpok_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, kl: Tensor, clip: float, weights: tuple[float, float]):
    """-w_r A clamp(rho, 1 - eps, 1 + eps) + w_kl KL. All (M,); `weights` are (w_r, w_kl)."""
    ratio = torch.exp(log_prob - old).clamp(1 - clip, 1 + clip)
    return -weights[0] * advantage * ratio + weights[1] * kl


def output_weight(model: DiffusionModel, dynamics: Dynamics, t: Tensor, s: Tensor) -> Tensor:
    """k (M, 1, ...) with mu_1 - mu_2 = k (output_1 - output_2), float64: the mean is linear in the network's output.

    From noise to picture it is never 0: for predicted noises k = sqrt(s'^2 - std^2) - a' s / a < 0, as s / a > s' / a'.
    """
    one = torch.ones(len(t), *[1] * len(model.latent_shape), dtype=torch.float64)
    there = Prediction(torch.zeros_like(one), t.cpu(), one, model.prediction_kind, model.schedule)
    return dynamics.transition(there, s.cpu()).mean


class DPOK(Technique):
    """DPOK."""

    name = "dpok"
    needs = ("reward", "online")
    Config = DPOKConfig

    def __init__(self, config: DPOKConfig | None = None) -> None:
        super().__init__(config)
        self.value = ValueNetwork(self.config.value_lr, self.config.value_steps, self.config.value_batch)

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rolls out, scores, compares each step with the reference's, fits the value network."""
        c = self.config
        condition = model.encode(draw.prompts)
        paths = sample_paths(model, condition, dynamics=DDIM(c.eta), steps=c.steps, generators=draw.generators(),
                             guidance=c.guidance, reduction=c.reduction, batch=draw.batch, keep_means=True)
        pictures = decode_all(model, paths.x0, draw.batch)
        rewards = score_all(signal, pictures, draw.prompts, draw.batch)
        steps, k = stored_steps(paths)
        steps["reference"], std = reference_transitions(model, condition, DDIM(c.eta), steps, c.guidance, draw.batch)
        policy = Transition(paths.mean[:, k.to(paths.x.device)].flatten(0, 1), std.flatten(0, 1))
        flat = {name: steps[name].flatten(0, 1) for name in ("t", "s", "reference")}
        kl = self._kl(policy, flat, "sum", model).unflatten(0, std.shape[:2])
        target = rewards[:, None].expand_as(kl)
        if c.kl_gradient == "path":
            target = target - c.kl_weight / c.reward_weight * kl_ahead(kl)
        features = value_features(steps["x"], steps["t"], condition, model.schedule)
        error = self.value.fit(draw.gather(features), draw.gather(target.cpu()), draw.seed)
        steps["advantage"] = target - self.value.predict(features).to(target)
        metrics = {"reward": rewards.mean().item(), "path_kl": kl.sum(1).mean().item(), "value_error": error}
        return Batch(condition, {}, steps, metrics, pictures)

    def _kl(self, policy: Transition, items: Mapping[str, Tensor] | Items, reduction: Reduction, model: DiffusionModel):
        if self.config.kl == "official":
            weight = output_weight(model, DDIM(self.config.eta), items["t"], items["s"]).to(policy.mean)
            return reduce(((policy.mean - items["reference"]) / weight).square(), reduction)
        return kl_to_mean(policy, items["reference"], reduction)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, on stored steps."""
        c = self.config
        log_prob, transition = step_log_prob(model, items.condition, DDIM(c.eta), x=items["x"], t=items["t"],
                                             s=items["s"], x_next=items["x_next"], guidance=c.guidance,
                                             reduction=c.reduction)
        kl = self._kl(transition, items, c.reduction, model)
        loss = dpok_loss(log_prob, items["old"], items["advantage"], kl, c.clip, (c.reward_weight, c.kl_weight))
        change = (log_prob - items["old"]).detach()
        return loss, {"clipped": (change.exp() - 1).abs() > c.clip, "approx_kl": 0.5 * change**2, "kl": kl.detach()}

    def state_dict(self) -> dict[str, Any]:
        """The value network."""
        return self.value.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.value.load_state_dict(state)


DPOK.PRESETS = {
    "full": Preset(
        DPOKConfig(kl="official", kl_gradient="local"),
        Training(epochs=2000, samples=6, samples_per_prompt=6, updates=5, lr=1e-5, weight_decay=0.0, clip_norm=0.1,
                 lora_rank=4, micro_batch=2, sample_batch=6),
        model="sd1.5", reward="imagereward",
        source="arXiv 2305.16381 and google-research/dpok train_online_pg.py (weights, clip, learning rates, weight "
               "decay, samples a round, 10,000 // 5 rounds); its 5 updates a round take 24 transitions each from a "
               "buffer, the 5 here 49 or 98 of the present samples; its value network makes one step a round, "
               "accumulated over 5 batches, here 5 steps",
        cost="6 pictures and 294 trained steps an epoch",
    ),
    "single": Preset(
        DPOKConfig(steps=30, reward_weight=1.0, kl_weight=0.01, value_lr=1e-3, value_steps=20),
        Training(epochs=100, samples=64, samples_per_prompt=4, updates=2, lr=3e-4, lora_rank=4, micro_batch=4,
                 sample_batch=8),
        model="sd1.5", reward="imagereward", source="ours: one 24 GB card, KL and its gradient exact",
        cost="64 pictures and 1,856 trained steps an epoch",
    ),
    "toy": Preset(
        DPOKConfig(steps=8, guidance=3.0, reward_weight=1.0, kl_weight=0.01, clip=1e-3, value_lr=1e-3, value_steps=20),
        Training(epochs=20, samples=32, samples_per_prompt=8, updates=2, lr=3e-3, lora_rank=16, micro_batch=64,
                 sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 8 minutes on one core",
    ),
}
