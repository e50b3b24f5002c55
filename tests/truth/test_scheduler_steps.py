"""Step by step equality with the schedulers of diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from surveylib.diffusion.dynamics import CPS, DDIM, DDPM, TurboAncestral
from surveylib.diffusion.predictions import Prediction, kind_of_scheduler
from surveylib.diffusion.schedules import schedule_from_diffusers

pytestmark = pytest.mark.truth
SHAPE = (2, 4, 3, 3)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def network(x, t):
    """Any function of (x, t) will do."""
    return torch.sin(3 * x) + float(t) / 1000


def step(dynamics, schedule, kind, x, t, s, noise):
    transition = dynamics.transition(Prediction(x, t, network(x, t), kind, schedule), s)
    return transition.sample(noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "config",
    [
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "leading", "steps_offset": 0},
        {"timestep_spacing": "trailing"},
    ],
    ids=["stable-diffusion", "leading", "trailing"],
)
def test_ddim(config, eta, prediction_type):
    scheduler = DDIMScheduler(**SD, **config, prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    schedule, kind = schedule_from_diffusers(scheduler), kind_of_scheduler(scheduler)
    times = schedule.grid(20)
    x = theirs = torch.randn(SHAPE)
    for i, t in enumerate(scheduler.timesteps):
        noise = torch.randn(SHAPE)
        theirs = scheduler.step(network(theirs, t), t, theirs, eta=eta, variance_noise=noise).prev_sample
        x = step(DDIM(eta, last_noise=True), schedule, kind, x, times[i], times[i + 1], noise)
        torch.testing.assert_close(x, theirs, rtol=2e-5, atol=2e-5)
        x = theirs


@pytest.mark.parametrize("steps", [20, 30, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance, steps):
    scheduler = DDPMScheduler(**SD, variance_type=f"fixed_{variance}")
    scheduler.set_timesteps(steps)
    schedule = schedule_from_diffusers(scheduler)
    times = schedule.grid(steps)
    x = torch.randn(SHAPE)
    for i, t in enumerate(scheduler.timesteps):
        if i % (steps // 10) and i < steps - 3:
            continue  # every tenth step, and the last three
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        ours = step(DDPM(variance), schedule, "epsilon", x, times[i], times[i + 1], noise)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
        x = theirs


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_match_euler(stochastic, shift):
    """The deterministic scheduler is DDIM with eta = 0; its stochastic sampling is CPS with eta = 1."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)
    schedule, kind = schedule_from_diffusers(scheduler), kind_of_scheduler(scheduler)
    scheduler.set_timesteps(10)
    times = schedule.grid(10)
    x = torch.randn(SHAPE)
    for i, t in enumerate(scheduler.timesteps):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(network(x, t / 1000), t, x, generator=generator).prev_sample
        dynamics = CPS(1.0) if stochastic else DDIM(0.0)
        transition = dynamics.transition(Prediction(x, times[i], network(x, t / 1000), kind, schedule), times[i + 1])
        torch.testing.assert_close(transition.sample(noise), theirs, rtol=1e-5, atol=1e-5)
        x = theirs


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_turbo_ancestral_is_euler_ancestral_in_other_coordinates(steps):
    config = {key: value for key, value in SD.items() if key != "clip_sample"}
    scheduler = EulerAncestralDiscreteScheduler(**config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    schedule = schedule_from_diffusers(scheduler)
    times = schedule.grid(steps)
    theirs = torch.randn(SHAPE) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(theirs, t)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(network(x, t), t, theirs, generator=generator).prev_sample
        ours = step(TurboAncestral(), schedule, "epsilon", x, times[i], times[i + 1], noise)
        a_next = float(schedule.coefficients(times[i + 1])[0])
        torch.testing.assert_close(ours / a_next, theirs, rtol=2e-5, atol=2e-5)
