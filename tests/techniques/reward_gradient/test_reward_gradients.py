"""ReFL, DRaFT, Adjoint Matching: identities of the rules, runs on all classes of pipelines, bad input."""

from dataclasses import replace

import pytest
import torch

from surveylib.alignment.engine import align, prepare_weights
from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.points import PointReward
from surveylib.runs.randomness import generators, normal
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.paths import sample_paths
from surveylib.techniques.reward_gradient.adjoint_matching import (
    AdjointMatching,
    AdjointMatchingConfig,
    adjoint_matching_loss,
    lean_adjoint,
    scaled_vjp,
)
from surveylib.techniques.reward_gradient.draft import DRaFT, DRaFTConfig, differentiable_sample, low_variance_samples
from surveylib.techniques.reward_gradient.pictures import straight_through_clamp
from surveylib.techniques.reward_gradient.refl import ReFL, ReFLConfig, phi
from surveylib.worlds.gaussian.mixture import ANY, GaussianMixture
from surveylib.worlds.gaussian.models import ExactModel, GaussianModel, GaussianNet
from surveylib.worlds.gaussian.tilt import LinearReward, QuadraticReward

TRAINING = Training(epochs=2, samples=4, lr=1e-3, lora_rank=2, micro_batch=4, sample_batch=4)
BRIGHT = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", True, False)
SMALL = {
    "draft": DRaFT(DRaFTConfig(variant="k", last=1, steps=3, guidance=1.0)),
    "draft-lv": DRaFT(DRaFTConfig(variant="lv", steps=3, guidance=1.0)),
    "draft-full": DRaFT(DRaFTConfig(variant="full", steps=2, guidance=1.0, checkpoint=True)),
    "refl": ReFL(ReFLConfig(steps=3, first=1, last=2, ceiling=None, scale=1.0)),
    "adjoint_matching": AdjointMatching(AdjointMatchingConfig(steps=3, guidance=1.0, trained=2)),
}


def policy(seed: int = 0) -> GaussianModel:
    """A small random network over points in two dimensions."""
    torch.manual_seed(seed)
    schedule = VPSchedule.cosine()
    network = GaussianNet(2, 1, schedule, "epsilon", width=16, depth=1)
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return GaussianModel(network, ["a"], 2, schedule)


def gradient(config: DRaFTConfig, model=None, seed: int = 0) -> torch.Tensor:
    model = model or policy()
    technique = DRaFT(config)
    reward = PointReward(QuadraticReward((1.0, -1.0)))
    items = technique.collect(model, Draw.of([ANY] * 16, seed=seed), reward).all_items(seed)
    model.network.zero_grad()
    technique.loss(model, items, reward, {})[0].mean().backward()
    return torch.cat([p.grad.flatten() for p in model.network.parameters()])


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"])
@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_few_steps_on_every_class_of_pipeline(method, name):
    model = load_model(name)
    rows = [progress.metrics for progress in align(model, SMALL[method], BRIGHT, ["a cat", "a dog"], TRAINING)]
    assert len(rows) == 2 and rows[-1]["grad_norm"] > 0


@pytest.mark.truth
def test_draft_k_of_all_steps_is_draft():
    full = gradient(DRaFTConfig(variant="full", steps=5, guidance=1.0))
    assert torch.equal(full, gradient(DRaFTConfig(variant="k", last=5, steps=5, guidance=1.0)))
    fewer = gradient(DRaFTConfig(variant="k", last=2, steps=5, guidance=1.0))
    assert not torch.allclose(full, fewer, rtol=0.05)


def test_checkpointing_leaves_the_gradient():
    plain = gradient(DRaFTConfig(variant="full", steps=4, guidance=1.0))
    again = gradient(DRaFTConfig(variant="full", steps=4, guidance=1.0, checkpoint=True))
    assert torch.allclose(plain, again, atol=1e-7)


@pytest.mark.truth
def test_the_gradient_of_draft_is_that_of_finite_differences():
    model, config = policy(), DRaFTConfig(variant="full", steps=4, guidance=1.0)
    technique, reward = DRaFT(config), PointReward(QuadraticReward((1.0, -1.0)))
    items = technique.collect(model, Draw.of([ANY] * 16), reward).all_items()
    weight = model.network.out.bias

    def loss() -> torch.Tensor:
        return technique.loss(model, items, reward, {})[0].mean()

    loss().backward()
    step = 1e-2
    with torch.no_grad():
        weight[0] += step
        above = loss()
        weight[0] -= 2 * step
        below = loss()
    assert weight.grad[0].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=2e-2)


