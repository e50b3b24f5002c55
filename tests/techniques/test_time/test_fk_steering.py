"""FK steering: its identities, its potentials, what follows the ancestors."""

import dataclasses
import math

import pytest
import torch
from toys import PIPELINES, PROMPTS, blind, brightness, close, constant, pipeline, points

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.rollout import rollout
from surveylib.rewards.points import PointReward
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.test_time.base import base_latents, noise_generators
from surveylib.techniques.test_time.best_of_n import BestOfN, BestOfNConfig
from surveylib.techniques.test_time.fk_steering import (
    FKConfig,
    FKSteering,
    Swarm,
    last_log_potential,
    log_potential,
    no_history,
    remember,
    stages_of,
)
from surveylib.techniques.test_time.lockstep import lockstep, look_ahead

SMALL = FKConfig(steps=5, resample_at=(0.4, 0.8), strength=300.0, ess=1.0)


def small(**changes) -> FKSteering:
    return FKSteering(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize("name", PIPELINES)
def test_it_runs_on_every_kind_of_pipeline_and_counts(name):
    model = pipeline(name)
    result = small(potential="diff").sample(model, PROMPTS, blind(), seed=2)
    branches = 1 if model.guidance_mode == "embedded" else 2
    assert result.images.shape == (2, 3, *model.resolution)
    assert result.ledger.network_calls == 2 * 4 * 5 * branches and result.ledger.backward_passes == 0
    assert result.ledger.reward_calls == result.ledger.decodes == 2 * 4 * 3
    assert torch.allclose(brightness()(result.images, PROMPTS), result.rewards)
    assert [entry["step"] for entry in result.trace] == [1, 3, 4]
    assert any(entry["resampled"].any() for entry in result.trace[:-1])


@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_one_particle_is_the_base_sampler_bit_for_bit(potential):
    model = pipeline("tiny-sd")
    result = small(particles=1, potential=potential).sample(model, PROMPTS, brightness(), seed=4)
    assert torch.equal(result.latents, base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=5, seed=4))


@pytest.mark.parametrize("select", ["best", "sample"])
@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_a_constant_reward_or_no_strength_gives_the_base(potential, select):
    model = pipeline("tiny-sd")
    base = base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=5)
    steer = small(potential=potential, select=select)
    result = steer.sample(model, PROMPTS, constant())
    assert close(result.latents, base)
    assert not any(entry["resampled"].any() for entry in result.trace[:-1])
    if select == "sample":
        free = small(potential=potential, select=select, strength=0.0).sample(model, PROMPTS, brightness())
        assert close(free.latents, base)


@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_weighing_at_the_end_alone_is_soft_best_of_n_with_the_same_random_numbers(potential):
    model, reward = points()
    prompts = ["any"] * 200
    steered = FKSteering(FKConfig(particles=4, potential=potential, strength=1.5, resample_at=(), select="sample",
                                  steps=6, batch=800)).sample(model, prompts, reward, seed=7)
    soft = BestOfN(BestOfNConfig(n=4, select="soft", strength=1.5, steps=6, eta=1.0, batch=800)).sample(
        model, prompts, reward, seed=7)
    assert torch.equal(steered.trace[-1]["chosen"], soft.trace[0]["chosen"])
    assert torch.equal(steered.latents, soft.latents)
    assert len(steered.trace[-1]["chosen"].unique()) == 4


def test_potentials_by_hand():
    rewards = [torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])]
    expected = {"diff": [[1.0, -2.0], [-0.5, 5.0]], "max": [[1.0, -2.0], [1.0, 3.0]], "add": [[1.0, -2.0], [1.5, 1.0]]}
    for potential, values in expected.items():
        history, total = no_history(1, 2), torch.zeros(1, 2)
        for reward, value in zip(rewards, values):
            log_g = log_potential(potential, reward.double(), history, 2.0)
            assert torch.allclose(log_g, 2.0 * torch.tensor([value], dtype=torch.float64))
            history, total = remember(history, reward.double(), log_g), total + log_g
        end = torch.tensor([[0.7, 0.2]], dtype=torch.float64)
        assert torch.allclose(total + last_log_potential(end, history, 2.0), 2.0 * end)


@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_histories_and_samples_follow_the_ancestors(potential):
    swarm = Swarm(1, FKConfig(particles=3, potential=potential, strength=50.0, ess=1.0), seed=0)
    x = torch.arange(3.0)[:, None]
    x = swarm.weigh(0, torch.tensor([0.0, 1.0, -1.0]), x)  # particle 1 outweighs the others by e^50
    assert x.flatten().tolist() == [1, 1, 1] and swarm.roots.tolist() == [[1, 1, 1]]
    assert swarm.history["last"].tolist() == [[1, 1, 1]] and swarm.history["greatest"].tolist() == [[1, 1, 1]]
    assert swarm.history["spent"].tolist() == [[50, 50, 50]]
    assert swarm.log_weights.tolist() == [[0, 0, 0]]
    assert swarm.log_z.item() == pytest.approx(50 - math.log(3))


