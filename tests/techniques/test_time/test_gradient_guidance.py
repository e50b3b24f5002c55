"""Gradient guidance: zero guidance is the base, and each setting is the method that it is named after."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from toys import PIPELINES, PROMPTS, blind, brightness, close, constant, pipeline, points

from surveylib.diffusion.dynamics import DDIM
from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.points import PointReward
from surveylib.runs.randomness import generator
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class
from surveylib.techniques.test_time.base import base_latents, noise_generators
from surveylib.techniques.test_time.gradient_guidance import (
    DPS,
    LGD,
    MPGD,
    TFG,
    FreeDoM,
    GuidanceConfig,
    UniversalGuidance,
    scaled,
    smoothed,
    strengths,
)
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import ExactModel

CLASSES = (TFG, DPS, FreeDoM, MPGD, LGD, UniversalGuidance)
STEPS = 6


def setting(cls, **changes) -> GuidanceConfig:
    return dataclasses.replace(cls.SETTING, **{"steps": STEPS, "guidance": 2.0, **changes})


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_every_setting_runs_and_raises_the_reward(cls, name):
    model = pipeline(name)
    rule = {"rule": "unit"} if model.guidance_mode == "embedded" or cls is not FreeDoM else {}
    changes = {"rho": 0.5 * (cls.SETTING.rho > 0), "mu": 0.5 * (cls.SETTING.mu > 0), "window": (0.0, 1.0),
               "iterations": 1, "recurrences": 1, **rule}  # repeats draw new noise: another picture
    result = cls(setting(cls, **changes)).sample(model, PROMPTS, brightness(), seed=1)
    base = cls(setting(cls, rho=0.0, mu=0.0)).sample(model, PROMPTS, brightness(), seed=1)
    assert result.images.shape == (2, 3, *model.resolution)
    assert (result.rewards > base.rewards).all()
    assert (result.ledger.backward_passes > 0) == (cls.SETTING.rho > 0)
    assert base.ledger.backward_passes == 0 and base.ledger.reward_calls == 2


@pytest.mark.parametrize("where", ["sample", "epsilon"])
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sd3"])
def test_zero_guidance_is_the_base_picture_bit_for_bit(name, where):
    model = pipeline(name)
    base = base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=4, guidance=2.0, seed=3)
    free = GuidanceConfig(rho=0, mu=0, steps=4, guidance=2.0, where=where, recurrences=3)
    assert torch.equal(TFG(free).sample(model, PROMPTS, brightness(), seed=3).latents, base)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_a_constant_reward_or_no_strength_gives_the_base_bit_for_bit(cls):
    model = pipeline("tiny-sd")
    base = base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=STEPS, guidance=2.0)
    flat = cls(setting(cls)).sample(model, PROMPTS, constant())
    assert torch.equal(flat.latents, base)
    assert flat.ledger.network_calls == 2 * 2 * STEPS  # nothing is repeated for nothing
    assert torch.equal(cls(setting(cls, strength=0.0)).sample(model, PROMPTS, brightness()).latents, base)


def test_a_reward_without_gradient_is_refused():
    with pytest.raises(TechniqueError, match="'blind' has none"):
        TFG().sample(pipeline("tiny-sd"), PROMPTS, blind())


def test_samples_do_not_depend_on_their_neighbours():
    model = pipeline("tiny-sd")
    flat_for_second = FunctionReward(
        lambda x, prompts: x.mean((1, 2, 3)) * torch.tensor([float("red" in p) for p in prompts]), "red", True)
    config = setting(FreeDoM, rule="unit", rho=1.0, window=(0, 1), recur_window=(0, 1))
    both = FreeDoM(config).sample(model, PROMPTS, flat_for_second)
    base = base_latents(model, PROMPTS, dynamics=DDIM(1.0), steps=STEPS, guidance=2.0)
    assert torch.equal(both.latents[1], base[1]) and not torch.equal(both.latents[0], base[0])
    cut = FreeDoM(dataclasses.replace(config, batch=1)).sample(model, PROMPTS, flat_for_second)
    assert close(cut.latents, both.latents)


# Separate implementations, as the papers write them: plain loops in epsilon form over VP coefficients.

def schedule_terms(model, t, s):
    (a, sd), (a_next, sd_next) = model.schedule.coefficients(t), model.schedule.coefficients(s)
    eta_sd = (sd_next**2 / sd**2 * (1 - a**2 / a_next**2)).sqrt()  # DDPM's posterior std, DDIM's sigma at eta 1
    return *(float(c) for c in (a, sd, a_next, sd_next)), float(eta_sd)


def by_hand(model, f, update, guidance=2.0, steps=STEPS, seed=0):
    """The loop that all share; `update(S, x_t, x0(x_t), eps_c - eps_u, ...)` gives x_s."""
    condition = model.encode(PROMPTS)
    stream = noise_generators(seed, 2)
    x = model.initial_noise(2, stream)
    times = model.schedule.grid(steps)
    for i in range(steps):
        a, sd, a_next, sd_next, std = schedule_terms(model, times[i], times[i + 1])
        std = std if i < steps - 1 else 0.0  # the last step has no noise
        x = x.detach().requires_grad_()
        t = times[i].float().expand(2)
        eps_u = model.network_output(x, t, condition.negative, None)
        eps_c = model.network_output(x, t, condition.tensors, None)
        eps = eps_u + guidance * (eps_c - eps_u)
        x0 = (x - sd * eps) / a
        z = torch.stack([torch.randn(x[0].shape, generator=g) for g in stream])

        def S(x0, eps=eps, a_next=a_next, sd_next=sd_next, std=std, z=z):
            return (a_next * x0 + (sd_next**2 - std**2) ** 0.5 * eps + std * z).detach()

        x = update(i=i, S=S, x=x, x0=x0, gap=(eps_c - eps_u).detach(), a=a, a_next=a_next, sd=sd)
    return x.detach()


def gradient(value, variable):
    return torch.autograd.grad(value.sum(), variable)[0].detach()


def rms(v):
    return v.pow(2).mean((1, 2, 3), keepdim=True).sqrt()


def test_dps_equals_its_own_implementation():
    model, y = pipeline("tiny-sd"), 0.3
    distance = FunctionReward(lambda x, prompts: -(y - x).flatten(1).norm(dim=1), "distance", True, False)

    def update(S, x, x0, **_):
        residual = (y - model.decode(x0, clamp=True)).flatten(1).norm(dim=1)
        return S(x0) - 0.4 * gradient(residual, x)

    ours = DPS(setting(DPS, rho=0.4)).sample(model, PROMPTS, distance).latents
    assert torch.allclose(ours, by_hand(model, None, update), atol=2e-5)


def test_freedom_equals_its_own_implementation():
    model, reward = pipeline("tiny-sd"), brightness()

    def update(i, S, x, x0, gap, **_):
        if not 0.3 <= i / STEPS < 0.7:
            return S(x0)
        g = gradient(reward(model.decode(x0, clamp=True)), x)
        return S(x0) + 0.2 * 2.0 * rms(gap) / rms(g) * g

    ours = FreeDoM(setting(FreeDoM, recurrences=1)).sample(model, PROMPTS, reward).latents
    assert torch.allclose(ours, by_hand(model, None, update), atol=2e-5)


def test_mpgd_equals_its_own_implementation():
    model, reward = pipeline("tiny-sd"), brightness()

    def update(i, S, x, x0, gap, **_):
        if not 0.3 <= i / STEPS < 0.7:
            return S(x0)
        clean = x0.detach().requires_grad_()
        g = gradient(reward(model.decode(clean, clamp=True)), clean)
        return S(clean.detach() + 15.0 * 2.0 * rms(gap) / rms(g) * g)

    result = MPGD(setting(MPGD)).sample(model, PROMPTS, reward)
    assert result.ledger.backward_passes == 0
    assert torch.allclose(result.latents, by_hand(model, None, update), atol=1e-4, rtol=1e-4)


def test_lgd_equals_its_own_implementation():
    model, reward = pipeline("tiny-sd"), brightness()

    def update(i, S, x, x0, sd, **_):
        streams = [generator(0, row, 0, "smoothing", i, 0) for row in range(2)]
        deltas = [torch.stack([torch.randn(x0[0].shape, generator=g) for g in streams]) for _ in range(3)]
        likelihoods = [(5.0 * reward(model.decode(x0 + 0.8 * sd * d, clamp=True))).exp() for d in deltas]
        return S(x0) + 20.0 * gradient((sum(likelihoods) / 3).log(), x)

    ours = LGD(setting(LGD, rho=20.0, draws=3, sigma=0.8, strength=5.0)).sample(model, PROMPTS, reward).latents
    assert torch.allclose(ours, by_hand(model, None, update), atol=2e-5)


def test_tfg_equals_its_own_implementation():
    model, reward = pipeline("tiny-sd"), brightness()
    times = model.schedule.grid(STEPS)
    alphas = [float((model.schedule.coefficients(t)[0] / model.schedule.coefficients(s)[0]) ** 2)
              for t, s in pairwise(times)]

    def update(i, S, x, x0, a, a_next, **_):
        factor = alphas[i] * STEPS / sum(alphas)
        d_t = 0.5 * factor * gradient(reward(model.decode(x0, clamp=True)), x)
        moved = x0.detach()
        for _ in range(2):
            leaf = moved.requires_grad_()
            moved = leaf.detach() + 1.5 * factor * gradient(reward(model.decode(leaf, clamp=True)), leaf)
        return S(x0) + d_t / alphas[i] ** 0.5 + a_next * (moved - x0.detach())

    config = setting(TFG, rho=0.5, mu=1.5, sigma=0.0, draws=1, iterations=2)
    assert torch.allclose(TFG(config).sample(model, PROMPTS, reward).latents, by_hand(model, None, update), atol=2e-5)


def test_universal_guidance_moves_epsilon():
    model, reward = pipeline("tiny-sd"), brightness()

    def update(S, x, x0, a, sd, **_):
        eps = (x - a * x0) / sd
        g = gradient(reward(model.decode(x0, clamp=True)), x)
        leaf = x0.detach().requires_grad_()
        d_0 = 0.7 * gradient(reward(model.decode(leaf, clamp=True)), leaf)
        eps = (eps - sd * 1.3 * g - a / sd * d_0).detach()
        return S((x.detach() - sd * eps) / a, eps)

    config = setting(UniversalGuidance, rho=1.3, mu=0.7, iterations=1, recurrences=1)
    ours = UniversalGuidance(config).sample(model, PROMPTS, reward).latents
    assert torch.allclose(ours, by_hand(model, None, update), atol=1e-4)


def test_repeats_cost_their_calls_and_raise_the_reward_further():
    model = pipeline("tiny-sd")
    once, thrice = (FreeDoM(setting(FreeDoM, rule="unit", rho=0.5, recurrences=n, window=(0, 1))).sample(
        model, PROMPTS * 8, brightness()) for n in (1, 3))
    repeated = sum(0.3 <= i / STEPS < 0.6 for i in range(STEPS))
    assert repeated == 2
    assert once.ledger.network_calls == 16 * 2 * STEPS
    assert thrice.ledger.network_calls == 16 * 2 * (STEPS + 2 * repeated)
    assert thrice.rewards.mean() > once.rewards.mean()


def test_smoothing_of_a_linear_function_adds_half_its_variance():
    noises = 0.3 * torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = smoothed(lambda x: 2.0 * x[:, 0], torch.ones(1, 1, dtype=torch.float64), noises)
    assert value.item() == pytest.approx(2.0 + 0.5 * (2 * 0.3) ** 2, abs=5e-3)


@pytest.mark.parametrize("growth", ["increase", "decrease", "constant"])
def test_strengths_have_mean_one_and_the_named_direction(growth):
    model, _ = points()
    values = strengths(model.schedule, 20, growth)
    assert values.mean().item() == pytest.approx(1)
    rises = {"increase": 1, "decrease": -1, "constant": 0}[growth]
    assert torch.sign((values[-2] - values[1]).round(decimals=9)).item() == rises


def test_rules():
    g, gap = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert scaled(g, "constant", 0.5, None, 7.0).tolist() == [[1.5, 2.0], [0, 0]]
    assert torch.allclose(scaled(g, "unit", 0.5, None, 7.0), torch.tensor([[0.3, 0.4], [0, 0]]))
    assert torch.allclose(scaled(g, "cfg", 0.5, gap, 7.0), torch.tensor([[4.2, 5.6], [0, 0]]))


def test_bad_input_is_refused():
    for bad, word in (({"rule": "x"}, "rule"), ({"where": "x"}, "where"), ({"rho": -1.0}, "rho"),
                      ({"mu": math.inf}, "mu"), ({"draws": 0}, "draws"), ({"iterations": 0}, "iterations"),
                      ({"recurrences": 0}, "recurrences"), ({"growth": "x"}, "growth")):
        with pytest.raises(TechniqueError, match=word):
            GuidanceConfig(**bad)
    model, reward = ExactModel(two_peaks()), PointReward(lambda x: x[:, 0], "right")
    with pytest.raises(TechniqueError, match="rule='cfg'"):
        FreeDoM().sample(model, ["any"], reward)


def test_names():
    for cls in (TFG, DPS, FreeDoM, MPGD, UniversalGuidance):
        assert technique_class(cls.name) is cls and set(cls.PRESETS) == {"toy", "single", "full"}
        assert cls().config == cls.SETTING
