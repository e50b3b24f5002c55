"""Small policies and batches for the tests of the policy gradients."""

from __future__ import annotations

import torch

from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Draw
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig
from surveylib.techniques.policy_gradient.dpok import DPOK, DPOKConfig
from surveylib.techniques.policy_gradient.flow_grpo import FlowGRPO, FlowGRPOConfig
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import learned_model

RIGHT = PointReward(lambda x: x[:, 0], "right")
FLAT = PointReward(lambda x: 0 * x[:, 0] + 0.3, "flat")


def brightness(name: str = "brightness") -> FunctionReward:
    return FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), name, False, False)


def point_policy(family: str = "vp", moved: float = 0.0):
    """A little trained policy over points, all weights trainable, its reference stored before it is `moved`."""
    schedule = VPSchedule.cosine() if family == "vp" else FlowSchedule(spacing="uniform")
    model = learned_model(two_peaks(), schedule, steps=30)
    model.network.requires_grad_(True)
    model.snapshot("reference")
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def techniques(**options):
    """Each method in the settings that compare best: 6 steps, log-probabilities as sums unless told otherwise."""
    common = {"steps": 6, "guidance": 1.0, "reduction": "sum", "clip": 0.2} | options
    return {
        "ddpo-sf": DDPO(DDPOConfig(estimator="sf", tracker_least=2, **common)),
        "ddpo-is": DDPO(DDPOConfig(tracker_least=2, **common)),
        "dpok": DPOK(DPOKConfig(reward_weight=1.0, kl_weight=0.5, **common)),
        "flow_grpo-sde": FlowGRPO(FlowGRPOConfig(beta=0.5, **common)),
        "flow_grpo-cps": FlowGRPO(FlowGRPOConfig(dynamics="cps", beta=0.5, **common)),
    }


def official_kl():
    """The methods whose official code has another KL term, with it."""
    common = {"steps": 6, "guidance": 1.0, "reduction": "sum", "clip": 0.2, "kl": "official", "kl_gradient": "local"}
    return {
        "dpok-official": DPOK(DPOKConfig(reward_weight=1.0, kl_weight=0.5, **common)),
        "flow_grpo-sde-official": FlowGRPO(FlowGRPOConfig(beta=0.5, **common)),
    }


def draw(n: int = 12, per_prompt: int = 6) -> Draw:
    prompts = ["left", "right", "any"][: n // per_prompt]
    return Draw.of(prompts, per_prompt=per_prompt, seed=3)


def gradient(model, losses: torch.Tensor) -> torch.Tensor:
    """Of the mean loss, all trainable weights in one vector."""
    found = torch.autograd.grad(losses.mean(), model.trainable_parameters(), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for g, p in zip(found, model.trainable_parameters())])


def lora_policy(name: str, rank: int = 2):
    model = load_model(name)
    add_lora(model, rank)
    return model
