import math
from itertools import pairwise

import pytest
import torch

from surveylib.diffusion.dynamics import (
    CPS,
    DDIM,
    DDPM,
    DanceSDE,
    FlowSDE,
    ReverseSDE,
    Transition,
    TurboAncestral,
    kl_divergence,
    log_prob,
    make_dynamics,
)
from surveylib.diffusion.predictions import Prediction
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule

FLOW, VP = FlowSchedule(3.0), VPSchedule.scaled_linear(steps_offset=1, final_alpha_cumprod=0.99915)
ALL = [DDIM(0.0), DDIM(1.0), DDPM(), DDPM("large"), TurboAncestral(), CPS(0.7), FlowSDE(0.7), DanceSDE(0.3)]


def flow_prediction(sigma, shape=(2, 4, 3, 3)):
    return Prediction(torch.randn(shape), sigma, torch.randn(shape), "velocity", FLOW)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dynamics", [dynamics for dynamics in ALL if repr(dynamics) != repr(DDIM(0.0))], ids=repr)
def test_log_prob_is_that_of_torch_distributions(dynamics, reduction):
    transition = dynamics.transition(flow_prediction(0.8), 0.6)
    x_next = transition.sample(torch.randn(2, 4, 3, 3))
    density = torch.distributions.Normal(transition.mean, transition.std.expand_as(x_next)).log_prob(x_next)
    expected = getattr(density.flatten(1), reduction)(1)
    torch.testing.assert_close(transition.log_prob(x_next, reduction), expected)


def density_of(mean, std, x_next):
    return torch.distributions.Normal(mean, torch.as_tensor(std, dtype=mean.dtype)).log_prob(x_next).flatten(1).sum(1)


@pytest.mark.truth
@pytest.mark.parametrize("variance", ["small", "large"])
def test_log_prob_of_ddpm_is_that_of_the_papers_normal(variance):
    """arXiv 2006.11239: mean of algorithm 2, line 4; sigma_t² is beta_t, or beta_t (1 - abar_{t-1}) / (1 - abar_t)."""
    x, epsilon, x_next = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    t = 600
    before, now = VP.alphas_cumprod[t - 1], VP.alphas_cumprod[t]
    beta = 1 - now / before
    mean = (x - beta / (1 - now).sqrt() * epsilon) / (1 - beta).sqrt()
    std = (beta if variance == "large" else beta * (1 - before) / (1 - now)).sqrt()
    x_next = mean + std * x_next
    transition = DDPM(variance).transition(Prediction(x, float(t), epsilon, "epsilon", VP), float(t - 1))
    expected = density_of(mean, std, x_next)
    torch.testing.assert_close(transition.log_prob(x_next, "sum"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.truth
def test_log_prob_of_the_turbo_sampler_is_that_of_euler_ancestral():
    """diffusers' EulerAncestralDiscreteScheduler on y = x / a with k = s / a: y' = x0 + k_down eps + k_up z."""
    x, epsilon, x_next = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    t, s = 999, 749
    (a, noise), (a_next, noise_next) = (VP.coefficients(time) for time in (t, s))
    k, k_next = noise / a, noise_next / a_next
    up = (k_next**2 * (k**2 - k_next**2) / k**2).sqrt()
    down = (k_next**2 - up**2).sqrt()
    y = x / a
    mean, std = a_next * (y + epsilon * (down - k)), a_next * up
    x_next = mean + std * x_next
    transition = TurboAncestral().transition(Prediction(x, float(t), epsilon, "epsilon", VP), float(s))
    expected = density_of(mean, std, x_next)
    torch.testing.assert_close(transition.log_prob(x_next, "sum"), expected, rtol=1e-6, atol=1e-6)


def test_log_prob_in_half_precision_is_computed_in_float32():
    transition = Transition(torch.zeros(1, 1000), torch.tensor(0.01))
    x_next = (0.01 * torch.randn(1, 1000)).bfloat16()
    value = log_prob(x_next, transition, "sum")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, log_prob(x_next.float(), transition, "sum"))


def test_kl_of_two_transitions():
    p, q = Transition(torch.zeros(1, 3), torch.tensor(0.5)), Transition(torch.ones(1, 3), torch.tensor(0.5))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(p.mean, p.std), normal(q.mean, q.std)).sum(1)
    torch.testing.assert_close(kl_divergence(p, q, "sum"), expected)