@pytest.mark.truth
def test_low_variance_draft_has_the_same_mean_for_any_number_of_renoisings():
    model = policy()
    means = {}
    for n in (1, 4):
        config = DRaFTConfig(variant="lv", renoisings=n, steps=5, guidance=1.0)
        grads = torch.stack([gradient(config, model, seed) for seed in range(40)])
        means[n] = (grads.mean(0), grads.std(0) / 40**0.5)
    difference = means[1][0] - means[4][0]
    error = (means[1][1] ** 2 + means[4][1] ** 2).sqrt().clamp(min=1e-9)
    assert (difference / error).square().mean() < 2.0  # 1 if only chance separates them
    assert means[4][1].norm() <= means[1][1].norm() * 1.02


@pytest.mark.truth
@pytest.mark.parametrize("variant", ["full", "k"])
def test_what_is_differentiated_is_what_the_sampler_draws_with_guidance(variant):
    model, config = load_model("tiny-sd"), DRaFTConfig(variant, last=2, steps=3, guidance=4.0)
    condition, noise = model.encode(["a cat", "a dog"]), model.initial_noise(2, torch.Generator().manual_seed(0))
    found = differentiable_sample(model, condition, noise, config)
    drawn = sample(model, condition, dynamics=DDIM(0.0), steps=3, guidance=4.0, x=noise)
    assert found.requires_grad and torch.allclose(found, drawn, atol=1e-5)
    plain = sample(model, condition, dynamics=DDIM(0.0), steps=3, guidance=1.0, x=noise)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_every_renoising_of_low_variance_draft_has_its_own_noise_and_its_sample_s_prompt():
    seen = []
    reward = FunctionReward(lambda pictures, prompts: seen.append((pictures, prompts)) or pictures.mean((1, 2, 3)),
                            "watching", True, False)
    model, prompts = load_model("tiny-sd"), ["a cat", "a dog"]
    technique = DRaFT(DRaFTConfig("lv", renoisings=3, steps=3, guidance=4.0))
    losses, _ = technique.loss(model, technique.collect(model, Draw.of(prompts), reward).all_items(), reward, {})
    [(pictures, texts)] = seen
    assert texts == prompts * 3
    assert torch.allclose(-losses, pictures.unflatten(0, (3, 2)).mean((0, 2, 3, 4)))
    assert len({tuple(picture.flatten()[:8].tolist()) for picture in pictures[::2]}) == 3
    condition, x0 = model.encode(prompts), model.initial_noise(2, torch.Generator().manual_seed(0))
    noises = torch.randn(3, *x0.shape, generator=torch.Generator().manual_seed(1))
    together = low_variance_samples(model, condition, x0, noises, technique.config)
    for k in range(2):
        alone = low_variance_samples(model, condition[k], x0[k : k + 1], noises[:, k : k + 1], technique.config)
        assert torch.allclose(together[k::2], alone, atol=1e-5)


def test_straight_through_clamp():
    x = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    y = straight_through_clamp(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.5, 1.0] and x.grad.tolist() == [1.0, 1.0, 1.0]


def test_phi_stops_at_the_ceiling():
    assert phi(torch.tensor([1.0, 2.0, 3.0]), 2.0).tolist() == [1.0, 0.0, 0.0]
    assert phi(torch.tensor([3.0]), None).tolist() == [-3.0]


def test_refl_looks_at_every_step_of_its_window_and_no_other():
    technique = ReFL(ReFLConfig(steps=6, first=2, last=4))
    model = load_model("tiny-sd")
    draws = [replace(Draw.of(["a"]), epoch=epoch) for epoch in range(40)]
    assert {int(technique.collect(model, d, BRIGHT).samples["step"][0]) for d in draws} == {2, 3, 4}


@pytest.mark.truth
def test_refl_pays_the_prediction_on_the_guided_path():
    model, config = load_model("tiny-sd"), ReFLConfig(steps=4, first=2, last=2, scale=0.5, ceiling=None, guidance=4.0)
    technique, prompts = ReFL(config), ["a cat", "a dog"]
    items = technique.collect(model, Draw.of(prompts), BRIGHT).all_items()
    losses, _ = technique.loss(model, items, BRIGHT, {})
    noise, times = normal(items.keys, model.latent_shape, "start"), model.schedule.grid(4)
    with torch.no_grad():
        x = sample(model, items.condition, dynamics=DDIM(0.0), steps=times[:3], guidance=4.0, x=noise)
        x0 = model.predict(x, times[2], items.condition, 4.0).x0
        assert torch.allclose(losses, -0.5 * BRIGHT(model.decode(x0).clamp(0, 1), prompts), atol=1e-5)


