"""Networks in bfloat16 inside losses and rollouts: what stays in float32, and how far the loss moves."""

import math

import pytest
import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.registry import load_reward
from surveylib.techniques.contract import Training
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig
from surveylib.techniques.preference.data import from_tensors
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from surveylib.techniques.reward_gradient.draft import DRaFT, DRaFTConfig

PLAN = {"epochs": 3, "samples": 4, "samples_per_prompt": 2, "lr": 1e-2, "lora_rank": 2, "micro_batch": 4}


def pairs():
    pictures = torch.rand(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return from_tensors("pairs", list("abcd"), pictures, torch.tensor([0, 1, 0, 1]))


def run(name: str, autocast: str | None):
    """Losses of three epochs, what was collected, the weights before and after, and the types of the inner layers."""
    model, collected, inside = load_model("tiny-sd"), [], set()
    technique = {
        "ddpo": DDPO(DDPOConfig(estimator="sf", steps=4, guidance=2.0)),
        "diffusion_dpo": DiffusionDPO(DiffusionDPOConfig(beta=500.0)),
        "draft": DRaFT(DRaFTConfig(variant="k", last=2, steps=4, guidance=2.0)),
    }[name]
    signal, prompts = (pairs(), []) if name == "diffusion_dpo" else (load_reward("brightness"), ["a", "b"])
    collect = technique.collect
    technique.collect = lambda *given: collected.append(collect(*given)) or collected[-1]
    inner = next(m for m in model.network.modules() if isinstance(m, torch.nn.Conv2d))
    inner.register_forward_hook(lambda module, inputs, output: inside.add(output.dtype))
    steps = align(model, technique, signal, prompts, Training(autocast=autocast, **PLAN))
    first = next(steps)
    before = [p.detach().clone() for p in model.trainable_parameters()]
    losses = [first.metrics["loss"], *(progress.metrics["loss"] for progress in steps)]
    return losses, collected, (before, model.trainable_parameters()), inside


@pytest.mark.parametrize(("name", "tolerance", "later"), [
    ("ddpo", 0.05, 0.1), ("diffusion_dpo", 1e-6, 0.1), ("draft", 1e-3, 1e-3),
])
def test_a_short_run_in_bfloat16(name, tolerance, later):
    """tolerance, later: relative, of the loss of the first update and of the second against float32. bfloat16 has 8
    bits. The first loss of Diffusion-DPO is log 2 in any precision."""
    full, reduced = run(name, None), run(name, "bfloat16")
    assert full[3] == {torch.float32} and reduced[3] == {torch.bfloat16}
    losses, collected, (before, after), _ = reduced
    assert all(map(math.isfinite, losses))
    assert all(p.dtype == torch.float32 for p in after) and any(not torch.equal(b, a) for b, a in zip(before, after))
    assert losses[0] == pytest.approx(full[0][0], rel=tolerance)
    assert losses[1] == pytest.approx(full[0][1], rel=later)
    if name == "ddpo":
        old = [batch.steps["old"] for batch in collected]
        assert len(old) == 3 and all(o.dtype == torch.float32 and o.isfinite().all() for o in old)
        assert any(not torch.equal(o, o.bfloat16().float()) for o in old)  # not only cast afterwards