def test_flow_sde_is_the_official_formula():
    """sd3_sde_with_logprob of the Flow-GRPO repository, written out."""
    for sigma, sigma_next in ((1.0, 0.9), (0.9, 0.7), (0.2, 0.1)):
        prediction = flow_prediction(sigma)
        x, v, dt = prediction.x, prediction.output, sigma_next - sigma
        g = 0.7 * math.sqrt(sigma / (1 - (sigma_next if sigma == 1 else sigma)))
        mean = x * (1 + g**2 / (2 * sigma) * dt) + v * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
        transition = FlowSDE(0.7).transition(prediction, sigma_next)
        torch.testing.assert_close(transition.mean, mean, rtol=1e-5, atol=1e-5)
        assert float(transition.std) == pytest.approx(g * math.sqrt(-dt), rel=1e-6)


def test_dance_sde_is_the_official_formula():
    """flux_step of the DanceGRPO repository, written out."""
    sigma, sigma_next, eta = 0.8, 0.65, 0.3
    prediction = flow_prediction(sigma)
    x, v, dsigma = prediction.x, prediction.output, sigma_next - sigma
    x0 = x - sigma * v
    score = -(x - x0 * (1 - sigma)) / sigma**2
    mean = x + v * dsigma - 0.5 * eta**2 * score * dsigma
    transition = DanceSDE(eta).transition(prediction, sigma_next)
    torch.testing.assert_close(transition.mean, mean, rtol=1e-5, atol=1e-5)
    assert float(transition.std) == pytest.approx(eta * math.sqrt(-dsigma), rel=1e-6)


def test_cps_is_the_official_formula():
    sigma, sigma_next, eta = 0.8, 0.65, 0.7
    prediction = flow_prediction(sigma)
    x, v = prediction.x, prediction.output
    x0, x1 = x - sigma * v, x + (1 - sigma) * v
    std = sigma_next * math.sin(eta * math.pi / 2)
    transition = CPS(eta).transition(prediction, sigma_next)
    expected = x0 * (1 - sigma_next) + x1 * math.sqrt(sigma_next**2 - std**2)
    torch.testing.assert_close(transition.mean, expected, rtol=1e-5, atol=1e-5)
    assert float(transition.std) == pytest.approx(std, rel=1e-6)


def test_reverse_sde_with_a_given_diffusion():
    prediction = flow_prediction(0.8)
    ours = ReverseSDE(lambda sigma, sigma_next: 0.3).transition(prediction, 0.6)
    dance = DanceSDE(0.3).transition(prediction, 0.6)
    torch.testing.assert_close(ours.mean, dance.mean)
    torch.testing.assert_close(ours.std, dance.std)


@pytest.mark.parametrize("dynamics", [FlowSDE(0.0), DanceSDE(0.0), CPS(0.0)], ids=repr)
@pytest.mark.parametrize("schedule, t, s", [(FLOW, 0.8, 0.6), (FLOW, 1.0, 0.9), (VP, 700.0, 500.0)])
def test_without_noise_all_are_the_ode(dynamics, schedule, t, s):
    prediction = Prediction(torch.randn(2, 5), t, torch.randn(2, 5), "v", schedule)
    ode, transition = DDIM(0.0).transition(prediction, s), dynamics.transition(prediction, s)
    assert transition.deterministic
    torch.testing.assert_close(transition.mean, ode.mean, rtol=1e-4, atol=1e-5)


def test_turbo_ancestral_is_ddim_with_eta_one():
    for schedule, t, s in ((VP, 999.0, 499.0), (VP, 249.0, -1.0), (FLOW, 0.5, 0.25)):
        prediction = Prediction(torch.randn(2, 5), t, torch.randn(2, 5), "x0", schedule)
        turbo, ddim = TurboAncestral().transition(prediction, s), DDIM(1.0).transition(prediction, s)
        torch.testing.assert_close(turbo.mean, ddim.mean)
        torch.testing.assert_close(turbo.std, ddim.std)


