"""DDPO: denoising diffusion policy optimisation (Black et al., arXiv 2305.13301).

The T denoising steps are a Markov decision process whose only reward r(x_0, c) comes at the end. With A the reward
normalised by prompt and rho = p_theta(x_s | x_t, c) / p_old(x_s | x_t, c),

    DDPO-SF   grad J = E sum_t A grad log p_theta(x_s | x_t, c)                       (eq. 3, one update a batch)
    DDPO-IS   loss   = mean_t max(-A rho, -A clip(rho, 1 - eps, 1 + eps))             (eq. 4 with PPO's clip)

Special: no reward gradient, no KL term; nothing holds the model near its start, so the number of epochs is the
regulariser. Log-probabilities are means over dimensions, as in the official code: rho is then the D-th root of the
likelihood ratio, and eps = 1e-4 belongs to that.

Deviations from kvablack/ddpo-pytorch: timesteps are not permuted one by one within a sample (an update averages over
whole trajectories, so the order has no effect); no mixed precision (bfloat16 alone moves a mean log-probability by
about the clip); the last step has no noise and is left out (there, on Stable Diffusion's schedule, it has some and is
trained, which does no harm on its leading grid: see `surveylib.diffusion.dynamics`); a timestep_fraction below 1 takes
the noisiest steps, as yifan123/flow_grpo does, and not a random share.
Chapter: techniques/02_denoising_as_a_decision_process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surveylib.diffusion.dynamics import DDIM, Reduction
from surveylib.diffusion.model import DiffusionModel
from surveylib.diffusion.rollout import step_log_prob
from surveylib.techniques.advantages import PromptTracker
from surveylib.techniques.contract import Batch, Draw, Items, Preset, Technique, TechniqueError, Training
from surveylib.techniques.paths import decode_all, sample_paths, score_all
from surveylib.techniques.policy_gradient.replay import check_fraction, stored_steps


@dataclass(frozen=True)
class DDPOConfig:
    """Settings of DDPO.

    estimator: "is" (importance sampling with clip, several updates a batch) or "sf" (score function, one update).
    steps, eta, guidance: of the rollout; guidance None takes the model's own and is used in training too.
    timestep_fraction: share of the steps that is trained, the noisiest first, rounded up.
    clip: eps. clip_advantage: bound of |A|. reduction: of log-probabilities; clip 1e-4 belongs to "mean".
    tracker_size, tracker_least: rewards kept a prompt, and how many are needed before they count.
    """

    estimator: Literal["is", "sf"] = "is"
    steps: int = 50
    eta: float = 1.0
    guidance: float | None = 5.0
    timestep_fraction: float = 1.0
    clip: float = 1e-4
    clip_advantage: float = 5.0
    reduction: Reduction = "mean"
    tracker_size: int = 16
    tracker_least: int = 16

    def __post_init__(self) -> None:
        if self.estimator not in ("is", "sf"):
            raise TechniqueError(f"estimator={self.estimator!r}: choose 'is' or 'sf'")
        if not 0 < self.eta <= 1:
            raise TechniqueError(f"eta={self.eta} must be in (0, 1]: without noise no step has a probability")
        check_fraction(self.timestep_fraction)
        if self.clip <= 0 or self.steps < 1:
            raise TechniqueError(f"clip={self.clip} must be positive and steps={self.steps} at least 1")
        if not 1 <= self.tracker_least <= self.tracker_size:
            raise TechniqueError(f"tracker_least={self.tracker_least} must lie between 1 and tracker_size="
                                 f"{self.tracker_size}: more rewards of a prompt are never kept, so that its own "
                                 "statistics would never be used")


def score_function_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """DDPO-SF, eq. 3: its gradient is -A grad log p. All (M,)."""
    return -advantage * log_prob


def importance_sampling_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """DDPO-IS, eq. 4 with PPO's pessimistic clip. All (M,); `old` are the log-probabilities at sampling."""
    ratio = torch.exp(log_prob - old)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


