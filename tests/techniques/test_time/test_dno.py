"""DNO: zero steps are the base, the regulariser by hand, rewards with and without gradient."""

import dataclasses
import math

import pytest
import torch
from toys import PIPELINES, PROMPTS, blind, brightness, close, constant, pipeline, points

from surveylib.diffusion.dynamics import DDIM
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class
from surveylib.techniques.test_time.base import base_latents
from surveylib.techniques.test_time.dno import (
    DNO,
    DNOConfig,
    improbability,
    log_probability,
    noisy_steps,
    picture_gradient,
)

SMALL = DNOConfig(iterations=4, lr=0.05, permutations=2, steps=3, guidance=2.0)


def small(**changes) -> DNO:
    return DNO(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sd3"])
def test_zero_steps_are_the_base_bit_for_bit(name, eta):
    model = pipeline(name)
    result = small(iterations=0, eta=eta).sample(model, PROMPTS, brightness(), seed=2)
    assert torch.equal(result.latents, base_latents(model, PROMPTS, dynamics=DDIM(eta), steps=3, guidance=2.0, seed=2))
    assert result.ledger.backward_passes == 0


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("name", PIPELINES)
def test_it_raises_the_reward_on_every_kind_of_pipeline(name, checkpoint):
    model = pipeline(name)
    result = small(gamma=0.0, checkpoint=checkpoint).sample(model, PROMPTS, brightness())
    first = result.trace[0]["reward"]
    assert (result.rewards > first).all()
    assert torch.equal(result.rewards, torch.stack([entry["reward"] for entry in result.trace]).max(0).values)
    branches = 1 if model.guidance_mode == "embedded" else 2
    forward = 2 * branches * 3 * 5
    assert result.ledger.backward_passes == 2 * branches * 3 * 4
    if not checkpoint:
        assert result.ledger.network_calls == forward
    elif name != "tiny-flux":  # recomputing stops early there, before the call is over and counted
        assert result.ledger.network_calls == forward + 2 * branches * 3 * 4
    assert result.ledger.reward_calls == 2 * 5


def test_checkpointing_changes_nothing():
    model = pipeline("tiny-sd")
    one, two = (small(checkpoint=c).sample(model, PROMPTS, brightness()) for c in (True, False))
    assert close(one.latents, two.latents)


def test_a_constant_reward_leaves_the_noise_alone():
    model = pipeline("tiny-sd")
    base = base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=3, guidance=2.0)
    result = small(gamma=0.0).sample(model, PROMPTS, constant())
    assert close(result.latents, base)
    assert torch.equal(result.trace[0]["norm"], result.trace[-1]["norm"])
    decayed = small(gamma=0.0, weight_decay=0.01).sample(model, PROMPTS, constant())
    assert (decayed.trace[-1]["norm"] < decayed.trace[0]["norm"]).all()


def test_samples_do_not_depend_on_their_neighbours():
    model = pipeline("tiny-sd")
    together, apart = (small(batch=b).sample(model, PROMPTS, brightness()) for b in (2, 1))
    assert close(together.latents, apart.latents)


def test_only_the_first_noise_under_the_ode():
    model = pipeline("tiny-sd")
    assert not any(noisy_steps(model, DDIM(0.0), 3)) and all(noisy_steps(model, DDIM(1.0), 3)[:2])
    assert noisy_steps(pipeline("tiny-sd3"), DDIM(1.0), 3) == [True, True, False]


def test_the_regulariser_by_hand():
    m, k = 50, 4
    z = torch.zeros(m, k, dtype=torch.float64)
    z[:, 0] = 2.0  # mean (2, 0, 0, 0); second moments diag(4, 0, 0, 0): |difference to I| is 3
    log_p1 = -m * 4 / (2 * k)
    log_p2 = -m / 2 * (math.sqrt(4) - 1 - math.sqrt(k / m)) ** 2
    assert log_probability(z.flatten(), k).item() == pytest.approx(log_p1 + log_p2)
    order = torch.arange(m * k).flip(0)
    value = improbability(z.flatten()[None], [order], k).item()
    assert value == pytest.approx(-2 * (log_p1 + log_p2))


def test_the_regulariser_is_flat_for_normal_noise_and_points_home_for_other():
    z = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert log_probability(z, 4).item() == pytest.approx(-2 * math.log(2))
    far = (1.5 * z).requires_grad_()
    value = improbability(far, [], 4)
    value.sum().backward()
    assert value.item() > 10
    assert (far.grad * far).sum() > 0  # down the gradient the noise gets smaller
    repeated = z[:, :40].repeat(1, 100)  # normal numbers, but the same vectors again and again
    assert improbability(repeated, [], 4).item() > 2 * math.log(2) + 1


def test_the_regulariser_holds_the_noise():
    model, reward = points()
    config = DNOConfig(iterations=60, lr=0.2, gamma=0.0, steps=8, guidance=None, permutations=0, block=1,
                       checkpoint=False)
    free = DNO(config).sample(model, ["any"] * 8, reward)
    held = DNO(dataclasses.replace(config, gamma=5.0)).sample(model, ["any"] * 8, reward)
    away = [(run.trace[-1]["norm"] - 1).abs().mean() for run in (free, held)]
    assert away[0] > 2 * away[1]
    assert free.rewards.mean() > held.rewards.mean() > held.trace[0]["reward"].mean()


def test_a_reward_without_gradient_needs_the_zeroth_order_form():
    model = pipeline("tiny-sd")
    with pytest.raises(TechniqueError, match="'blind' has none"):
        small().sample(model, PROMPTS, blind())
    result = small(gradient="zeroth", gamma=0.0, probes=8, iterations=6).sample(model, PROMPTS, blind())
    assert (result.rewards > result.trace[0]["reward"]).all()
    assert result.ledger.reward_calls == 2 * (7 + 6 * 8)


def test_the_zeroth_order_gradient_of_a_linear_reward():
    generator = torch.Generator().manual_seed(0)
    slope, here, mu = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(1, 3), 0.01
    probes = here + mu * torch.randn(50_000, 1, 3, generator=generator)
    ours = picture_gradient(here, here @ slope, probes, probes @ slope, mu)
    assert torch.allclose(ours[0], slope, atol=0.05)


def test_the_zeroth_order_direction_carries_the_decoder_twice():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, 0.0]])  # J: two noises, three numbers of a picture
    slope, here, mu = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(1, 3), 0.01
    probes = here + mu * torch.randn(50_000, 1, 2, generator=generator) @ decoder.T
    ours = picture_gradient(here, here @ slope, probes, probes @ slope, mu)[0]
    assert torch.allclose(ours, decoder @ decoder.T @ slope, atol=0.15)
    assert not torch.allclose(ours, slope, atol=1.0)
    assert (decoder.T @ ours) @ (decoder.T @ slope) > 0  # in the noise it still goes up


def test_bad_input_is_refused():
    for bad, word in (({"iterations": -1}, "iterations"), ({"lr": 0.0}, "lr"), ({"gamma": -1.0}, "gamma"),
                      ({"block": 0}, "block"), ({"gradient": "x"}, "gradient"), ({"probes": 0}, "probes"),
                      ({"clip_norm": 0.0}, "clip_norm"), ({"mu": 0.0}, "mu")):
        with pytest.raises(TechniqueError, match=word):
            DNOConfig(**bad)
    with pytest.raises(TechniqueError, match="learns from a reward"):
        small(gradient="zeroth").sample(pipeline("tiny-sd"), PROMPTS, None)


def test_names():
    assert technique_class("dno") is DNO and set(DNO.PRESETS) == {"toy", "single", "full"}
