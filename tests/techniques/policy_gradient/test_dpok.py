"""What only DPOK has: the clamp, the value network, the whole gradient of the path's KL."""

import math
from dataclasses import replace

import pytest
import torch
from policies import FLAT, RIGHT, brightness, draw, gradient, lora_policy, point_policy

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.policy_gradient.dpok import DPOK, DPOKConfig, dpok_loss, output_weight
from surveylib.techniques.policy_gradient.replay import kl_ahead
from surveylib.techniques.policy_gradient.value import ValueNetwork

CONFIG = DPOKConfig(steps=5, guidance=1.0, reward_weight=1.0, kl_weight=0.5, reduction="sum", clip=0.2, value_lr=1e-2)


def test_ratio_is_only_clamped_so_outside_the_band_the_reward_has_no_gradient():
    log_prob = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.05]).log().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    losses = dpok_loss(log_prob, torch.zeros(5), advantage, torch.zeros(5), 0.1, (2.0, 1.0))
    assert torch.allclose(losses, torch.tensor([-2.2, -1.8, 2.2, 1.8, -2.1]))
    losses.sum().backward()
    assert (log_prob.grad != 0).tolist() == [False, False, False, False, True]


def test_kl_is_weighed_beside_the_reward():
    kl = torch.tensor([0.4])
    assert dpok_loss(torch.zeros(1), torch.zeros(1), torch.ones(1), kl, 0.1, (2.0, 5.0)).item() == pytest.approx(0.0)


def test_kl_ahead_leaves_out_the_step_itself():
    assert torch.equal(kl_ahead(torch.tensor([[1.0, 2.0, 4.0]])), torch.tensor([[6.0, 4.0, 0.0]]))


def test_whole_gradient_is_that_of_the_objective_and_the_local_one_is_not():
    """E[r - beta sum KL] on common random numbers: its slope along one weight against both estimates of it."""
    model, n = point_policy(moved=0.02), 20_000
    many = Draw.of(["any"], per_prompt=n, seed=3, batch=n)
    bias = model.trainable_parameters()[-1]  # of the last layer: moves every prediction

    def slope(kl_gradient: str) -> float:
        technique = DPOK(replace(CONFIG, kl_gradient=kl_gradient, value_steps=40, value_batch=1000))
        batch = technique.collect(model, many, RIGHT)
        found = gradient(model, technique.loss(model, batch.all_items(), RIGHT, {})[0])
        return -found[-1].item() * batch.n_steps

    def objective(shift: float) -> float:
        with torch.no_grad():
            bias.add_(shift)
            metrics = DPOK(CONFIG).collect(model, many, RIGHT).metrics
            bias.sub_(shift)
        return metrics["reward"] - CONFIG.kl_weight * metrics["path_kl"]

    true = (objective(0.02) - objective(-0.02)) / 0.04
    assert slope("path") == pytest.approx(true, rel=0.1)
    assert abs(slope("local") - true) > 0.5 * abs(true)


def test_value_network_learns_what_follows_and_resumes_where_it_stood():
    features = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = 20 + 3 * features[..., 0]
    value = ValueNetwork(lr=1e-2, steps=300, batch=60)
    assert value.state_dict() == {} and value.fit(features, targets, 0) < 0.1
    assert (value.predict(features) - targets).abs().mean() < 0.5
    again = ValueNetwork(lr=1e-2, steps=300, batch=60)
    again.load_state_dict(value.state_dict())
    assert torch.equal(again.predict(features), value.predict(features))
    assert value.fit(features, targets + 1, 0) == again.fit(features, targets + 1, 0)


@pytest.mark.parametrize("flat", [
    torch.zeros(40, 3), torch.full((40, 3), 0.3),
    21 + 2e-6 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1)),  # equal up to float32
    torch.tensor([0.02, 0.01, 0.0]) * torch.rand(40, 1, generator=torch.Generator().manual_seed(2)),  # KL still to come
], ids=["zero", "constant", "rounded", "kl-ahead"])
def test_the_units_of_the_value_network_wait_for_rewards_that_differ(flat):
    features = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = 20 + 3 * features[..., 0]
    value, again, fresh = (ValueNetwork(lr=1e-2, steps=60, batch=60) for _ in range(3))
    for _ in range(2):
        assert value.fit(features, flat, 0) == pytest.approx(flat.var(correction=0).item())
        assert torch.allclose(value.predict(features), flat.mean().expand(40, 3)) and value.scale == 1
    again.load_state_dict(value.state_dict())
    errors = [network.fit(features, targets, 0) for network in (value, again, fresh)]
    assert errors[0] < 0.5 and errors == errors[:1] * 3 and value.scale == pytest.approx(targets.std().item(), rel=0.01)
    assert torch.equal(value.predict(features), fresh.predict(features))


