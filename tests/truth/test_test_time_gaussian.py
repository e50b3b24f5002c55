"""Test-time methods against known answers: what particles reach, what one-step look-ahead misses, and by how much."""

import math

import pytest
import torch

from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM
from surveylib.evaluation.gaussian.test_time import (
    CURVED,
    SAMPLES,
    STRENGTH,
    dno,
    dps,
    draw,
    fk,
    linear_law,
    one_step_look_ahead,
    soft_best_of_n,
)
from surveylib.rewards.points import PointReward
from surveylib.techniques.test_time.best_of_n import BestOfN, BestOfNConfig, kl_bound
from surveylib.techniques.test_time.fk_steering import FKConfig, FKSteering
from surveylib.techniques.test_time.gradient_guidance import TFG, GuidanceConfig
from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import spread
from surveylib.worlds.gaussian.models import ExactModel
from surveylib.worlds.gaussian.tilt import LinearReward, QuadraticReward, tilted

pytestmark = pytest.mark.truth


def test_soft_best_of_n_reaches_the_optimum_as_n_grows():
    closed = [PROBLEM.closed(draw(soft_best_of_n(n)).latents) for n in (1, 4, 32)]
    assert abs(closed[0]) < 0.05 and closed[0] < closed[1] < closed[2]
    assert closed[2] >= 0.95
    assert PROBLEM.exact_error(SAMPLES) < 0.03 * PROBLEM.whole_way  # what is left is mostly the histogram's own noise


@pytest.mark.parametrize("potential", ["diff", "max", "add"])
def test_fk_steering_reaches_the_optimum_as_particles_grow(potential):
    few, many = (PROBLEM.closed(draw(fk(n, potential)).latents) for n in (2, 24))
    assert few < many and many >= 0.95


def estimates(accumulate: bool, potential: str, ess: float, strength: float) -> tuple[torch.Tensor, float]:
    """Estimates of Z over many prompts, and the exact Z of the sampler's own law N(0, V): exp(lambda² V / 2)."""
    schedule = VPSchedule.cosine()
    config = FKConfig(particles=4, potential=potential, strength=strength, steps=12, guidance=1.0, ess=ess,
                      accumulate=accumulate, batch=10**6)
    model = ExactModel(spread(), schedule)
    drawn = FKSteering(config).sample(model, ["any"] * 4000, PointReward(LinearReward((1.0,))))
    exact = math.exp(0.5 * strength**2 * float(linear_law(schedule, 12)))
    return drawn.trace[-1]["log_z"].exp(), exact


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_a_reward_of_zero_or_one_is_tilted_as_told(scheme):
    """P*(r = 1) = q e^lambda / (1 - q + q e^lambda). The last weights are equal: the choice falls after resampling."""
    schedule, strength, prompts = VPSchedule.cosine(), 2.0, 1500
    config = FKConfig(particles=64, potential="diff", strength=strength, steps=12, guidance=1.0, ess=1.0,
                      scheme=scheme, select="sample", batch=10**6)
    reward = PointReward(lambda x: (x[:, 0] > 0.5).to(x), differentiable=False)
    drawn = FKSteering(config).sample(ExactModel(spread(), schedule), ["any"] * prompts, reward)
    q = 0.5 * math.erfc(0.5 / math.sqrt(2 * float(linear_law(schedule, 12))))
    told = q * math.exp(strength) / (1 - q + q * math.exp(strength))
    assert drawn.rewards.double().mean().item() == pytest.approx(told, abs=0.04)
    assert told - q > 0.3  # else the line above says little


# ADD counts a reward once for every weighing: at strength 1 its weights are too uneven for four particles
CASES = [("diff", 0.5, 1.0), ("diff", 1.0, 1.0), ("max", 0.5, 1.0), ("add", 0.9, 0.3)]


@pytest.mark.parametrize("potential, ess, strength", CASES)
def test_the_normalising_constant_is_unbiased(potential, ess, strength):
    z, exact = estimates(True, potential, ess, strength)
    error = z.std().item() / math.sqrt(len(z))
    assert abs(z.mean().item() - exact) < 4 * error
    assert error < 0.03 * exact and exact > 1.03  # else the line above says little


