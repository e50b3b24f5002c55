"""Identities that every policy gradient obeys before, and after, its first update."""

import math

import pytest
import torch
from policies import FLAT, RIGHT, brightness, draw, gradient, lora_policy, official_kl, point_policy, techniques

from surveylib.alignment.engine import align
from surveylib.diffusion.dynamics import DDIM, LOG_2PI
from surveylib.diffusion.rollout import step_log_prob
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import RewardError
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.policy_gradient.ddpo import (
    DDPO,
    DDPOConfig,
    importance_sampling_loss,
    score_function_loss,
)
from surveylib.techniques.policy_gradient.dpok import DPOKConfig
from surveylib.techniques.policy_gradient.flow_grpo import FlowGRPO, FlowGRPOConfig

NAMES = list(techniques())
WITH_RATIO = [name for name in NAMES if name != "ddpo-sf"]
WITH_KL = ["dpok", "flow_grpo-sde", "flow_grpo-cps"]
PIPELINES = ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"]


@pytest.mark.parametrize("family", ["vp", "flow"])
@pytest.mark.parametrize("name", WITH_RATIO)
def test_ratio_is_one_before_the_first_update_however_the_items_are_cut(name, family):
    model, technique = point_policy(family), techniques(reduction="mean", clip=1e-4)[name]
    items = technique.collect(model, draw(), RIGHT).all_items()
    _, whole = technique.loss(model, items, RIGHT, {})
    assert not whole["clipped"].any() and whole["approx_kl"].max() < 1e-10
    for rows in torch.randperm(len(items)).split(7):
        part = type(items)(items.condition[rows], {k: v[rows] for k, v in items.values.items()}, items.keys[rows])
        _, found = technique.loss(model, part, RIGHT, {})
        assert not found["clipped"].any() and found["approx_kl"].max() < 1e-10


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", WITH_RATIO)
def test_nothing_is_clipped_in_the_first_epoch_of_any_family_of_models(name, method):
    technique = techniques(steps=3, guidance=None, reduction="mean", clip=1e-4)[method]
    training = Training(epochs=2, samples=4, samples_per_prompt=2, micro_batch=3, sample_batch=3, lora_rank=2)
    first, second = align(load_model(name), technique, brightness(), ["a", "b"], training)
    assert first.metrics["clipped"] == 0 and first.metrics["approx_kl"] < 1e-9
    assert math.isfinite(second.metrics["loss"]) and second.metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_policy_is_no_longer_at_ratio_one(name):
    technique, model = techniques()[name], point_policy()
    items = technique.collect(model, draw(), RIGHT).all_items()
    with torch.no_grad():
        model.trainable_parameters()[-1].add_(0.5)
    losses, metrics = technique.loss(model, items, RIGHT, {})
    assert losses.isfinite().all()
    if name != "ddpo-sf":
        assert metrics["clipped"].any() and metrics["approx_kl"].mean() > 1e-3


def test_gradient_at_ratio_one_is_reinforce_for_both_estimators_of_ddpo():
    model, methods = point_policy(), techniques()
    found = {}
    for name in ("ddpo-sf", "ddpo-is"):
        items = methods[name].collect(model, draw(), RIGHT).all_items()
        found[name] = gradient(model, methods[name].loss(model, items, RIGHT, {})[0])
    log_prob, _ = step_log_prob(model, items.condition, DDIM(1.0), x=items["x"], t=items["t"],
                                s=items["s"], x_next=items["x_next"], guidance=1.0, reduction="sum")
    reinforce = gradient(model, -items["advantage"] * log_prob)
    assert reinforce.norm() > 0.01
    for name in found:
        assert torch.allclose(found[name], reinforce, rtol=1e-4, atol=1e-6)


def test_log_probability_of_a_ddpo_step_is_that_of_a_gaussian():
    model, technique = point_policy(), techniques()["ddpo-is"]
    items = technique.collect(model, draw(), RIGHT).all_items()
    _, transition = step_log_prob(model, items.condition, DDIM(1.0), x=items["x"], t=items["t"], s=items["s"],
                                  x_next=items["x_next"], guidance=1.0, reduction="sum")
    z = (items["x_next"] - transition.mean) / transition.std
    assert torch.allclose(items["old"], (-0.5 * z**2 - transition.std.log() - 0.5 * LOG_2PI)[:, 0], atol=1e-4)


