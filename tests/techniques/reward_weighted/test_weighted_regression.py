"""RWR and RAFT: weights with known answers, the weighted denoising error, runs on every family of models."""

import math

import pytest
import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.denoising import denoising_error
from surveylib.diffusion.timesteps import times_of_uniform
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward, RewardError
from surveylib.rewards.points import PointReward
from surveylib.runs.randomness import normal, uniform
from surveylib.techniques.contract import Draw, TechniqueError, Training
from surveylib.techniques.reward_weighted.raft import RAFT, RAFTConfig, best_of_group
from surveylib.techniques.reward_weighted.rwr import RWR, RWRConfig, exponential_weights, sparse_weights
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import learned_model

RIGHT = PointReward(lambda x: x[:, 0], "right")
TECHNIQUES = {
    "rwr": lambda **o: RWR(RWRConfig(steps=3, guidance=None, **o)),
    "rwr-sparse": lambda **o: RWR(RWRConfig(steps=3, guidance=None, weighting="sparse", quantile=0.5, **o)),
    "raft": lambda **o: RAFT(RAFTConfig(steps=3, **o)),
}


def points():
    model = learned_model(two_peaks(), steps=30)
    model.network.requires_grad_(True)
    model.snapshot("reference")
    return model


def draw() -> Draw:
    return Draw.of(["left", "any"], per_prompt=4, seed=5)


def test_exponential_weights_have_mean_one_and_the_ratios_of_the_tilt():
    rewards = torch.tensor([0.0, 1.0, 2.0])
    weights = exponential_weights(rewards, 0.5)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[1] / weights[0]).item() == pytest.approx(math.exp(2))
    assert torch.allclose(exponential_weights(rewards + 1000, 0.5), weights)  # no overflow, no shift
    assert torch.equal(exponential_weights(torch.full((5,), 0.3), 0.1), torch.ones(5))
    assert exponential_weights(rewards, 0.01).tolist() == pytest.approx([0.0, 0.0, 3.0])


def test_a_round_that_reaches_no_threshold_says_so():
    technique = RWR(RWRConfig(weighting="sparse", threshold=21.0))  # a raw PickScore; the rewards are standardised
    rewards, groups = torch.tensor([21.5, 22.0, 20.0, 23.0]), torch.tensor([0, 0, 1, 1])
    with pytest.warns(UserWarning, match=r"threshold=21 .*standardise='prompt'"):
        assert technique.weights(rewards, groups).sum() == 0
    assert RWR(RWRConfig(weighting="sparse", threshold=21.0, standardise="none")).weights(rewards, groups).sum() == 3


def test_sparse_weights_are_one_from_the_threshold_on():
    rewards = torch.tensor([0.0, 3.0, 1.0, 2.0])
    assert sparse_weights(rewards, 0.5).tolist() == [0, 1, 0, 1]
    assert sparse_weights(rewards, 0.0).tolist() == [1, 1, 1, 1]
    assert sparse_weights(rewards, 0.5, threshold=3.0).tolist() == [0, 1, 0, 0]
    assert sparse_weights(rewards, 0.5, threshold=9.0).sum() == 0