class DDPO(Technique):
    """DDPO-SF and DDPO-IS."""

    name = "ddpo"
    needs = ("reward", "online")
    Config = DDPOConfig

    def __init__(self, config: DDPOConfig | None = None) -> None:
        super().__init__(config)
        self.tracker = PromptTracker(self.config.tracker_size, self.config.tracker_least)

    def check(self, model: DiffusionModel, signal: Any, training: Training) -> None:
        """As in `Technique.check`; SF also refuses reused samples."""
        super().check(model, signal, training)
        if self.config.estimator == "sf" and training.updates * training.passes > 1:
            raise TechniqueError(f"DDPO-SF takes one update a batch, not {training.updates} x {training.passes}: its "
                                 "gradient holds for fresh samples only. Use estimator='is' for more")

    def collect(self, model: DiffusionModel, draw: Draw, signal: Any) -> Batch:
        """Rolls out, scores the pictures, keeps every step that has noise."""
        c = self.config
        condition = model.encode(draw.prompts)
        paths = sample_paths(model, condition, dynamics=DDIM(c.eta), steps=c.steps, generators=draw.generators(),
                             guidance=c.guidance, reduction=c.reduction, batch=draw.batch)
        pictures = decode_all(model, paths.x0, draw.batch)
        rewards = score_all(signal, pictures, draw.prompts, draw.batch)
        advantage = self._advantages(draw, rewards)
        steps, _ = stored_steps(paths, c.timestep_fraction)
        return Batch(condition, {"advantage": advantage}, steps, {"reward": rewards.mean().item()}, pictures)

    def _advantages(self, draw: Draw, rewards: Tensor) -> Tensor:
        everyone = draw.gather(rewards.cpu())
        advantage = self.tracker.advantages(draw.all_prompts, everyone)[draw.local]
        return advantage.clamp(-self.config.clip_advantage, self.config.clip_advantage).to(rewards.device)

    def loss(
        self, model: DiffusionModel, items: Items, signal: Any, means: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule, on stored steps."""
        c = self.config
        log_prob, _ = step_log_prob(model, items.condition, DDIM(c.eta), x=items["x"], t=items["t"], s=items["s"],
                                    x_next=items["x_next"], guidance=c.guidance, reduction=c.reduction)
        if c.estimator == "sf":
            return score_function_loss(log_prob, items["advantage"]), {}
        change = (log_prob - items["old"]).detach()
        metrics = {"clipped": (change.exp() - 1).abs() > c.clip, "approx_kl": 0.5 * change**2}
        return importance_sampling_loss(log_prob, items["old"], items["advantage"], c.clip), metrics

    def state_dict(self) -> dict[str, Any]:
        """The tracker."""
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.tracker.load_state_dict(state)


DDPO.PRESETS = {
    "full": Preset(
        DDPOConfig(tracker_size=32),
        Training(epochs=200, samples=256, samples_per_prompt=1, updates=2, lr=3e-4, lora_rank=4, micro_batch=8,
                 sample_batch=8),
        model="sd1.5", reward="aesthetic",
        source="arXiv 2305.13301 and kvablack/ddpo-pytorch config/dgx.py, aesthetic (8 GPUs; SD1.4 there)",
        cost="256 pictures and 12,544 trained steps an epoch",
    ),
    "single": Preset(
        DDPOConfig(steps=30),
        Training(epochs=100, samples=64, samples_per_prompt=4, updates=2, lr=3e-4, lora_rank=4, micro_batch=4,
                 sample_batch=8),
        model="sd1.5", reward="aesthetic", source="ours: the paper's setting cut to one 24 GB card",
        cost="64 pictures and 1,856 trained steps an epoch",
    ),
    "toy": Preset(
        DDPOConfig(steps=8, guidance=3.0, clip=1e-3, tracker_size=32, tracker_least=8),
        Training(epochs=25, samples=32, samples_per_prompt=8, updates=2, lr=3e-3, lora_rank=16, micro_batch=64,
                 sample_batch=32),
        model="shapes-sd", reward="shapes-pickscore", source="ours", cost="about 5 minutes on one core",
    ),
}
