"""Inversion: the round trip's error falls at the stated order, and equals diffusers' DDIM inversion step by step."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.inversion import inversion_path, invert, renoise, step_up
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule, schedule_from_diffusers
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import ExactModel

pytestmark = pytest.mark.truth
FLOW = FlowSchedule(spacing="uniform")


def round_trip(model, steps, iterations):
    x0 = torch.linspace(-1.6, 1.6, 9, dtype=torch.float64)[:, None]
    condition = model.encode(["any"] * 9)
    noise = invert(model, x0, condition, steps=steps, iterations=iterations)
    back = sample(model, condition, dynamics=DDIM(0.0), steps=steps, x=noise)
    return float((back - x0).square().mean().sqrt())


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_round_trip_error_falls_with_order_iterations_plus_one(iterations):
    model = ExactModel(two_peaks(), FLOW)
    counts = (50, 100, 200)
    error = [round_trip(model, steps, iterations) for steps in counts]
    assert error[0] > error[1] > error[2]
    assert math.log2(error[1] / error[2]) == pytest.approx(iterations + 1, abs=0.25), error


def test_many_iterations_make_the_round_trip_exact():
    assert round_trip(ExactModel(two_peaks(), FLOW), 50, iterations=40) < 1e-9


def test_on_a_vp_schedule_too():
    model = ExactModel(two_peaks(), VPSchedule.linear())
    error = [round_trip(model, steps, 0) for steps in (50, 200)]
    assert error[1] < error[0] / 3
    assert round_trip(model, 50, 2) < error[0] / 5


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_step_up_is_that_of_diffusers(set_alpha_to_one):
    config = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": set_alpha_to_one}
    inverse = DDIMInverseScheduler(**config)
    inverse.set_timesteps(20)
    schedule = schedule_from_diffusers(DDIMScheduler(**config))
    upwards = schedule.grid(20).flip(0)
    x = torch.randn(2, 4, 3, 3)
    for i, t in enumerate(inverse.timesteps):
        epsilon = torch.sin(3 * x)
        theirs = inverse.step(epsilon, t, x).prev_sample
        assert upwards[i + 1] == t
        ours = step_up(x, upwards[i], Prediction(x, t, epsilon, "epsilon", schedule))
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
        x = theirs


def test_path_goes_up_the_grid():
    model = ExactModel(two_peaks(), FLOW)
    path = list(inversion_path(model, torch.ones(1, 1), model.encode(["any"]), times=FLOW.grid(4)))
    assert [float(t) for t, _ in path] == FLOW.grid(4).flip(0)[1:].tolist()
    with pytest.raises(ValueError, match="negative"):
        invert(model, torch.ones(1, 1), model.encode(["any"]), iterations=-1)


@pytest.mark.parametrize("schedule, t, s", [(FLOW, 0.3, 0.8), (FLOW, 0.0, 1.0), (VPSchedule.linear(), 100, 900)])
def test_renoising_keeps_the_marginals(schedule, t, s):
    x0, first, second = torch.randn(3, 200000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = 0.5 + 0.3 * x0
    x = renoise(schedule, schedule.add_noise(x0, first, t), t, s, second)
    a, sigma = (float(c) for c in schedule.coefficients(s))
    assert float(x.mean()) == pytest.approx(0.5 * a, abs=0.01)
    assert float(x.var()) == pytest.approx((0.3 * a) ** 2 + sigma**2, rel=0.01)
    with pytest.raises(ValueError, match="cleaner"):
        renoise(schedule, x0, s, t, first)
