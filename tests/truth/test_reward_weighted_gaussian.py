"""Weighted regression in the Gaussian world: one round is the tilt, iterating goes to the mode."""

import pytest

from surveylib.evaluation.gaussian import reward_weighted as world
from surveylib.evaluation.gaussian.closure import GRID, histogram
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM
from surveylib.techniques.reward_weighted.rwr import exponential_weights
from surveylib.worlds.gaussian.distances import kl_on_grid
from surveylib.worlds.gaussian.grid import GridDensity
from surveylib.worlds.gaussian.tilt import tilted

pytestmark = pytest.mark.truth
OPTIMUM_STD = PROBLEM.optimum.covariance.sqrt().item()


def test_weighted_samples_of_the_base_are_the_tilt():
    """Without any network: the histogram of exact samples, weighted by the rule, has the optimum's moments."""
    x = PROBLEM.base.sample(200_000)
    weights = exponential_weights(PROBLEM.reward(x), PROBLEM.beta)
    mean = (weights[:, None] * x).mean()
    std = (weights[:, None] * (x - mean) ** 2).mean().sqrt()
    assert mean.item() == pytest.approx(PROBLEM.optimum.mean.item(), abs=0.01)
    assert std.item() == pytest.approx(OPTIMUM_STD, abs=0.01)


def test_one_round_of_rwr_is_the_tilt():
    assert PROBLEM.closed(world.rwr().samples) >= 0.95


def test_rounds_that_sample_the_reference_stay_at_the_tilt():
    assert PROBLEM.closed(world.rwr(rounds=3, source="reference").samples) >= 0.95


def test_rounds_that_sample_the_policy_go_past_the_tilt():
    samples = world.rwr(rounds=3).samples
    assert samples.std() < 0.6 * OPTIMUM_STD and PROBLEM.closed(samples) < 0.8
    again, _ = tilted(PROBLEM.base, PROBLEM.reward, PROBLEM.beta / 3)  # p exp(3 r / beta)
    goal, tilt, base = (GridDensity.of(m.log_prob, GRID) for m in (again, PROBLEM.optimum, PROBLEM.base))
    reached = kl_on_grid(goal, histogram(samples))
    assert reached < 0.05 * kl_on_grid(goal, base) and reached < 0.7 * kl_on_grid(goal, tilt)


def test_raft_goes_to_the_mode():
    samples = world.raft().samples
    assert samples.std() < 0.2 * OPTIMUM_STD and abs(samples.mean() - 1) < 0.1
    assert PROBLEM.closed(samples) < 0