def test_without_accumulation_weights_are_dropped():
    kept, dropped = (Swarm(1, FKConfig(particles=2, potential="diff", strength=0.1, accumulate=a), seed=0)
                     for a in (True, False))
    for swarm in (kept, dropped):
        swarm.weigh(0, torch.tensor([0.0, 1.0]), torch.zeros(2, 1))
        assert not swarm.trace[-1]["resampled"].any()
    assert kept.log_weights.tolist() == [[0, 0.1]] and dropped.log_weights.tolist() == [[0, 0]]


def test_particles_of_different_prompts_do_not_mix():
    model, reward = points()
    config = FKConfig(particles=4, potential="diff", strength=4.0, steps=6, ess=1.0)
    both = FKSteering(config).sample(model, ["left", "right"], reward, seed=1)
    alone = FKSteering(config).sample(model, ["left"], reward, seed=1)
    assert close(both.latents[0], alone.latents[0])
    assert both.latents[0] < 0 < both.latents[1]


def test_deterministic_dynamics_are_refused_and_why():
    with pytest.raises(TechniqueError, match="clones"):
        FKConfig(eta=0.0)
    FKConfig(eta=0.0, resample_at=())
    FKConfig(eta=0.0, particles=1)
    model, _ = points()
    condition = model.encode(["any"] * 2)
    for eta, separated in ((0.0, False), (1.0, True)):
        run = rollout(model, condition, dynamics=DDIM(eta), steps=6, generator=noise_generators(0, 1, 2))
        first = next(run)
        run.send(first.x_next[[0, 0]])  # the second becomes a clone of the first
        *_, last = run
        assert bool(last.x_next[0] != last.x_next[1]) == separated


def test_stages():
    assert stages_of((0.2, 0.4, 0.6, 0.8), 100) == (19, 39, 59, 79)
    assert stages_of((0.2, 0.4, 0.6, 0.8), 4) == (0, 1, 2)
    assert stages_of((0.99,), 5) == ()  # all steps done: that is the end's own potential
    assert stages_of((), 5) == ()


def test_how_batches_are_cut_does_not_matter():
    model = pipeline("tiny-sd")
    whole, cut = (small(batch=b).sample(model, PROMPTS, brightness()) for b in (64, 3))
    assert close(whole.latents, cut.latents)
    assert all(torch.equal(a["ancestors"], b["ancestors"]) for a, b in zip(whole.trace[:-1], cut.trace[:-1]))


def test_lockstep_replaces_samples():
    model, _ = points()
    condition = model.encode(["any"] * 3)
    run = lockstep(model, condition, noise_generators(0, 3), dynamics=DDIM(0.0), steps=4, guidance=None, batch=2)
    stage = next(run)
    stage = run.send(stage.x[[2, 2, 0]])
    assert stage.index == 1 and torch.allclose(stage.x[0], stage.x[1]) and not torch.allclose(stage.x[0], stage.x[2])


def test_look_ahead_is_the_rest_of_the_ode():
    model, _ = points()
    condition = model.encode(["any"] * 3)
    steps = list(rollout(model, condition, dynamics=DDIM(0.0), steps=6, generator=noise_generators(0, 3)))
    after = steps[2].x_next
    options = {"steps": 6, "guidance": None, "batch": 2}
    rest = look_ahead(model, condition, after, 2, calls=99, **options)
    assert torch.allclose(rest, steps[-1].prediction.x0, atol=1e-6)
    tweedie = look_ahead(model, condition, after, 2, calls=1, **options)
    assert torch.allclose(tweedie, model.predict(after, steps[3].t, condition).x0, atol=1e-6)
    assert not torch.allclose(rest, tweedie, atol=1e-3)


def test_lookahead_costs_its_calls():
    model = pipeline("tiny-sd")
    result = small(lookahead=1).sample(model, PROMPTS, brightness())
    assert result.ledger.network_calls == 2 * 4 * 2 * (5 + 2)


def test_bad_input_is_refused():
    for bad, word in (({"potential": "rt"}, "rt"), ({"strength": math.nan}, "strength"),
                      ({"particles": 0}, "particles"), ({"ess": 1.5}, "ess"), ({"resample_at": (1.0,)}, "resample_at"),
                      ({"scheme": "x"}, "scheme"), ({"select": "x"}, "select"), ({"lookahead": -1}, "lookahead")):
        with pytest.raises(TechniqueError, match=word):
            FKConfig(**bad)


def test_rewards_that_overflow_the_weights_are_refused():
    model, _ = points()
    huge = PointReward(lambda x: x[:, 0] * 3e38, "huge")
    steer = FKSteering(FKConfig(strength=1e300, steps=4))
    with pytest.raises(TechniqueError, match=r"log-weight is NaN or infinite|weight zero"):
        steer.sample(model, ["any"], huge)
