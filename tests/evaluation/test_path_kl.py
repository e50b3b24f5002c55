"""The KL of paths against closed forms in the Gaussian world, and its unbiasedness."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.predictions import from_x0_epsilon
from surveylib.diffusion.schedules import VPSchedule, broadcast
from surveylib.evaluation.path_kl import path_kl
from surveylib.runs.randomness import generators
from surveylib.worlds.gaussian.models import GaussianModel

pytestmark = pytest.mark.truth


class OneGaussian(nn.Module):
    """The exact noise prediction for data N(mean, variance), both trainable."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self.mean, self.variance = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def forward(self, x, t, components):
        a, s = (broadcast(c, x) for c in self.schedule.coefficients(t))
        total = a**2 * self.variance + s**2
        epsilon = s * (x - a * self.mean) / total
        return from_x0_epsilon((x - s * epsilon) / a, epsilon, "epsilon", a, s)


def policy(mean, variance, dim=1):
    """A policy N(mean, variance) in each of `dim` directions, whose reference is N(0, 1)."""
    schedule = VPSchedule.linear()
    model = GaussianModel(OneGaussian(schedule), ["one"], dim, schedule)
    model.snapshot("reference")
    with torch.no_grad():
        model.network.mean.fill_(mean)
        model.network.variance.fill_(variance)
    return model


def found(model, n, steps, eta=1.0, seed=0, guidance=1.0):
    return path_kl(model, ["one"] * n, dynamics=DDIM(eta), steps=steps, guidance=guidance, batch=512,
                   generators=generators(range(n), seed, "kl"))


def exact(model, steps, eta=1.0):
    """The expectation in closed form: everything is affine in x, so that x_t is Gaussian with known moments."""
    condition, times = model.encode(["one", "one"]), model.schedule.grid(steps)
    mean, variance, total = 0.0, 1.0, 0.0
    for t, s in pairwise(times):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        with torch.no_grad():
            ours = DDIM(eta).transition(model.predict(x, t, condition, 1.0), s)
            with model.reference():
                theirs = DDIM(eta).transition(model.predict(x, t, condition, 1.0), s)
        std = float(ours.std.flatten()[0])
        if std > 0:
            gap = (ours.mean - theirs.mean).flatten()
            at_zero, slope = float(gap[0]), float(gap[1] - gap[0])
            total += ((at_zero + slope * mean) ** 2 + slope**2 * variance) / (2 * std**2)
        start, step = float(ours.mean[0]), float(ours.mean[1] - ours.mean[0])
        mean, variance = start + step * mean, step**2 * variance + std**2
    return total


def test_a_policy_that_is_its_reference_has_no_kl():
    assert found(policy(0.0, 1.0), 8, 10).abs().max() == 0


def test_a_shift_of_the_mean_is_the_closed_form_for_every_sample():
    """The two scores differ by the same amount everywhere, so each path gives the exact sum."""
    model = policy(0.8, 1.0)
    values = found(model, 16, 20)
    assert values.tolist() == pytest.approx([exact(model, 20)] * 16, rel=1e-4)


def test_the_kl_of_two_directions_is_the_sum():
    assert found(policy(0.8, 1.0, dim=2), 4, 20).tolist() == pytest.approx([2 * exact(policy(0.8, 1.0), 20)] * 4,
                                                                           rel=1e-4)


def test_the_sum_over_a_fine_path_is_the_kl_of_the_end():
    """The forward process is the same for both, so the KL of the paths is that of the data: m^2 / 2."""
    assert found(policy(0.8, 1.0), 4, 400).mean().item() == pytest.approx(0.8**2 / 2, rel=0.02)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_the_estimate_is_unbiased(eta):
    model, n = policy(0.5, 0.5), 4000
    values = found(model, n, 10, eta)
    error = values.std().item() / math.sqrt(n)
    assert error < 0.03 * exact(model, 10, eta)
    assert abs(values.mean().item() - exact(model, 10, eta)) < 3 * error


def test_guidance_reaches_both_models():
    """One component: the guided prediction is the conditional one, whatever the scale."""
    assert torch.allclose(found(policy(0.5, 0.8), 6, 8, guidance=3.0), found(policy(0.5, 0.8), 6, 8), rtol=1e-3)


def test_rollouts_do_not_depend_on_the_batch():
    model = policy(0.5, 0.5)
    options = {"dynamics": DDIM(1.0), "steps": 6, "guidance": 1.0}
    whole = path_kl(model, ["one"] * 6, generators=generators(range(6), 1), batch=6, **options)
    parts = path_kl(model, ["one"] * 6, generators=generators(range(6), 1), batch=4, **options)
    assert torch.allclose(whole, parts, rtol=1e-5) and whole.std() > 0


def test_deterministic_dynamics_are_refused():
    with pytest.raises(ValueError, match="stochastic sampler"):
        path_kl(policy(1.0, 1.0), ["one"], dynamics=DDIM(0.0), steps=4, generators=generators([0], 0), guidance=1.0)
    with pytest.raises(ValueError, match="1 generators for 2 prompts"):
        path_kl(policy(1.0, 1.0), ["one"] * 2, dynamics=DDIM(1.0), steps=4, generators=generators([0], 0))


