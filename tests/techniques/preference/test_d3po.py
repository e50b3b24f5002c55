"""D3PO: its rule, its pairs, its reference."""

import math

import pytest
import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.paths import sample_paths
from surveylib.techniques.preference.d3po import D3PO, D3POConfig, d3po_loss

TRAINING = Training(epochs=2, samples=4, micro_batch=3, sample_batch=2, lora_rank=2, lr=1e-2)
PROMPTS = ["a cat", "a dog"]


def brightness() -> FunctionReward:
    return FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", False, False)


def technique(**options) -> D3PO:
    return D3PO(D3POConfig(**{"steps": 4, "guidance": 1.5} | options))


def moved_policy(name: str = "tiny-sd"):
    """A model with an adapter that does something, so that policy and reference differ."""
    model = load_model(name)
    add_lora(model, 2)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_the_rule_by_hand():
    change = torch.tensor([[0.05, -0.03]])
    for answer, sign in ((1.0, -1), (-1.0, 1)):
        found = d3po_loss(change, torch.tensor([answer]), 2.0, 0.1)
        assert found.item() == pytest.approx(math.log1p(math.exp(sign * 2 * 0.08)), rel=1e-5)
    outside = d3po_loss(torch.tensor([[0.7, -0.9]]), torch.tensor([1.0]), 2.0, 0.1)
    assert outside.item() == pytest.approx(math.log1p((0.9 / 1.1) ** 2), rel=1e-5)


def test_gradient_at_the_start_swap_and_tie():
    change = torch.zeros(3, 2, requires_grad=True)
    losses = d3po_loss(change, torch.tensor([1.0, -1.0, 0.0]), 0.4, 0.1)
    assert torch.allclose(losses, torch.full((3,), math.log(2)))
    losses.sum().backward()
    assert torch.allclose(change.grad, torch.tensor([[-0.2, 0.2], [0.2, -0.2], [0.0, 0.0]]))  # beta sigmoid(0)


def test_no_gradient_outside_of_the_clamp():
    change = torch.tensor([[0.2, 0.05], [0.05, -0.2], [0.05, 0.04]], requires_grad=True)
    d3po_loss(change, torch.ones(3), 1.0, 0.1).sum().backward()
    assert (change.grad != 0).tolist() == [[False, True], [True, False], [True, True]]


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"])
def test_runs_on_every_family_and_starts_at_the_reference(name):
    first, second = align(load_model(name), technique(), brightness(), PROMPTS, TRAINING)
    assert first.metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first.metrics["implicit_accuracy"] == pytest.approx(0.5) and first.metrics["ties"] == 0
    assert first.metrics["grad_norm"] > 0 and math.isfinite(second.metrics["loss"])


def test_repeated_passes_raise_the_implicit_accuracy():
    training = Training(epochs=1, samples=4, passes=12, micro_batch=12, sample_batch=4, lora_rank=4, lr=3e-3)
    (progress,) = align(load_model("tiny-sd"), technique(), brightness(), PROMPTS, training)
    assert progress.metrics["implicit_accuracy"] > 0.7 and progress.metrics["loss"] < math.log(2)


def test_a_pair_shares_its_start_and_is_two_rollouts():
    model, method = load_model("tiny-sd"), technique()
    draw = Draw.of(PROMPTS, seed=5, batch=1)
    batch = method.collect(model, draw, brightness())
    x, x_next = batch.steps["x"], batch.steps["x_next"]
    assert x.shape[:3] == (2, batch.n_steps, 2) and batch.steps["t"].shape == (2, batch.n_steps)
    assert torch.equal(x[:, 0, 0], x[:, 0, 1]) and not torch.allclose(x_next[:, 0, 0], x_next[:, 0, 1])
    assert torch.equal(x[:, 1:], x_next[:, :-1])  # no step is left out in between
    start = model.initial_noise(2, draw.generators("start"))
    second = sample_paths(model, model.encode(PROMPTS), dynamics=DDIM(1.0), steps=4, guidance=1.5, start=start,
                          generators=draw.generators("second"))
    assert torch.allclose(x_next[:, 0, 1], second.x[:, 1], atol=1e-5)


