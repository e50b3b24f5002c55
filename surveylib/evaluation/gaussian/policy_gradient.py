"""Policy gradients in the Gaussian world: with a KL term they go to the tilt, without it to the mode.

The problem is fixed: two peaks, the reward -(x - 1)^2 / 2, beta = 0.5, a small network as the policy, log-probabilities
as sums (true likelihood ratios), advantages in units of the reward. Where a sampler has few steps its own error is in
the distance: the row "base" of each sampler says how far the unaligned model's samples are from the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM, Dynamics
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.evaluation.gaussian.closure import TiltProblem
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Technique, Training
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig
from surveylib.techniques.policy_gradient.dpok import DPOK, DPOKConfig
from surveylib.techniques.policy_gradient.flow_grpo import FlowGRPO, FlowGRPOConfig
from surveylib.worlds.gaussian.mixture import ANY, two_peaks
from surveylib.worlds.gaussian.models import GaussianModel, learned_model
from surveylib.worlds.gaussian.tilt import QuadraticReward

PROBLEM = TiltProblem("two peaks, quadratic reward, beta 0.5", two_peaks(), QuadraticReward((1.0,)), 0.5)
SAMPLES = 20_000
TRAINING = Training(epochs=40, samples=256, samples_per_prompt=256, lr=3e-3, weight_decay=0.0, lora_rank=None,
                    micro_batch=100_000, sample_batch=100_000)
MEMORYLESS = 2**0.5  # a of the flow SDE with which x_T and x_0 are independent


@dataclass(frozen=True, eq=False)
class Outcome:
    """The aligned model, samples of it (n, 1) and the network calls of the alignment."""

    model: GaussianModel
    samples: Tensor
    calls: int


def draw_samples(model: GaussianModel, dynamics: Dynamics, steps: int, seed: int = 0, n: int = SAMPLES) -> Tensor:
    """(n, 1) samples of a model."""
    generator = torch.Generator().manual_seed(seed)
    return sample(model, [ANY] * n, dynamics=dynamics, steps=steps, generator=generator)


@cache
def policy(family: str, seed: int = 0) -> GaussianModel:
    """The unaligned policy; copy it before it is changed."""
    schedule = VPSchedule.cosine() if family == "vp" else FlowSchedule(spacing="uniform")
    return learned_model(PROBLEM.base, schedule, steps=1500, seed=seed)


def run(
    technique: Technique, dynamics: Dynamics, family: str, *, seed: int = 0, training: Training = TRAINING,
    settle: int = 15,
) -> Outcome:
    """Aligns a policy trained on the mixture, then `settle` epochs more at a fifth of the learning rate."""
    model, reward, calls = deepcopy(policy(family, seed)), PointReward(PROBLEM.reward), 0
    for phase in (training, replace(training, epochs=settle, lr=training.lr / 5)):
        progress = list(align(model, technique, reward, [ANY], phase, seed=seed))
        calls += progress[-1].ledger.network_calls if progress else 0
    return Outcome(model, draw_samples(model, dynamics, technique.config.steps, seed), calls)


def ddpo(seed: int = 0) -> Outcome:
    """DDPO-SF, which has no KL term."""
    config = DDPOConfig(estimator="sf", steps=24, guidance=1.0, reduction="sum", tracker_size=256)
    training = replace(TRAINING, lr=1e-3)
    return run(DDPO(config), DDIM(1.0), "vp", seed=seed, training=training, settle=0)


def dpok(seed: int = 0, kl_gradient: str = "path") -> Outcome:
    """DPOK with the exact KL; the whole gradient of the path's KL, or the local part."""
    config = DPOKConfig(steps=24, reward_weight=1.0, kl_weight=PROBLEM.beta, kl_gradient=kl_gradient, clip=0.2,
                        reduction="sum", value_lr=2e-3, value_steps=20, value_batch=1024)
    return run(DPOK(config), DDIM(1.0), "vp", seed=seed)


def flow_grpo(
    seed: int = 0, noise: float = MEMORYLESS, beta: float = PROBLEM.beta, kl_gradient: str = "local"
) -> Outcome:
    """Flow-GRPO with the exact KL; 0.7 is the paper's noise, sqrt(2) the memoryless one."""
    config = FlowGRPOConfig(steps=16, noise=noise, scale="none", beta=beta, kl_gradient=kl_gradient, clip=0.2,
                            clip_advantage=100.0, reduction="sum")
    technique = FlowGRPO(config)
    return run(technique, technique.dynamics, "flow", seed=seed)


def cases(seed: int = 0) -> Iterator[tuple[str, Outcome, str]]:
    """(technique, outcome, what to know), one after the other."""
    yield "dpok", dpok(seed), "whole gradient of the path's KL: the optimum is the tilt"
    yield "dpok", dpok(seed, "local"), "local gradient (official code): stops short of the tilt"
    yield "flow_grpo", flow_grpo(seed, kl_gradient="path"), "memoryless SDE (a = 1.41), whole gradient: the tilt"
    yield "flow_grpo", flow_grpo(seed, noise=0.7, kl_gradient="path"), "a = 0.7, whole gradient"
    yield "flow_grpo", flow_grpo(seed, noise=0.2, kl_gradient="path"), "a = 0.2, whole gradient: far from memoryless"
    yield "flow_grpo", flow_grpo(seed), "memoryless SDE, local gradient (official code): stops short of the tilt"
    yield "flow_grpo", flow_grpo(seed, noise=0.7), "a = 0.7, local gradient: the paper's setting"
    yield "flow_grpo", flow_grpo(seed, beta=0.0), "no KL term: goes past the tilt to the mode"
    yield "ddpo", ddpo(seed), "no KL term: goes past the tilt to the mode"


def rows(seed: int = 0) -> list[dict]:
    """Rows of the table; see `TiltProblem.row`."""
    return [PROBLEM.row(name, outcome.samples, outcome.calls, note) for name, outcome, note in cases(seed)]
