"""Rule, identities, bad input and a short run of D3PO."""

import math
from dataclasses import replace

import pytest
import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.preference.d3po import D3PO, D3POConfig, d3po_loss
from surveylib.techniques.registry import make

BRIGHT = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", False, False)
FLAT = FunctionReward(lambda pictures, prompts: 0 * pictures.mean((1, 2, 3)) + 0.3, "flat", False, False)
D = D3PO(D3POConfig(steps=4, guidance=2.0))


def policy(moved: float = 0.0):
    model = load_model("tiny-sd")
    add_lora(model, 2)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(moved * torch.randn(p.shape, generator=noise))
    return model


def collected(model, reward=BRIGHT):
    return D.collect(model, Draw.of(["a", "b"], per_prompt=2, seed=1), reward)


def gradient(model, losses):
    found = torch.autograd.grad(losses.mean(), model.trainable_parameters(), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for g, p in zip(found, model.trainable_parameters())])


def test_a_pair_shares_its_start_and_nothing_else_and_the_brighter_one_is_preferred():
    model = policy()
    batch = collected(model)
    assert batch.steps["x"].shape == (4, batch.n_steps, 2, *model.latent_shape)
    assert batch.steps["x_next"].shape == batch.steps["x"].shape and batch.steps["t"].shape == (4, batch.n_steps)
    x = batch.steps["x"]
    assert torch.equal(x[:, 0, 0], x[:, 0, 1]) and not torch.isclose(x[:, 1, 0], x[:, 1, 1]).all()
    assert not torch.isclose(x[0, 0], x[1, 0]).all()  # samples of a prompt do not
    assert batch.n_steps == D.config.steps - 1  # the last step has no noise: it is taken here
    last, t, s = batch.steps["x_next"][:, -1], *model.schedule.grid(D.config.steps)[-2:]
    with torch.no_grad():
        ends = [DDIM().transition(model.predict(last[:, i], t, batch.condition, D.config.guidance), s).mean
                for i in (0, 1)]
        first, second = (BRIGHT(model.decode(end, clamp=True), ["a"] * 4) for end in ends)
    assert torch.equal(batch.samples["h"], torch.sign(first - second))
    assert batch.samples["h"].abs().min() == 1


def test_starts_at_log_two_and_half():
    model = policy()
    losses, metrics = D.loss(model, collected(model).all_items(), BRIGHT, {})
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)))
    assert (metrics["implicit_accuracy"] == 0.5).all() and not metrics["clipped"].any()
    assert gradient(model, losses).norm() > 0


def test_the_first_step_of_descent_favours_the_preferred_path():
    log_prob = torch.zeros(2, 2, requires_grad=True)
    d3po_loss(log_prob, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 0.1, 0.1).sum().backward()
    assert torch.allclose(log_prob.grad, torch.tensor([[-0.05, 0.05], [0.05, -0.05]]))


def test_value_of_the_rule_inside_the_band():
    log_prob = torch.tensor([[0.04, -0.02]])
    found = d3po_loss(log_prob, torch.zeros(1, 2), torch.ones(1), 5.0, 0.1)
    assert found.item() == pytest.approx(math.log1p(math.exp(-5 * 0.06)), rel=1e-5)


def test_swapping_a_pair_with_its_label_changes_nothing_and_without_it_flips_the_margin():
    model = policy(0.05)
    items = collected(model).all_items()
    kept = {"t": items["t"], "s": items["s"]}
    swapped = {name: items[name].flip(1) for name in ("x", "x_next")} | kept
    losses, metrics = D.loss(model, items, BRIGHT, {})
    both, _ = D.loss(model, replace(items, values=swapped | {"h": -items["h"]}), BRIGHT, {})
    one, flipped = D.loss(model, replace(items, values=swapped | {"h": items["h"]}), BRIGHT, {})
    assert metrics["margin"].abs().min() > 1e-4
    assert torch.allclose(flipped["margin"], -metrics["margin"], rtol=1e-2, atol=1e-5)
    assert torch.allclose(both, losses, atol=1e-6)
    assert torch.equal(flipped["implicit_accuracy"], 1 - metrics["implicit_accuracy"])
    assert torch.equal(metrics["implicit_accuracy"] == 1, losses < math.log(2))  # the right order costs less
    assert torch.equal(flipped["implicit_accuracy"] == 1, one < math.log(2))