@pytest.mark.parametrize("moved", [0.0, 0.05])
def test_equal_rewards_leave_nothing_but_the_kl(moved):
    model, found = point_policy(moved=moved), {}
    for kl_gradient in ("local", "path"):
        technique = DPOK(replace(CONFIG, kl_gradient=kl_gradient))
        batch = technique.collect(model, draw(), FLAT)
        losses, metrics = technique.loss(model, batch.all_items(), FLAT, {})
        found[kl_gradient] = batch.steps["advantage"], metrics["kl"].unflatten(0, (12, -1))
        if kl_gradient == "local":
            assert (found["local"][0] == 0).all() and torch.equal(losses.detach(), 0.5 * metrics["kl"])
    ahead = kl_ahead(found["path"][1])
    assert torch.allclose(found["path"][0], -0.5 * (ahead - ahead.mean()), atol=1e-6)


def test_a_run_that_begins_with_equal_rewards_learns_when_they_differ():
    model, technique, late = point_policy(), DPOK(CONFIG), []
    reward = PointReward(lambda x: x[:, 0] if late else 0 * x[:, 0], "late")
    training = Training(epochs=4, samples=40, samples_per_prompt=20, lora_rank=None, lr=1e-4)
    run = align(model, technique, reward, ["left", "any"], training)
    for fits in (0, 0, 1, 2):
        late += [True] * fits
        assert math.isfinite(next(run).metrics["loss"]) and technique.value.fits == fits
    assert technique.value.scale > 0.1  # of the order of the rewards
    batch = technique.collect(model, draw(60, 60), reward)
    advantage, rewards = batch.steps["advantage"], batch.pictures[:, :1]
    assert advantage.var() < 0.95 * rewards.expand_as(advantage).var()


def test_exact_kl_is_that_of_the_means_and_the_stds():
    """The means by hand: a' x0hat + sqrt(s'^2 - std^2) epshat, std^2 = (s'/s)^2 (1 - (a/a')^2) for eta = 1."""
    model, exact = point_policy(moved=0.05), DPOK(replace(CONFIG, kl_gradient="local"))
    items = exact.collect(model, draw(), RIGHT).all_items()
    items.values["advantage"] = torch.zeros(len(items))
    (a, s), (a1, s1) = (model.schedule.coefficients(items[name]) for name in ("t", "s"))
    variance = (s1 / s) ** 2 * (1 - (a / a1) ** 2)

    def mean() -> torch.Tensor:
        found = model.predict(items["x"], items["t"], items.condition, 1.0)
        return a1.float() * found.x0[:, 0] + (s1**2 - variance).sqrt().float() * found.epsilon[:, 0]

    with torch.no_grad(), model.reference():
        reference = mean()
    wanted = (mean() - reference).square() / (2 * variance).float()
    losses, metrics = exact.loss(model, items, RIGHT, {})
    assert wanted.max() > 1e-3 and torch.allclose(metrics["kl"], wanted.detach(), rtol=1e-3, atol=1e-7)
    by_hand = gradient(model, CONFIG.kl_weight * wanted)
    assert by_hand.norm() > 1e-3 and torch.allclose(gradient(model, losses), by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("family", "eta"), [("vp", 1.0), ("vp", 0.3), ("flow", 1.0)])