def test_refl_puts_one_network_call_in_the_graph():
    model = load_model("tiny-sd")
    progress = list(align(model, SMALL["refl"], BRIGHT, ["a cat"], replace(TRAINING, epochs=1)))[-1]
    assert progress.ledger.backward_passes == 4


# -- adjoint matching
@pytest.mark.truth
@pytest.mark.parametrize("schedule", [VPSchedule.cosine(), FlowSchedule(spacing="uniform")], ids=["vp", "flow"])
def test_the_lean_adjoint_is_the_gradient_of_the_base_chain(schedule):
    """a_t must be the gradient of a_0 . x_0 with the noise held fixed, through the base chain."""
    model = ExactModel(GaussianMixture([[0.5], [-1.0]], [[[0.3]], [[0.2]]], [0.5, 0.5]), schedule)
    condition = model.encode([ANY] * 5)
    noise = [torch.Generator().manual_seed(i) for i in range(5)]
    paths = sample_paths(model, condition, dynamics=DDIM(1.0), steps=6, generators=noise, guidance=1.0)
    model.reference = lambda: torch.enable_grad()
    a0 = torch.randn(5, 1)
    adjoint, base = lean_adjoint(model, condition, paths, a0, DDIM(1.0), 1.0)
    x = paths.x[:, 2].clone().requires_grad_()
    y = x
    for k in range(2, 6):
        mean = DDIM(1.0).transition(model.predict(y, paths.t[k], condition, 1.0), paths.t[k + 1]).mean
        y = mean + (paths.x[:, k + 1] - base[:, k])
    (expected,) = torch.autograd.grad((a0 * y).sum(), x)
    assert torch.allclose(adjoint[:, 1], expected, atol=1e-5)  # a at the cleaner end of step 1 is a at x_2
    assert torch.equal(adjoint[:, -1], a0)


@pytest.mark.truth
@pytest.mark.parametrize("schedule", [VPSchedule.cosine(), FlowSchedule(spacing="uniform")], ids=["vp", "flow"])
def test_the_loss_vanishes_at_the_optimum_of_a_linear_reward(schedule):
    """For a Gaussian and a linear reward the optimal chain is the base's with means shifted by -std^2 a."""
    model = ExactModel(GaussianMixture([[0.3]], [[[0.8]]], [1.0]), schedule)
    condition = model.encode([ANY] * 4)
    paths = sample_paths(model, condition, dynamics=DDIM(1.0), steps=400, generators=[torch.Generator()] * 4,
                         guidance=1.0)
    model.reference = lambda: torch.enable_grad()
    scale = 0.7
    a0 = torch.full((4, 1), -scale)
    adjoint, base = lean_adjoint(model, condition, paths, a0, DDIM(1.0), 1.0)
    tilted = ExactModel(GaussianMixture([[0.3 + 0.8 * scale]], [[[0.8]]], [1.0]), schedule)
    k = 200
    step = DDIM(1.0).transition(tilted.predict(paths.x[:, k], paths.t[k], condition, 1.0), paths.t[k + 1])
    at_optimum = adjoint_matching_loss(step.mean, base[:, k], step.std, adjoint[:, k])
    at_base = adjoint_matching_loss(base[:, k], base[:, k], step.std, adjoint[:, k])
    assert at_optimum.max() < 2e-2 * at_base.min()


def adjoints_of(dtype: torch.dtype, size: float) -> torch.Tensor:
    """Lean adjoints on the paths of a model in float32, through a network in `dtype`, from a gradient of `size`."""
    full, model = load_model("tiny-sd"), load_model("tiny-sd", dtype=dtype)
    chain = {"dynamics": DDIM(1.0), "guidance": 1.0}
    paths = sample_paths(full, full.encode(["a cat"] * 2), steps=4, generators=generators([0, 1], 0, "x"), **chain)
    terminal = size * torch.randn(paths.x[:, -1].shape, generator=torch.Generator().manual_seed(0))
    prepare_weights(model, TRAINING, 0)
    return lean_adjoint(model, model.encode(["a cat"] * 2), paths, terminal, **chain)[0]


def test_a_small_adjoint_survives_float16():
    full, half = (adjoints_of(dtype, 1e-9)[:, 0].double() for dtype in (torch.float32, torch.float16))
    assert (half - full).norm() < 1e-3 * full.norm()  # 0.15 of it without a scale