def test_ties_give_no_gradient():
    model = policy(0.05)
    batch = collected(model, FLAT)
    assert batch.metrics["ties"] == 1 and not batch.samples["h"].any()
    losses, metrics = D.loss(model, batch.all_items(), FLAT, {})
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)))
    assert gradient(model, losses).abs().max() == 0 and (metrics["implicit_accuracy"] == 0.5).all()


def test_no_gradient_outside_the_band():
    log_prob = torch.tensor([[0.09, -0.09], [0.2, -0.2], [-0.2, 0.0]], requires_grad=True)
    d3po_loss(log_prob, torch.zeros(3, 2), torch.ones(3), 0.1, 0.1).sum().backward()
    assert (log_prob.grad != 0).tolist() == [[True, True], [False, False], [False, True]]


def test_reference_carries_no_gradient():
    log_prob, reference = torch.zeros(3, 2, requires_grad=True), torch.full((3, 2), 0.01, requires_grad=True)
    d3po_loss(log_prob, reference, torch.ones(3), 0.1, 0.1).sum().backward()
    assert reference.grad is None and log_prob.grad.abs().min() > 0


def test_the_reference_is_asked_without_gradient_and_does_not_follow_the_policy(monkeypatch):
    """The second question about a step goes to the reference: same answer before and after the policy moves."""
    asked, original = [], D3PO._log_prob

    def watched(self, model, items):
        found = original(self, model, items)
        asked.append(found)
        return found

    monkeypatch.setattr(D3PO, "_log_prob", watched)
    model = policy()
    items = collected(model).all_items()
    D.loss(model, items, BRIGHT, {})
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.05)
    D.loss(model, items, BRIGHT, {})
    assert [found.requires_grad for found in asked] == [True, False, True, False]
    assert torch.equal(asked[1], asked[3]) and not torch.allclose(asked[0], asked[2], atol=1e-4)


def test_short_run_through_align():
    training = Training(epochs=2, samples=4, samples_per_prompt=2, micro_batch=3, sample_batch=3, lora_rank=2)
    technique = make("d3po", D3POConfig(steps=3, guidance=2.0))
    first, second = align(load_model("tiny-sd"), technique, BRIGHT, ["a", "b"], training)
    assert first.metrics["loss"] == pytest.approx(math.log(2)) and first.metrics["implicit_accuracy"] == 0.5
    assert math.isfinite(second.metrics["loss"]) and second.metrics["grad_norm"] > 0
    assert second.metrics["margin"] != 0


@pytest.mark.parametrize(("settings", "message"), [
    ({"beta": 0.0}, "beta=0"), ({"beta": -1.0}, "beta=-1"), ({"eta": 0.0}, "eta=0"), ({"clip": 1.0}, "clip=1"),
    ({"steps": 0}, "steps=0"),
])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(TechniqueError, match=message):
        D3POConfig(**settings)


def test_recorded_data_are_refused():
    with pytest.raises(TechniqueError, match="learns from a reward"):
        next(align(load_model("tiny-sd"), D, object(), ["a"], Training()))


@pytest.mark.parametrize("far", [500.0, -500.0])
def test_no_gradient_and_no_overflow_far_outside_the_band(far):
    log_prob = torch.tensor([[far, 0.0], [0.0, far]], requires_grad=True)
    d3po_loss(log_prob, torch.zeros(2, 2), torch.tensor([1.0, 1.0]), 0.1, 0.1).sum().backward()
    assert log_prob.grad[0, 0] == 0 and log_prob.grad[1, 1] == 0 and log_prob.grad.isfinite().all()


@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-sd3", "tiny-flux"])
def test_short_run_on_every_class_of_pipeline(name):
    bright = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", False, False)
    training = Training(epochs=2, samples=2, lr=1e-2, lora_rank=2, micro_batch=4, sample_batch=2)
    steps = align(load_model(name), D3PO(D3POConfig(steps=3, guidance=1.0)), bright, ["a cat", "a dog"], training)
    rows = [progress.metrics for progress in steps]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3) and all(math.isfinite(row["loss"]) for row in rows)