def test_ppo_loss_at_advantage_minus_one_and_ratio_one_is_one_and_the_clip_is_pessimistic():
    loss = lambda a, rho: importance_sampling_loss(  # noqa: E731
        torch.tensor([math.log(rho)]), torch.zeros(1), torch.tensor([a]), 0.1).item()
    assert loss(-1.0, 1.0) == 1.0 and loss(1.0, 1.0) == -1.0
    assert loss(1.0, 1.5) == pytest.approx(-1.1) and loss(1.0, 0.5) == pytest.approx(-0.5)
    assert loss(-1.0, 1.5) == pytest.approx(1.5) and loss(-1.0, 0.5) == pytest.approx(0.9)


def test_ppo_gradient_stops_only_where_the_step_has_gone_far_enough():
    log_prob = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    importance_sampling_loss(log_prob, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.1).sum().backward()
    assert (log_prob.grad != 0).tolist() == [False, True, True, False]


def test_clip_of_the_mean_and_clip_of_the_sum_choose_the_same_items():
    d = 1024
    old, change = torch.zeros(200), torch.linspace(-0.3, 0.3, 200)  # of the log-density
    advantage = torch.ones(200)
    flat = []
    for log_prob, clip in ((change, 0.1), (change / d, 0.1 / d)):
        log_prob = log_prob.double().requires_grad_()
        importance_sampling_loss(log_prob, old.double(), advantage.double(), clip).sum().backward()
        flat.append(log_prob.grad == 0)
    assert (flat[0] != flat[1]).sum() <= 2  # exp(x) against 1 + x at the band's edge
    assert 20 < flat[0].sum() < 180


def test_reduction_mean_divides_log_probability_and_kl_by_the_dimensions():
    model = lora_policy("tiny-sd")
    for p in model.trainable_parameters():
        p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    found = {}
    for reduction in ("sum", "mean"):
        technique = techniques(steps=3, guidance=1.0, reduction=reduction, clip=1e-4)["flow_grpo-sde"]
        items = technique.collect(model, Draw.of(["a"], per_prompt=2), brightness()).all_items()
        found[reduction] = items["old"], technique.loss(model, items, brightness(), {})[1]["kl"]
    size = math.prod(model.latent_shape)
    assert torch.allclose(found["sum"][0] / size, found["mean"][0], rtol=1e-4)
    assert found["mean"][1].min() > 0 and torch.allclose(found["sum"][1] / size, found["mean"][1], rtol=1e-3)


@pytest.mark.parametrize("name", [*WITH_KL, *official_kl()])
@pytest.mark.parametrize("family", ["vp", "flow"])
def test_kl_term_is_zero_at_the_reference_and_has_a_gradient_away_from_it(name, family):
    for moved in (0.0, 0.05):
        model, technique = point_policy(family, moved), (techniques() | official_kl())[name]
        items = technique.collect(model, draw(), FLAT).all_items()
        if name == "dpok":  # the KL of the steps to come is in its advantage; take the step's own alone
            items.values["advantage"] = torch.zeros(len(items))
        losses, metrics = technique.loss(model, items, FLAT, {})
        size = gradient(model, losses).norm()
        if moved:
            assert metrics["kl"].min() > 0 and size > 1e-3
        else:
            assert metrics["kl"].max() < 1e-8 and size < 1e-4


@pytest.mark.parametrize("name", WITH_KL)
def test_kl_has_the_samplers_own_std(name):
    model, technique = point_policy("flow", 0.05), techniques()[name]
    dynamics = DDIM(1.0) if name == "dpok" else technique.dynamics
    items = technique.collect(model, draw(), RIGHT).all_items()
    _, metrics = technique.loss(model, items, RIGHT, {})
    sigma, after = items["t"], items["s"]
    if name == "flow_grpo-sde":
        rest = 1 - torch.where(sigma >= 1, after, sigma)
        std = 0.7 * (sigma / rest).sqrt() * (sigma - after).sqrt()
    elif name == "flow_grpo-cps":
        std = after * math.sin(0.7 * math.pi / 2)
    else:
        std = dynamics.transition(model.predict(items["x"], sigma, items.condition), after).std[:, 0]
    with torch.no_grad():
        ours = dynamics.transition(model.predict(items["x"], sigma, items.condition, 1.0), after).mean
        with model.reference():
            theirs = dynamics.transition(model.predict(items["x"], sigma, items.condition, 1.0), after).mean
    expected = ((ours - theirs) ** 2)[:, 0] / (2 * std.float() ** 2)
    assert torch.allclose(metrics["kl"], expected, rtol=1e-3, atol=1e-6) and expected.max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_give_exactly_no_gradient(name):
    model = point_policy()
    technique = techniques()[name]
    items = technique.collect(model, draw(), FLAT).all_items()
    found = gradient(model, technique.loss(model, items, FLAT, {})[0]).abs().max()
    assert found == 0 if "ddpo" in name else found < 1e-4  # what is left is the KL term, zero up to rounding


