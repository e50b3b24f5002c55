import math
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from surveylib.diffusion import schedules
from surveylib.diffusion.schedules import (
    FlowSchedule,
    VPSchedule,
    broadcast,
    make_schedule,
    schedule_from_diffusers,
    shift_sigma,
)

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("steps", [1, 4, 20, 30, 50, 999])
@pytest.mark.parametrize(
    "spacing, offset", [("leading", 0), ("leading", 1), ("trailing", 0), ("trailing", 1), ("linspace", 0)]
)
def test_vp_grid_is_that_of_ddim(spacing, offset, steps):
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    grid = schedule_from_diffusers(scheduler).grid(steps)
    assert grid[:-1].tolist() == scheduler.timesteps.tolist()
    assert grid[-1] == -1


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_grid_is_that_of_flow_match_euler(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedule_from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    grid = schedule.grid(steps)
    torch.testing.assert_close(grid.float(), scheduler.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(schedule.network_time(grid[:-1]), scheduler.timesteps, rtol=1e-6, atol=1e-4)


def test_flow_grid_of_the_flux_pipeline():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), mu=0.8)
    schedule = schedule_from_diffusers(scheduler, shift=math.exp(0.8), spacing="uniform")
    torch.testing.assert_close(schedule.grid(6).float(), scheduler.sigmas, rtol=1e-6, atol=1e-7)


def test_dynamic_shifting_wants_a_shift():
    with pytest.raises(ValueError, match=r"math\.exp\(mu\)"):
        schedule_from_diffusers(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDIMScheduler(**SD, set_alpha_to_one=False, rescale_betas_zero_snr=True),
        PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        EulerDiscreteScheduler(**SD, timestep_spacing="trailing"),
        EulerAncestralDiscreteScheduler(trained_betas=np.linspace(0.001, 0.02, 200), num_train_timesteps=200),
        LCMScheduler(**SD),
    ],
    ids=lambda s: type(s).__name__,
)
def test_coefficients_are_those_of_the_scheduler(scheduler):
    schedule = schedule_from_diffusers(scheduler)
    a, s = schedule.coefficients(torch.arange(len(scheduler.alphas_cumprod)))
    torch.testing.assert_close(a**2, scheduler.alphas_cumprod.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a))
    last = schedule.coefficients(schedule.end)[0] ** 2
    assert float(last) == pytest.approx(float(getattr(scheduler, "final_alpha_cumprod", 1.0)), abs=1e-7)


def test_schedule_from_a_config_dictionary():
    config = dict(DDIMScheduler(**SD, timestep_spacing="trailing").config)
    assert schedule_from_diffusers(config).grid(4).tolist() == [999, 749, 499, 249, -1]


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_named_schedules(name):
    diffusers_name = {"cosine": "squaredcos_cap_v2"}.get(name, name)
    constants = {"linear": {"beta_start": 1e-4, "beta_end": 0.02}, "scaled_linear": SD}.get(name, {})
    scheduler = DDIMScheduler(**{**constants, "beta_schedule": diffusers_name})
    torch.testing.assert_close(make_schedule(name).alphas_cumprod, scheduler.alphas_cumprod.double())


def test_between_integer_timesteps():
    schedule = VPSchedule.linear()
    abar = schedule.coefficients(torch.tensor([10.0, 10.25, 11.0]))[0] ** 2
    assert abar[1] == pytest.approx(float(0.75 * abar[0] + 0.25 * abar[2]))
    half = schedule.coefficients(-0.5)[0] ** 2
    assert half == pytest.approx(float(1 + schedule.alphas_cumprod[0]) / 2)


@pytest.mark.parametrize("schedule, t", [(VPSchedule.cosine(), 500), (FlowSchedule(3.0), 0.4)])
def test_signal_to_noise_ratio_and_forward_noising(schedule, t):
    a, s = schedule.coefficients(t)
    assert schedule.snr(t) == pytest.approx(float(a / s) ** 2)
    assert schedule.log_snr(t) == pytest.approx(2 * math.log(a / s))
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), float(a) * x0 + float(s) * noise)
    each = schedule.add_noise(x0, noise, torch.tensor([float(t), schedule.end]))
    torch.testing.assert_close(each[1], x0[1])
    assert math.isinf(schedule.snr(schedule.end))