@pytest.mark.parametrize("dynamics", ALL, ids=repr)
def test_last_step_lands_on_x0_without_noise(dynamics):
    prediction = flow_prediction(0.1)
    transition = dynamics.transition(prediction, 0.0)
    assert transition.deterministic
    torch.testing.assert_close(transition.sample(None), prediction.x0, rtol=1e-5, atol=1e-5)


def test_last_step_of_stable_diffusion_has_the_noise_of_diffusers_only_where_it_is_asked_for():
    prediction = Prediction(torch.randn(2, 5), 49.0, torch.randn(2, 5), "epsilon", VP)
    for dynamics in (DDIM(1.0), CPS(0.7), FlowSDE(0.7), DanceSDE(0.3), DDPM("large"), DDPM("small"), TurboAncestral()):
        assert dynamics.transition(prediction, -1.0).deterministic
    noisy = DDIM(1.0, last_noise=True).transition(prediction, -1.0)
    assert 0 < float(noisy.std) < 0.05
    torch.testing.assert_close(DDIM(1.0).transition(prediction, -1.0).mean, DDIM(0.0).transition(prediction, -1.0).mean)


def test_why_the_noise_of_the_last_step_is_left_out():
    """On a trailing grid one change of the predicted noise costs ten times the KL of any other step there."""
    x, change = torch.randn(1, 50), torch.full((1, 50), 0.1)
    prices = []
    trailing = VPSchedule.scaled_linear(spacing="trailing", final_alpha_cumprod=0.99915)
    for t, s in pairwise(trailing.grid(20).tolist()):
        two = [DDIM(1.0, last_noise=True).transition(Prediction(x, t, output, "epsilon", trailing), s)
               for output in (x, x + change)]
        prices.append(float(kl_divergence(*two, "sum")))
    assert prices[-1] > 10 * max(prices[:-1])


@pytest.mark.parametrize("dynamics", ALL, ids=repr)
@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_first_step_is_finite_and_times_may_differ_in_the_batch(dynamics, schedule):
    times = schedule.grid(4)
    x, output = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    batch = dynamics.transition(Prediction(x, times[:-1], output, "v", schedule), times[1:])
    assert torch.isfinite(batch.mean).all() and torch.isfinite(batch.std).all()
    for i in range(4):
        one = dynamics.transition(Prediction(x[i : i + 1], times[i], output[i : i + 1], "v", schedule), times[i + 1])
        torch.testing.assert_close(batch.mean[i : i + 1], one.mean)
        torch.testing.assert_close(batch.std[i].flatten(), one.std.flatten())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="ddpm, ddim, flow_sde, dance_sde, cps, turbo_ancestral"):
        make_dynamics("euler_maruyama")
    assert make_dynamics("cps", eta=0.5).eta == 0.5
    with pytest.raises(ValueError, match="eta must be in"):
        DDIM(1.5)
    with pytest.raises(ValueError, match="eta must be in"):
        CPS(-0.1)
    with pytest.raises(ValueError, match="not be negative"):
        FlowSDE(-1)
    with pytest.raises(ValueError, match="'small' or 'large'"):
        DDPM("learned")
    transition = DDIM(1.0).transition(flow_prediction(0.8), 0.6)
    with pytest.raises(ValueError, match="needs noise"):
        transition.sample(None)
    with pytest.raises(ValueError, match="'sum'"):
        transition.log_prob(transition.mean, "max")
    with pytest.raises(ValueError, match="differ in shape"):
        transition.log_prob(transition.mean[:1], "sum")
    deterministic = DDIM(0.0).transition(flow_prediction(0.8), 0.6)
    with pytest.raises(ValueError, match="no log-probability"):
        deterministic.log_prob(deterministic.mean, "sum")
    with pytest.raises(ValueError, match="same std"):
        kl_divergence(transition, deterministic, "sum")