def test_a_group_of_equal_rewards_beside_another_gives_exactly_no_gradient():
    """Prompt "left" is always worth 0.3, prompt "right" what its points say; no KL term."""
    model = point_policy()
    technique = FlowGRPO(FlowGRPOConfig(steps=6, guidance=1.0, beta=0.0, scale="group"))

    class Mixed(PointReward):
        def score(self, images, prompts):
            left = torch.tensor([p == "left" for p in prompts])
            return torch.where(left, torch.full_like(images[:, 0], 0.3), images[:, 0])

    batch = technique.collect(model, draw(), Mixed(lambda x: x))
    steps = torch.arange(batch.n_steps)
    for first, zero in ((0, True), (6, False)):
        rows = torch.arange(first, first + 6).repeat_interleave(len(steps))
        losses, _ = technique.loss(model, batch.items(rows, steps.repeat(6)), RIGHT, {})
        assert (gradient(model, losses).abs().max() == 0) == zero


@pytest.mark.parametrize("name", NAMES)
def test_bad_rewards_and_settings_are_refused(name):
    technique, model = techniques()[name], point_policy()
    nothing = PointReward(lambda x: x[:, 0] * float("nan"), "broken")
    with pytest.raises(RewardError, match="broken"):
        technique.collect(model, draw(), nothing)
    with pytest.raises(TechniqueError, match="learns from a reward"):
        technique.check(model, object(), Training(samples_per_prompt=2))


def test_settings_that_no_method_can_work_with():
    with pytest.raises(TechniqueError, match="eta=0"):
        DDPOConfig(eta=0.0)
    with pytest.raises(TechniqueError, match="eta=0"):
        DPOKConfig(eta=0.0)
    with pytest.raises(TechniqueError, match="kl_weight=0"):
        DPOKConfig(kl_weight=0.0)
    with pytest.raises(TechniqueError, match="convention of CPS"):
        FlowGRPOConfig(log_prob="official")
    with pytest.raises(TechniqueError, match="noise=0"):
        FlowGRPOConfig(noise=0.0)
    with pytest.raises(TechniqueError, match="window=10"):
        FlowGRPOConfig(window=10)
    with pytest.raises(TechniqueError, match="samples_per_prompt"):
        FlowGRPO().check(point_policy(), RIGHT, Training(samples=4, samples_per_prompt=1))
    with pytest.raises(TechniqueError, match="one update"):
        DDPO(DDPOConfig(estimator="sf")).check(point_policy(), RIGHT, Training(updates=2))
    with pytest.raises(TechniqueError, match="do not divide"):
        Training(samples=10, samples_per_prompt=4)


@pytest.mark.parametrize("Method, Config, family", [(DDPO, DDPOConfig, "vp"), (FlowGRPO, FlowGRPOConfig, "flow")])
def test_a_fraction_of_the_timesteps_is_the_noisiest_ones_of_the_same_paths(Method, Config, family):
    model, base = point_policy(family), {"steps": 8, "guidance": 1.0}
    whole = Method(Config(**base)).collect(model, draw(), RIGHT)
    for fraction, kept in ((0.5, -(-whole.n_steps // 2)), (0.01, 1), (1.0, whole.n_steps)):
        part = Method(Config(timestep_fraction=fraction, **base)).collect(model, draw(), RIGHT)
        assert part.n_steps == kept
        for name in ("x", "x_next", "t", "s", "old"):
            assert torch.equal(part.steps[name], whole.steps[name][:, :kept])
    assert (whole.steps["t"][0].diff() < 0).all()  # from noise to data


def test_a_fraction_of_the_timesteps_is_checked():
    for Config in (DDPOConfig, FlowGRPOConfig):
        for bad in (0.0, -0.5, 1.5):
            with pytest.raises(TechniqueError, match=f"timestep_fraction={bad}"):
                Config(timestep_fraction=bad)
    with pytest.raises(TechniqueError, match="window chooses"):
        FlowGRPOConfig(timestep_fraction=0.5, window=2)
    with pytest.raises(TechniqueError, match="needs every step"):
        FlowGRPOConfig(timestep_fraction=0.5, kl_gradient="path")


def test_score_function_loss_has_the_sign_of_ascent():
    log_prob = torch.zeros(2, requires_grad=True)
    score_function_loss(log_prob, torch.tensor([2.0, -3.0])).sum().backward()
    assert log_prob.grad.tolist() == [-2.0, 3.0]
