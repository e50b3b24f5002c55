"""Rewards of noisy latents: training, the three kinds of features, the contract of `score_latents`."""

import pytest
import torch
from clip_for_tests import examples, make_trunk, planted_pairs

from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import RewardError
from surveylib.rewards.learned import load_learned
from surveylib.rewards.learned.step_aware import StepAwareModel, StepAwareReward
from surveylib.rewards.learned.train import RewardConfig, train_reward

CONFIG = RewardConfig(steps=3, batch=8, micro=8, lr=1e-3, head_lr=1e-3, warmup=0, every=3)


@pytest.fixture(scope="module")
def diffusion():
    return load_model("shapes-sd")


def make(diffusion, features="latent", **options):
    torch.manual_seed(0)
    trunk = {"trunk": make_trunk((1, 0))} if features == "x0" else {}
    return StepAwareModel(diffusion, features, **trunk, **options)


@pytest.mark.parametrize("features, options", [("latent", {}), ("unet", {}), ("unet", {"tune": True}), ("x0", {})])
def test_each_kind_of_features_trains_and_leaves_the_diffusion_model_alone(diffusion, features, options, tmp_path):
    before = [p.clone() for p in diffusion.network.parameters()]
    pairs, _ = planted_pairs(24, among=12)
    model = make(diffusion, features, **options)
    start = {name: value.clone() for name, value in model.trained().items()}
    rows = list(train_reward(model, pairs, CONFIG, tmp_path))
    assert len(rows) == 3 and all(0 < row["loss"] < 20 for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(before, diffusion.network.parameters()))
    assert any(not torch.equal(start[name], value) for name, value in model.trained().items())
    x_t = torch.randn(2, *diffusion.latent_shape, requires_grad=True)
    StepAwareReward(model).score_latents(x_t, 500, examples()[1][:2]).sum().backward()
    assert x_t.grad.abs().max() > 0
    network = diffusion.network
    assert all(p.grad is None and p.requires_grad for p in network.parameters())  # a policy's gradients stay its own


@pytest.mark.truth
def test_unet_features_are_what_the_whole_unet_computes(diffusion):
    model, seen = make(diffusion, "unet"), []
    hooks = [diffusion.network.mid_block.register_forward_hook(lambda m, i, out: seen.append(out.mean((2, 3))))]
    prompts, x, t = examples()[1][:2], torch.randn(2, *diffusion.latent_shape), torch.tensor([10.0, 700.0])
    condition = diffusion.encode(prompts, negative=None)
    with torch.no_grad():
        diffusion.predict(x, t, condition, guidance=1.0)
        texts = model.prepare_texts(prompts)
        features = model.features(x, t, dict(zip(model.names, texts)), texts[-1])
    for hook in hooks:
        hook.remove()
    width = diffusion.network.config.block_out_channels
    assert features.shape == (2, sum(width) + width[-1])
    assert torch.allclose(features[:, -width[-1] :], seen[0], atol=1e-5)


def test_time_and_noise_matter_and_a_saved_reward_is_the_same(diffusion, tmp_path):
    pairs, _ = planted_pairs(24, among=12)
    model = make(diffusion)
    for _ in train_reward(model, pairs, CONFIG, tmp_path):
        pass
    reward = load_learned(tmp_path / "model")
    prompts, x = examples()[1][:3], torch.randn(3, *diffusion.latent_shape)
    early, late = (reward.score_latents(x, t, prompts) for t in (900, 100))
    assert not torch.allclose(early, late)
    same = StepAwareReward(model.eval()).score_latents(x, torch.full((3,), 900.0), prompts)
    assert torch.allclose(early, same, atol=1e-5)
    scores = reward(examples()[0][:3], prompts)
    assert scores.shape == (3,) and reward.step_aware and (scores.abs() <= reward.range[1]).all()


@pytest.mark.truth
def test_both_pictures_of_a_pair_are_noised_at_one_time(diffusion):
    model, seen = make(diffusion), []
    model.at = lambda x_t, t, *texts: seen.append((x_t, t)) or torch.zeros(len(x_t), 1)
    clean = torch.zeros(500, *diffusion.latent_shape)
    texts = tuple(t.expand(500, *t.shape[1:]) for t in model.prepare_texts(["a red circle"]))
    model(clean, clean, *texts)
    x_t, t = seen[0]
    assert torch.equal(t[:500], t[500:]) and not torch.equal(x_t[:500], x_t[500:])
    spread = diffusion.schedule.coefficients(t)[1]
    measured = x_t.flatten(1).std(1)
    assert torch.allclose(measured / spread, torch.ones(1000).double(), atol=0.2)
    assert t.min() < 50 and t.max() > 950


def test_bad_latents_are_named(diffusion):
    reward = StepAwareReward(make(diffusion))
    x, prompts = torch.randn(2, *diffusion.latent_shape), ["a red circle"] * 2
    for wrong, match in (((x[0], 1, prompts), "must be floating"), ((x * float("nan"), 1, prompts), "NaN"),
                         ((x, torch.zeros(3), prompts), "times"), ((x, 1, prompts[:1]), "1 prompts for 2")):
        with pytest.raises(RewardError, match=match):
            reward.score_latents(*wrong)
    with pytest.raises(ValueError, match="latent, unet, x0"):
        StepAwareModel(diffusion, "pixels")
    with pytest.raises(ValueError, match="trunk="):
        StepAwareModel(diffusion, "x0")