def test_without_accumulation_it_is_biased():
    z, exact = estimates(False, "diff", 0.5, 1.0)
    assert abs(z.mean().item() - exact) > 10 * z.std().item() / math.sqrt(len(z))


def test_best_of_n_is_as_far_from_the_base_as_the_formula_says():
    n, model = 8, ExactModel(spread(), VPSchedule.cosine())
    config = BestOfNConfig(n=n, steps=20, guidance=1.0, batch=10**6)
    x = BestOfN(config).sample(model, ["any"] * 20_000, PointReward(LinearReward((1.0,)))).latents
    grid = Grid(-5, 5, 400, 1)
    base = GridDensity.of(spread().log_prob, grid)
    below = base.log_mass.exp().cumsum(0)
    law = GridDensity(grid, ((n - 1) * below.log() + base.log_mass))  # density n F^(n-1) p
    kl = float((law.log_mass.exp() * (law.log_mass - base.log_mass)).sum())
    assert kl == pytest.approx(kl_bound(n), abs=0.02)
    scale = float(linear_law(VPSchedule.cosine(), 20, eta=0.0))  # the sampler's own variance where the data have 1
    assert x.mean().item() == pytest.approx(scale**0.5 * float(law.mean), abs=0.02)
    assert x.var().item() == pytest.approx(scale * float(law.covariance), rel=0.05)


def look_ahead(reward, steps: int = 100):
    model = ExactModel(spread(), VPSchedule.cosine())
    config = GuidanceConfig(rho=1.0, mu=0.0, strength=1.0, sigma=0.0, draws=1, rule="constant", where="epsilon",
                            steps=steps, guidance=1.0, batch=10**6)
    return TFG(config).sample(model, ["any"] * 10_000, PointReward(reward)).latents


def test_one_step_look_ahead_is_right_for_a_linear_reward_on_a_gaussian():
    optimum, _ = tilted(spread(), LinearReward((1.0,)), 1.0)
    x = look_ahead(LinearReward((1.0,)))
    assert x.mean().item() == pytest.approx(float(optimum.mean), abs=0.04)
    sampler = float(linear_law(VPSchedule.cosine(), 100))  # 0.95 at 100 steps for a variance of 1
    assert x.var().item() == pytest.approx(sampler * float(optimum.covariance), rel=0.05)


def test_one_step_look_ahead_is_too_narrow_for_a_quadratic_reward_by_the_amount_that_theory_says():
    """grad of r(x0_t) lacks the factor 1 / (1 + lambda A s²) of the soft value; steps do not mend it."""
    x = look_ahead(QuadraticReward((0.0,), 3.0))
    predicted = float(linear_law(VPSchedule.cosine(), 100, guidance=3.0))
    optimum = 1 / (1 + 3.0)
    assert x.var().item() == pytest.approx(predicted, rel=0.05)
    fine = FlowSchedule(spacing="uniform"), 4000
    assert float(linear_law(*fine)) == pytest.approx(1.0, abs=0.002)  # the sampler is not to blame
    assert float(linear_law(*fine, guidance=3.0)) == pytest.approx(0.166, abs=0.001)  # the optimum has 0.25
    assert float(linear_law(*fine, guidance=3.0)) < 0.7 * optimum


def test_one_step_look_ahead_and_dps_stay_away_from_the_optimum():
    ahead = [PROBLEM.closed(draw(one_step_look_ahead(n)).latents) for n in (40, 160)]
    assert max(ahead) < 0.9
    curved = [CURVED.closed(draw(sampler, problem=CURVED).latents)
              for sampler in (one_step_look_ahead(160, CURVED), soft_best_of_n(32, CURVED))]
    assert curved[0] < 0.85 and curved[1] > 0.95
    variance = [draw(dps(n)).latents.var().item() for n in (20, 80)]
    optimum = float(PROBLEM.optimum.covariance)
    assert variance[1] < 0.7 * variance[0] and variance[1] < 0.5 * optimum


def test_dno_without_regulariser_goes_to_the_mode():
    drawn = draw(dno(), samples=500)
    assert drawn.rewards.mean() > PROBLEM.reward(PROBLEM.optimum.sample(20_000)).mean() + 0.05
    assert drawn.latents.var() < 0.5 * float(PROBLEM.optimum.covariance)


def test_the_strength_is_that_of_the_problem():
    assert STRENGTH * PROBLEM.beta == 1