def test_raft_keeps_the_best_of_each_prompt():
    rewards = torch.tensor([0.1, 0.9, 0.5, 7.0, 8.0, 8.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert best_of_group(rewards, groups, 1).tolist() == [0, 3, 0, 0, 3, 0]  # the tie goes to the earlier
    assert best_of_group(rewards, groups, 2).tolist() == [0, 1.5, 1.5, 0, 1.5, 1.5]
    assert torch.equal(best_of_group(3 * rewards - 100, groups, 1), best_of_group(rewards, groups, 1))


def test_weights_of_rwr_are_standardised_as_asked():
    rewards, groups = torch.tensor([0.0, 2.0, 10.0, 14.0]), torch.tensor([0, 0, 1, 1])
    by_prompt = RWR(RWRConfig(standardise="prompt")).weights(rewards, groups)
    assert by_prompt[:2].tolist() == pytest.approx(by_prompt[2:].tolist(), rel=1e-3)
    assert (by_prompt[1] / by_prompt[0]).item() == pytest.approx(math.exp(2), rel=1e-3)
    none = RWR(RWRConfig(standardise="none", beta=4.0)).weights(rewards, groups)
    assert (none[2] / none[0]).item() == pytest.approx(math.exp(2.5), rel=1e-5)
    batch = RWR(RWRConfig(standardise="batch")).weights(rewards, groups)
    gap = 4 / rewards.std(correction=0)
    assert (batch[3] / batch[2]).log().item() == pytest.approx(gap.item(), rel=1e-3)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_loss_is_the_weight_times_the_denoising_error_with_named_noise(name):
    model, technique = points(), TECHNIQUES[name](times=3)
    items = technique.collect(model, draw(), RIGHT).all_items()
    losses, _ = technique.loss(model, items, RIGHT, {})
    t = times_of_uniform(uniform(items.keys, "time"), model.schedule)
    error = denoising_error(model, items["x0"], items.condition, t, normal(items.keys, (1,), "noise"))
    assert len(items) == 24 and t.unique().numel() > 18
    assert torch.allclose(losses, items["weight"] * error, atol=1e-6)
    assert losses.requires_grad and losses.max() > 0


def test_the_network_is_not_called_on_items_without_weight():
    model, technique, seen = points(), TECHNIQUES["raft"](), []
    items = technique.collect(model, draw(), RIGHT).all_items()
    handle = model.network.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    losses, _ = technique.loss(model, items, RIGHT, {})
    assert seen == [2] and (losses > 0).sum() == 2
    items.values["weight"] = torch.zeros(len(items))
    assert torch.equal(technique.loss(model, items, RIGHT, {})[0], torch.zeros(len(items))) and seen == [2]
    handle.remove()


def test_reference_as_the_source_samples_the_reference():
    model = points()
    found = [RWR(RWRConfig(steps=3, guidance=1.0, source=source)) for source in ("policy", "reference")]
    before = [t.collect(model, draw(), RIGHT).samples["x0"] for t in found]
    with torch.no_grad():
        model.trainable_parameters()[-1].add_(0.3)
    after = [t.collect(model, draw(), RIGHT).samples["x0"] for t in found]
    assert torch.equal(before[0], before[1]) and torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0], atol=1e-3)


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_runs_on_every_family_of_models(name, model):
    reward = FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", False, False)
    training = Training(epochs=2, samples=4, samples_per_prompt=2, micro_batch=3, sample_batch=3, lora_rank=2)
    loaded = load_model(model)
    first, second = align(loaded, TECHNIQUES[name](), reward, ["a", "b"], training)
    assert math.isfinite(second.metrics["loss"]) and first.metrics["grad_norm"] > 0
    assert first.ledger.reward_calls == 4 and first.ledger.decodes == 4
    if name == "raft":
        assert first.metrics["reward_kept"] > first.metrics["reward"]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_constant_rewards_do_not_prefer_anything(name):
    flat = PointReward(lambda x: 0 * x[:, 0] + 0.3, "flat")
    weights = TECHNIQUES[name]().collect(points(), draw(), flat).steps["weight"][:, 0]
    expected = [4, 0, 0, 0, 4, 0, 0, 0] if name == "raft" else [1] * 8
    assert weights.tolist() == pytest.approx(expected)


def test_bad_input_is_refused():
    with pytest.raises(TechniqueError, match="beta=0"):
        RWRConfig(beta=0.0)
    with pytest.raises(TechniqueError, match="quantile=2"):
        RWRConfig(quantile=2.0)
    with pytest.raises(TechniqueError, match="source='old'"):
        RWRConfig(source="old")
    with pytest.raises(TechniqueError, match="keep=0"):
        RAFTConfig(keep=0)
    with pytest.raises(TechniqueError, match="standardise='batch'"):
        RWR().check(points(), RIGHT, Training(samples_per_prompt=1))
    with pytest.raises(TechniqueError, match="nothing is left out"):
        RAFT().check(points(), RIGHT, Training(samples_per_prompt=1))
    with pytest.raises(TechniqueError, match="learns from a reward"):
        RAFT().check(points(), object(), Training(samples_per_prompt=2))
    with pytest.raises(RewardError, match="broken"):
        TECHNIQUES["rwr"]().collect(points(), draw(), PointReward(lambda x: x[:, 0] * float("nan"), "broken"))