def test_forward_noising_is_that_of_diffusers():
    x0, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 999])
    scheduler = DDPMScheduler()
    ours = schedule_from_diffusers(scheduler).add_noise(x0, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(x0, noise, t), rtol=1e-5, atol=1e-6)


def test_shift_moves_times_towards_noise_and_keeps_the_ends():
    assert shift_sigma(0.5, 3.0) == pytest.approx(0.75)
    assert shift_sigma(1.0, 3.0) == 1.0 and shift_sigma(0.0, 3.0) == 0.0
    assert FlowSchedule(1.0).with_shift(3.0).grid(5)[2] > FlowSchedule(1.0).grid(5)[2]


def test_broadcast_raises_half_precision_and_checks_the_batch():
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert broadcast(torch.tensor(0.5, dtype=torch.float64), half).dtype == torch.float32
    assert broadcast(torch.ones(2), torch.zeros(2, 3, 4)).shape == (2, 1, 1)
    with pytest.raises(ValueError, match="does not fit a batch of 2"):
        broadcast(torch.ones(3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_schedule("quadratic"), "linear, scaled_linear, cosine, flow"),
        (lambda: VPSchedule.linear(spacing="even"), "leading, trailing, linspace"),
        (lambda: FlowSchedule(spacing="even"), "sigma_min, uniform"),
        (lambda: FlowSchedule(0.0), "positive"),
        (lambda: VPSchedule(torch.linspace(1e-4, 0.02, 100)), "were these the betas"),
        (lambda: VPSchedule.from_betas([0.1, 1.5]), r"\[0, 1\]"),
        (lambda: VPSchedule.linear().grid(0), "between 1 and 1000"),
        (lambda: FlowSchedule().grid(0), "at least 1"),
        (lambda: VPSchedule.linear().coefficients(1000), "outside"),
        (lambda: FlowSchedule().coefficients(500.0), "sigma"),
        (lambda: VPSchedule.linear().add_noise(torch.zeros(2, 3), torch.zeros(2, 4), 1), "same shape"),
        (lambda: schedule_from_diffusers(EulerDiscreteScheduler(use_karras_sigmas=True)), "use_karras_sigmas"),
        (lambda: schedule_from_diffusers({"_class_name": "VQDiffusionScheduler"}), "lists no betas"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def anew():
    """Forget which warnings were given."""
    schedules._warn_once.cache_clear()


@pytest.mark.parametrize("steps, first, share, enough", [(1, 1, "99.8 %", 4), (3, 667, "10.4 %", 4)])
def test_a_leading_grid_that_starts_with_signal_left_is_warned_of_once(anew, steps, first, share, enough):
    schedule = VPSchedule.scaled_linear(spacing="leading", steps_offset=1)
    with pytest.warns(UserWarning, match=f"timestep {first} of 999, where {share} .* at least {enough} steps") as found:
        schedule.grid(steps)
        schedule.grid(steps)
    assert len(found) == 1 and "trailing" in str(found[0].message)


@pytest.mark.parametrize("schedule, counts", [
    (VPSchedule.scaled_linear(spacing="leading", steps_offset=1), (4, 5, 8, 10, 20, 50, 1000)),
    (VPSchedule.scaled_linear(spacing="trailing"), (1, 2, 3)),
    (VPSchedule.linear(), (3, 10)),
    (VPSchedule([0.99, 0.9, 0.8]), (1, 3)),  # the last timestep itself leaves signal: not the grid's doing
])
def test_usual_grids_are_not_warned_of(anew, schedule, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in counts:
            schedule.grid(steps)


def test_the_step_count_that_is_advised_is_the_first_without_a_warning(anew):
    schedule = VPSchedule.cosine()
    with pytest.warns(UserWarning, match="at least 5 steps"):
        schedule.grid(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.grid(5)