def test_official_kl_is_the_squared_difference_of_what_the_networks_put_out(family, eta):
    """(noise_pred - old_noise_pred) ** 2 after guidance, as in forward_calculate_logprob of google-research/dpok."""
    model = point_policy(family, moved=0.05)
    official = DPOK(replace(CONFIG, kl="official", kl_gradient="local", guidance=3.0, eta=eta))
    batch = official.collect(model, draw(), RIGHT)
    items = batch.all_items()
    items.values["advantage"] = torch.zeros(len(items))

    def output() -> torch.Tensor:
        found = model.predict(items["x"], items["t"], items.condition, 3.0)
        return (found.epsilon if family == "vp" else found.velocity)[:, 0]

    with torch.no_grad(), model.reference():
        reference = output()
    wanted = (output() - reference).square()
    losses, metrics = official.loss(model, items, RIGHT, {})
    assert wanted.max() > 1e-2 and torch.allclose(metrics["kl"], wanted.detach(), rtol=1e-3, atol=1e-7)
    assert batch.metrics["path_kl"] == pytest.approx(batch.n_steps * wanted.mean().item(), rel=1e-3)
    by_hand = gradient(model, CONFIG.kl_weight * wanted)
    assert by_hand.norm() > 1e-3 and torch.allclose(gradient(model, losses), by_hand, rtol=1e-3, atol=1e-6)


def test_on_stable_diffusions_schedule_the_means_differ_much_less_than_the_predicted_noises():
    model = load_model("tiny-sd")
    times = model.schedule.grid(50)[:-1]  # the last step has no noise
    (a, s), (a1, s1) = (model.schedule.coefficients(t) for t in (times[:-1], times[1:]))
    k = (s1**2 - (s1 / s) ** 2 * (1 - (a / a1) ** 2)).sqrt() - a1 * s / a
    found = output_weight(model, DDIM(1.0), times[:-1], times[1:])
    assert found.shape == (49, 1, 1, 1) and torch.allclose(found.flatten(), k, rtol=1e-9)
    assert k.max() < 0 and k.square().min().item() == pytest.approx(0.0062, rel=0.02)
    assert k.square().max().item() == pytest.approx(0.0543, rel=0.02)


def test_a_run_that_was_stopped_goes_on_with_the_same_value_network(tmp_path):
    training = Training(epochs=3, samples=8, samples_per_prompt=4, lora_rank=None, lr=1e-3)
    whole, model = DPOK(CONFIG), point_policy()
    straight = [p.metrics for p in align(model, whole, RIGHT, ["left", "any"], training)]
    weights = [p.detach().clone() for p in model.trainable_parameters()]
    first = align(point_policy(), DPOK(CONFIG), RIGHT, ["left", "any"], training, out=tmp_path)
    next(first)
    first.close()
    model, resumed = point_policy(), DPOK(CONFIG)
    rest = [p.metrics for p in align(model, resumed, RIGHT, ["left", "any"], training, out=tmp_path)]
    assert rest == straight[1:]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.trainable_parameters()))
    states = whole.value.state_dict()["network"], resumed.value.state_dict()["network"]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_advantage_is_what_followed_less_the_value():
    model, technique = point_policy(), DPOK(CONFIG)
    batch = technique.collect(model, draw(60, 60), RIGHT)
    rewards = batch.pictures[:, :1]  # at the reference: no KL ahead
    values = rewards - batch.steps["advantage"]
    assert values.std() > 1e-4 and batch.steps["advantage"].var() < rewards.expand_as(values).var()
    late = batch.steps["x_next"][:, -1, 0]
    assert torch.corrcoef(torch.stack([late, values[:, -1]]))[0, 1] > 0.5


def test_choices_are_checked():
    with pytest.raises(TechniqueError, match="kl='exakt'"):
        DPOKConfig(kl="exakt")
    with pytest.raises(TechniqueError, match="steps=1"):
        DPOKConfig(steps=1)


@pytest.mark.parametrize(("kl", "least"), [("exact", 0.01), ("official", 1e-3)])
def test_the_kl_that_is_weighed_against_the_reward_is_a_sum_over_dimensions_also_with_means(kl, least):
    model = lora_policy("tiny-sd")
    for p in model.trainable_parameters():
        p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    found = []
    for reduction in ("sum", "mean"):
        technique = DPOK(replace(CONFIG, reduction=reduction, kl=kl))
        batch = technique.collect(model, Draw.of(["a"], per_prompt=3), brightness())
        found.append((batch.metrics["path_kl"], batch.steps["advantage"]))
    assert found[0][0] > least and found[1][0] == pytest.approx(found[0][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