def test_the_scale_of_the_adjoint_changes_no_digit():
    a = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-9, 1.0, 0.0])[:, None, None]
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (plain,) = torch.autograd.grad(x.sin().cumsum(-1), x, grad_outputs=a)
    assert torch.equal(scaled_vjp(x.sin().cumsum(-1), x, a), plain)


def test_the_control_of_the_base_is_the_adjoint_alone():
    mean, adjoint = torch.randn(3, 2), torch.randn(3, 2)
    loss = adjoint_matching_loss(mean, mean, torch.tensor(0.5), adjoint)
    assert torch.allclose(loss, 0.25 * adjoint.square().sum(1))


def test_trained_steps_come_from_both_parts_and_change():
    technique = AdjointMatching(AdjointMatchingConfig(steps=20, trained=4))
    noisy = torch.ones(20, dtype=torch.bool)
    found = [technique.trained_steps(noisy, replace(Draw.of(["a"]), epoch=e)).tolist() for e in range(60)]
    assert all(sum(k < 12 for k in steps) == 2 and len(set(steps)) == 4 for steps in found)
    assert {k for steps in found for k in steps} == set(range(20))


# -- bad input
def collected(trained: int | None, control: float, sampled: float = 1.0):
    """A pipeline with guidance, what Adjoint Matching collects on it, and the technique."""
    model = load_model("tiny-sd")
    model.default_guidance = 5.0
    prepare_weights(model, TRAINING, 0)
    technique = AdjointMatching(AdjointMatchingConfig(steps=5, guidance=sampled, control_guidance=control,
                                                      trained=trained))
    return model, technique, technique.collect(model, Draw.of(["a cat", "a dog"]), BRIGHT)


def test_what_is_collected_belongs_to_the_steps_that_are_trained():
    _, technique, some = collected(2, 1.0)
    every = collected(None, 1.0)[2]
    rows = technique.trained_steps(torch.ones(every.n_steps, dtype=torch.bool), Draw.of(["a cat", "a dog"]))
    assert rows.tolist() != [0, 1]
    for name, value in some.steps.items():
        assert torch.equal(value, every.steps[name][:, rows]), name


@pytest.mark.truth
@pytest.mark.parametrize("control", [1.0, 2.0])
def test_before_any_update_the_policy_is_the_base_at_the_guidance_of_the_control(control):
    model, technique, batch = collected(None, control, sampled=4.0)
    _, metrics = technique.loss(model, batch.all_items(), BRIGHT, {})
    assert metrics["step_kl"].max() < 1e-6


@pytest.mark.truth
def test_the_reported_kl_is_that_of_the_two_gaussians():
    model, technique, batch = collected(None, 1.0)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.3)
    items = batch.all_items()
    found = technique.loss(model, items, BRIGHT, {})[1]["step_kl"]
    step = DDIM(1.0).transition(model.predict(items["x"], items["t"], items.condition, 1.0), items["s"])
    policy_step, base_step = (torch.distributions.Normal(mean, step.std) for mean in (step.mean, items["base"]))
    expected = torch.distributions.kl_divergence(policy_step, base_step).flatten(1).sum(1)
    assert expected.max() > 1e-3 and torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_reward_without_gradient(method):
    blind = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "blind", False, False)
    with pytest.raises(TechniqueError, match="'blind' has none; choose a differentiable reward"):
        next(align(load_model("tiny-sd"), SMALL[method], blind, ["a"], TRAINING))


@pytest.mark.parametrize("make, words", [
    (lambda: DRaFTConfig(variant="half"), "choose 'full', 'k' or 'lv'"),
    (lambda: DRaFTConfig(last=9, steps=5), "between 1 and steps=5"),
    (lambda: ReFLConfig(steps=10), "must lie in steps 0 to 9"),
    (lambda: AdjointMatchingConfig(reward_scale=0), "must be positive"),
    (lambda: AdjointMatchingConfig(trained=99), "between 1 and steps"),
])
def test_settings_that_do_not_fit(make, words):
    with pytest.raises(TechniqueError, match=words):
        make()


def test_a_reward_gradient_that_is_not_finite():
    root = PointReward(lambda x: (x[:, 0] * 0).sqrt() + x[:, 0])  # the slope of the root at 0 is infinite, times 0
    model = policy()
    prepare_weights(model, replace(TRAINING, lora_rank=None), 0)
    with pytest.raises(TechniqueError, match="gradient of the reward 'reward' is not finite"):
        SMALL["adjoint_matching"].collect(model, Draw.of([ANY] * 2), root)


def test_linear_rewards_have_a_gradient_everywhere():
    assert PointReward(LinearReward((1.0, 0.0)))(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
