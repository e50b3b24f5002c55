"""The exactly aligned distribution: closed forms against the grid, and the identities that define it."""

import pytest
import torch

from surveylib.diffusion.rollout import sample
from surveylib.worlds.gaussian.distances import kl_on_grid, mmd_test
from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import GaussianMixture, cross, ring, two_peaks
from surveylib.worlds.gaussian.models import ExactModel
from surveylib.worlds.gaussian.tilt import (
    LinearReward,
    LogMixtureReward,
    QuadraticReward,
    soft_value,
    tilted,
    tilted_on_grid,
)

pytestmark = pytest.mark.truth
LINE, PLANE = Grid(-6, 6, 3000, 1), Grid(-5, 5, 250, 2)
GOAL = GaussianMixture([[0.8, 0.3], [-0.5, 1.0]], [0.6, 0.9], [0.3, 0.7])
CASES = {
    "linear-1d": (two_peaks(), LinearReward((1.5,), 0.2), 0.7, LINE),
    "linear-2d": (cross(), LinearReward((0.5, -1.0)), 0.5, PLANE),
    "quadratic-1d": (two_peaks(), QuadraticReward((0.4,), 2.0), 0.5, LINE),
    "quadratic-away": (two_peaks(), QuadraticReward((0.0,), -1.0), 0.5, LINE),
    "quadratic-2d": (ring(), QuadraticReward((0.5, 0.2), ((1.0, 0.4), (0.4, 2.0))), 1.0, PLANE),
    "log-mixture": (cross(), LogMixtureReward(GOAL), 1.0, PLANE),
    "log-mixture-power-2": (ring(), LogMixtureReward(GOAL, scale=1.0), 0.5, PLANE),
}


@pytest.mark.parametrize("case", CASES)
def test_closed_form_equals_the_grid(case):
    mixture, reward, beta, grid = CASES[case]
    optimum, log_z = tilted(mixture, reward, beta)
    on_grid, grid_log_z = tilted_on_grid(mixture.log_prob, reward, beta, grid)
    assert log_z == pytest.approx(grid_log_z, abs=1e-4)
    assert kl_on_grid(on_grid, GridDensity.of(optimum.log_prob, grid)) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_it_maximises_reward_minus_kl_and_the_maximum_is_beta_log_z(case):
    mixture, reward, beta, grid = CASES[case]
    optimum, log_z = tilted(mixture, reward, beta)
    base = GridDensity.of(mixture.log_prob, grid)

    def objective(q):
        return float(q.expectation(reward)) - beta * kl_on_grid(q, base)

    best = objective(GridDensity.of(optimum.log_prob, grid))
    assert best == pytest.approx(beta * log_z, abs=2e-4)
    for other_beta in (0.8 * beta, 1.25 * beta):
        other, _ = tilted_on_grid(mixture.log_prob, reward, other_beta, grid)
        assert objective(other) < best - 1e-5


@pytest.mark.parametrize("a, s", [(0.9, 0.3), (0.4, 0.6)])
@pytest.mark.parametrize("case", ["linear-1d", "quadratic-1d"])
def test_soft_value_is_the_expectation_over_the_posterior(case, a, s):
    mixture, reward, beta, grid = CASES[case]
    optimum, log_z = tilted(mixture, reward, beta)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    ours = soft_value(mixture, optimum, log_z, beta, x, a, s)
    for value, point in zip(ours.tolist(), x):
        likelihood = -((point - a * grid.points) ** 2)[:, 0] / (2 * s**2)
        posterior = GridDensity(grid, mixture.log_prob(grid.points) + likelihood)
        expectation = posterior.expectation(torch.exp(reward(grid.points) / beta))
        assert value == pytest.approx(beta * float(expectation.log()), abs=1e-4)


def test_the_exact_model_of_the_optimum_samples_it():
    mixture, reward, beta, _ = CASES["quadratic-2d"]
    optimum, _ = tilted(mixture, reward, beta)
    generator = torch.Generator().manual_seed(0)
    x = sample(ExactModel(optimum), ["any"] * 400, steps=100, generator=generator)
    assert mmd_test(x, optimum.sample(400, generator), generator=generator).p_value > 0.01
    assert mmd_test(x, mixture.sample(400, generator), generator=generator).p_value < 0.01


def test_small_and_large_beta():
    mixture, reward = two_peaks(), LinearReward((1.0,))
    assert float(tilted(mixture, reward, 1e3)[0].mean) == pytest.approx(float(mixture.mean), abs=2e-3)
    sharp = tilted(mixture, reward, 0.05)[0]
    assert float(sharp.restrict("right").weights.sum()) == 1.0 and float(sharp.weights[1]) > 0.999


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="beta must be positive"):
        tilted(two_peaks(), LinearReward((1.0,)), 0.0)
    with pytest.raises(ValueError, match="raise beta"):
        tilted(two_peaks(), QuadraticReward((0.0,), -10.0), 0.5)
    with pytest.raises(ValueError, match="not a positive integer"):
        tilted(cross(), LogMixtureReward(GOAL), 0.4)
    with pytest.raises(TypeError, match="tilted_on_grid"):
        tilted(two_peaks(), torch.sin, 1.0)
