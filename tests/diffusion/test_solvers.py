import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.diffusion.solvers import SOLVERS, make_solver
from surveylib.worlds.gaussian.mixture import GaussianMixture, two_peaks
from surveylib.worlds.gaussian.models import ExactModel

FLOW, VP = FlowSchedule(spacing="uniform"), VPSchedule.linear()


def exact_error(solver, steps, schedule=FLOW):
    """On N(m, v) the ODE is x_0 = m + sqrt(v) x_1: the error of a solver is known."""
    model = ExactModel(GaussianMixture([[0.5]], [0.6]), schedule)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    ours = sample(model, ["any"] * 5, solver=solver, steps=steps, x=x)
    return float((ours - (0.5 + 0.6 * x)).abs().max())


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_the_solver(name):
    counts = (80, 160, 320) if name == "dpm_solver_pp" else (20, 40, 80)
    error = [exact_error(name, steps) for steps in counts]
    order = math.log2(error[1] / error[2])
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25), error


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_euler_is_ddim(schedule):
    model = ExactModel(two_peaks(), schedule)
    x = torch.randn(50, 1, dtype=torch.float64)
    euler = sample(model, ["any"] * 50, solver="euler", steps=20, x=x)
    torch.testing.assert_close(euler, sample(model, ["any"] * 50, dynamics=DDIM(0.0), steps=20, x=x))


def test_calls_and_agreement_on_a_vp_schedule():
    model = ExactModel(two_peaks(), VP)
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    fine = sample(model, ["any"] * 200, dynamics=DDIM(0.0), steps=500, x=x)
    for name in SOLVERS:
        calls.clear()
        solver = make_solver(name)
        ours = sample(model, ["any"] * 200, solver=solver, steps=50, x=x)
        assert len(calls) == 50 * solver.calls_per_step - (name == "heun")
        assert (ours - fine).abs().mean() < (0.08 if name == "euler" else 0.03), name


def test_dpm_solver_is_that_of_diffusers():
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    schedule = VPSchedule.linear(spacing="trailing")
    assert schedule.grid(10)[:-1].tolist() == scheduler.timesteps.tolist()
    model = ExactModel(two_peaks(), schedule)
    x = theirs = torch.randn(20, 1)
    condition = model.encode(["left"] * 20)
    for t in scheduler.timesteps:
        theirs = scheduler.step(model.predict(theirs, t, condition).epsilon, t, theirs).prev_sample
    ours = sample(model, condition, solver="dpm_solver_pp", steps=10, x=x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_unknown_solver_is_named():
    with pytest.raises(ValueError, match="euler, heun, dpm_solver_pp"):
        make_solver("rk4")