def test_the_answer_is_the_higher_reward():
    model, method = load_model("tiny-sd"), technique()
    rewards = []

    def remembered(pictures, prompts):
        rewards.append(pictures.mean((1, 2, 3)))
        return rewards[-1]

    batch = method.collect(model, Draw.of(PROMPTS * 2, seed=5), FunctionReward(remembered, "seen", False, False))
    first, second = rewards
    assert torch.equal(batch.samples["answer"], torch.sign(first - second))
    assert torch.allclose(batch.pictures.mean((1, 2, 3)), torch.maximum(first, second))
    worse = FunctionReward(lambda pictures, prompts: -pictures.mean((1, 2, 3)), "dark", False, False)
    swapped = method.collect(model, Draw.of(PROMPTS * 2, seed=5), worse)
    assert torch.equal(swapped.samples["answer"], -batch.samples["answer"])


def test_swapping_both_paths_and_the_answer_changes_nothing():
    model, method = moved_policy(), technique()
    items = method.collect(model, Draw.of(PROMPTS, seed=5), brightness()).all_items()
    losses, _ = method.loss(model, items, None, {})
    values = dict(items.values) | {"x": items["x"].flip(1), "x_next": items["x_next"].flip(1)}
    swapped, _ = method.loss(model, type(items)(items.condition, values, items.keys), None, {})
    assert (losses - math.log(2)).abs().min() > 1e-6
    assert torch.allclose(torch.exp(-losses) + torch.exp(-swapped), torch.ones(len(items)), atol=1e-5)  # P + (1 - P)
    values["answer"] = -values["answer"]
    both, _ = method.loss(model, type(items)(items.condition, values, items.keys), None, {})
    assert torch.allclose(both, losses, atol=1e-6)


def test_ties_move_nothing():
    constant = FunctionReward(lambda pictures, prompts: 0 * pictures.mean((1, 2, 3)), "constant", False, False)
    model = load_model("tiny-sd")
    (progress,) = align(model, technique(), constant, PROMPTS, Training(epochs=1, samples=2, lora_rank=2))
    assert progress.metrics["ties"] == 1 and progress.metrics["grad_norm"] == 0
    assert progress.metrics["loss"] == pytest.approx(math.log(2))


def test_the_reference_is_the_model_without_adapter_and_carries_no_gradient():
    model, method = load_model("tiny-sd"), technique()
    model.network.requires_grad_(True)
    model.snapshot("reference")
    stored = [p for snapshot in model.snapshots.values() for p in snapshot.values()]
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    items = method.collect(model, Draw.of(PROMPTS, seed=5), brightness()).all_items()
    policy = method._log_prob(model, items)
    with model.reference():
        constant = method._log_prob(model, items).detach()
    wanted = d3po_loss(policy - constant, items["answer"], 0.1, 0.1).mean()
    losses, _ = method.loss(model, items, None, {})
    assert losses.mean().item() == pytest.approx(wanted.item(), abs=1e-6)
    parameters = [p for p in model.trainable_parameters() if p.requires_grad]
    found = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    right = torch.autograd.grad(wanted, parameters, allow_unused=True)
    assert all(a is b is None or torch.allclose(a, b, atol=1e-6) for a, b in zip(found, right))
    assert stored and not any(p.requires_grad for p in stored)


@pytest.mark.parametrize("options, words", [
    ({"beta": 0.0}, "beta=0"), ({"beta": -1.0}, "beta=-1"), ({"eta": 0.0}, "eta=0"), ({"clip": 0.0}, "clip=0"),
    ({"steps": 1}, "steps=1"),
])
def test_bad_settings_are_refused(options, words):
    with pytest.raises(TechniqueError, match=words):
        D3POConfig(**options)


def test_recorded_pairs_are_refused():
    with pytest.raises(TechniqueError, match="reward"):
        next(align(load_model("tiny-sd"), D3PO(), object(), PROMPTS, TRAINING))
